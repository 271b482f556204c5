"""Units on a GPU: which GPU (`probe`, `card`), cells (`cells`, `trt`), measuring (`reading`, `bench`).

Importing it imports no torch and no NVML.
"""
