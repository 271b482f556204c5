"""Units on a GPU: what is there (`probe`), cells (`cells`, `torch_cells`), measuring (`measure`, `profile`). Importing this package imports neither torch nor NVML."""
