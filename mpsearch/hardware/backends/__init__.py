"""Backends: one file for each runtime. The registry finds them."""

from mpsearch.hardware.backend import BACKENDS, Backend, Bench, Cell, Measured, Support

__all__ = ["BACKENDS", "Backend", "Bench", "Cell", "Measured", "Support"]
