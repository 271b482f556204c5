"""From quantised units to files that a runtime loads: the packed checkpoint, and one file for each target."""

from mpsearch.deploy.loading import load
from mpsearch.deploy.onnx import quantize_onnx, save_onnx
from mpsearch.deploy.onnx_float import export_float
from mpsearch.deploy.onnx_run import measure_onnx, run_onnx
from mpsearch.deploy.packed import PackedLayout, save_packed
from mpsearch.deploy.packed_reading import load_packed, open_packed, read_description

__all__ = [
    "PackedLayout",
    "export_float",
    "load",
    "load_packed",
    "measure_onnx",
    "open_packed",
    "quantize_onnx",
    "read_description",
    "run_onnx",
    "save_onnx",
    "save_packed",
]
