"""Units on a GPU: which GPU (`probe`), cells (`cells`, `torch_cells`), measuring (`measure`, `profile`). Importing it imports no torch and no NVML."""
