"""Calibration, search and evaluation images: read, prepared as the model's own evaluation does, kept apart, fixed by seed and content hash."""

from mpsearch.data.digits import digits_split
from mpsearch.data.images import ImageSet
from mpsearch.data.loading import load_images
from mpsearch.data.splits import Splits, make_splits

__all__ = ["ImageSet", "Splits", "digits_split", "load_images", "make_splits"]
