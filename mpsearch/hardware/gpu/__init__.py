"""Units on a GPU: which GPU (`probe`), cells (`cells`, `trt`), measuring (`measure`, `profile`). Importing it imports no torch and no NVML."""
