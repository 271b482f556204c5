"""Processes that measure the trials of a run, and the run's end of them."""
