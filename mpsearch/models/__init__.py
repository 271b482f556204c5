"""Models: loading them, folding their batch norms, and finding their units, blocks and ties. Knows no
hardware and no search.
"""

from mpsearch.models import qmlp as qmlp  # timm finds the models that are registered there
from mpsearch.models.binding import apart, as_given, bound, form_of, rebound
from mpsearch.models.blocks import Block
from mpsearch.models.fold import find_foldable, fold_batch_norm
from mpsearch.models.form import Form, as_batch, observe_form
from mpsearch.models.function import require_function
from mpsearch.models.graph import ModelGraph, analyze
from mpsearch.models.load import (
    LoadedModel,
    ModelSource,
    as_float,
    as_stored,
    build_model,
    from_module,
    kind_of,
    load_model,
    unwrapped,
)
from mpsearch.models.onnx_file import require_same_as_file
from mpsearch.models.record import trace_model
from mpsearch.models.text import SpanHead, TextModel
from mpsearch.models.trace import Trace
from mpsearch.models.weights import check_finite, load_weights, require_weights, weights_hash

__all__ = [
    "Block",
    "Form",
    "LoadedModel",
    "ModelGraph",
    "ModelSource",
    "SpanHead",
    "TextModel",
    "Trace",
    "analyze",
    "apart",
    "as_batch",
    "as_float",
    "as_given",
    "as_stored",
    "bound",
    "build_model",
    "check_finite",
    "find_foldable",
    "fold_batch_norm",
    "form_of",
    "from_module",
    "kind_of",
    "load_model",
    "load_weights",
    "observe_form",
    "rebound",
    "require_function",
    "require_same_as_file",
    "require_weights",
    "trace_model",
    "unwrapped",
    "weights_hash",
]
