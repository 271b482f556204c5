"""One file a tool; each has `quantize(task) -> Made`."""
