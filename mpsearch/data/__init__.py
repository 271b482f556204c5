"""Calibration, search and evaluation samples: read, prepared as the model's own evaluation does, kept apart,
fixed by seed and content hash.
"""

from mpsearch.data.digits import digits_split
from mpsearch.data.images import ImageSet
from mpsearch.data.loading import load_images, preparation, require_source
from mpsearch.data.nested import NestedSet
from mpsearch.data.placed import placed
from mpsearch.data.reading import Samples, Takes, drawn, opened
from mpsearch.data.samples import SampleSet
from mpsearch.data.sources.classes import Classes, read_class_map
from mpsearch.data.splits import Splits, make_splits
from mpsearch.data.tokens import TokenSet, tokenize

__all__ = [
    "Classes",
    "ImageSet",
    "NestedSet",
    "SampleSet",
    "Samples",
    "Splits",
    "Takes",
    "TokenSet",
    "digits_split",
    "drawn",
    "load_images",
    "make_splits",
    "opened",
    "placed",
    "preparation",
    "read_class_map",
    "require_source",
    "tokenize",
]
