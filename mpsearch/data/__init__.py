"""Calibration, search and evaluation samples: read, prepared as the model's own evaluation does, kept apart,
fixed by seed and content hash.
"""

from mpsearch.data.digits import digits_split
from mpsearch.data.images import ImageSet
from mpsearch.data.loading import has_parts, load_images, preparation, require_source
from mpsearch.data.nested import NestedSet
from mpsearch.data.placed import placed
from mpsearch.data.pools import learning_images
from mpsearch.data.reading import Samples, Takes, drawn, opened
from mpsearch.data.samples import SampleSet
from mpsearch.data.sources.classes import Classes, read_class_map
from mpsearch.data.sources.truths import are_boxes
from mpsearch.data.splits import Splits, make_splits
from mpsearch.data.texts import Texts, read_texts, require_texts
from mpsearch.data.tokens import TokenSet, tokenize

__all__ = [
    "Classes",
    "ImageSet",
    "NestedSet",
    "SampleSet",
    "Samples",
    "Splits",
    "Takes",
    "Texts",
    "TokenSet",
    "are_boxes",
    "digits_split",
    "drawn",
    "has_parts",
    "learning_images",
    "load_images",
    "make_splits",
    "opened",
    "placed",
    "preparation",
    "read_class_map",
    "read_texts",
    "require_source",
    "require_texts",
    "tokenize",
]
