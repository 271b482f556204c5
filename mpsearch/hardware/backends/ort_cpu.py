"""`ort-cpu`: ONNX Runtime on the CPU. Integer convolutions (u8 x s8, int32 bias) and linear layers through Q/DQ nodes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mpsearch.errors import TableError
from mpsearch.hardware.backends._base import BACKENDS, Backend, Cell, Support
from mpsearch.hardware.device import identity
from mpsearch.hardware.qdq import OPSET, Grid, QdqWriter, QuantizedWeight
from mpsearch.problem import Candidate, ConvAttributes, Layer

W8A8 = Candidate(8, 8)
FLOAT = Candidate.parse("float")
DISABLED = ("WeightBiasQuantization", "MatMulAddFusion")
"""The first turns float layers between quantised ones into integer ones, unasked; the second makes of MatMul + Add a Gemm, which then runs in float."""
_INTEGER = {"QLinearConv", "MatMulIntegerToFloat"}
_SEED = 0


def session(model: bytes | Path, threads: int = 1, optimized: Path | None = None, *, arena: bool = True) -> ort.InferenceSession:
    """The one place where session options are set, for timing cells and for the exported model alike.

    Args:
        model: Serialised ONNX, or its file.
        threads: Of the runtime's pool.
        optimized: Where to write the graph that really runs.
        arena: Whether memory is kept for the next call; without it, what a call takes can be read from the process.
    """
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = arena
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if _saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED))


def _saturates() -> bool:
    """Whether the fast u8 x s8 product overflows 16 bits: x86 without VNNI.

    The exact kernel is only asked for there: where VNNI is, the same option makes it 2 to 2.5 times slower.
    """
    device = identity()
    return device.architecture.lower() in ("x86_64", "amd64") and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(device.flags)


def executed(model: bytes | Path, threads: int = 1) -> tuple[str, ...]:
    """Operators of the optimised graph, in order: what really runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session(model, threads, path)
        return tuple(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


@BACKENDS.register("ort-cpu")
@dataclass(frozen=True)
class OrtCpu(Backend):
    """ONNX Runtime, CPU execution provider.

    Args:
        threads: Of the runtime's pool; 1 is measured by process CPU time.
    """

    threads: int = 1
    runtime: ClassVar[str] = "onnxruntime"

    @property
    def version(self) -> str:
        """Of the package onnxruntime."""
        return str(ort.__version__)

    def supports(self, layer: Layer, candidate: Candidate) -> Support:
        """Float everywhere; integers for convolutions and linear layers, always through the 8-bit kernel."""
        if candidate.is_float:
            return Support("ok", "float kernel", FLOAT)
        if layer.op == "matmul":
            return Support("no", "activation products run in float on this backend", None)
        if candidate.w_granularity != "channel":
            return Support("no", "weights have one scale for each output channel on this backend", None)
        if candidate == W8A8:
            return Support("ok", "u8 x s8 integer kernel", W8A8)
        return Support("storage-only", f"{candidate} is stored in 8-bit containers and runs the W8A8 kernel", W8A8)

    def build(self, layer: Layer, candidate: Candidate, batch: int) -> Cell:
        """A session of one unit on random data, checked against float64 arithmetic on the same quantised values."""
        if candidate not in (FLOAT, W8A8):
            raise TableError(f"{self.name} has no kernel for {candidate}; it has float and W8A8.")
        unit = _unit(layer, candidate, batch)
        model = unit.model.SerializeToString()
        ran = executed(model, self.threads)
        live = session(model, self.threads)
        output = np.asarray(live.run(None, unit.feeds)[0])
        error = float(np.abs(output - unit.reference).max() / max(float(np.abs(unit.reference).max()), 1e-30))
        as_asked = candidate.is_float or bool(_INTEGER & set(ran))
        # half a step of the output's 8-bit grid, and a step more where the accumulator lands on a tie
        return Cell(lambda: live.run(None, unit.feeds), ran, as_asked, error, unit.tolerance)


@dataclass(frozen=True)
class _Unit:
    model: onnx.ModelProto
    feeds: dict[str, NDArray[np.float32]]
    reference: NDArray[np.float64]
    tolerance: float


def _unit(layer: Layer, candidate: Candidate, batch: int) -> _Unit:
    generator = np.random.default_rng(_SEED)
    shapes = [(s[0] * batch, *s[1:]) for s in layer.input_shapes]
    feeds = {f"x{i}": generator.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    writer = QdqWriter()
    if layer.op == "matmul":
        writer.node("MatMul", ["x0", "x1"], "y")
        return _finish(writer, feeds, feeds["x0"].astype(np.float64) @ feeds["x1"].astype(np.float64), 1e-4)
    weight = (generator.standard_normal(layer.weight_shape) * 0.05).astype(np.float32)
    bias = generator.standard_normal(layer.weight_shape[0]).astype(np.float32) if layer.bias else None
    build = _float_unit if candidate.is_float else _integer_unit
    return build(writer, layer, feeds, weight, bias)


def _float_unit(writer: QdqWriter, layer: Layer, feeds: dict[str, Any], weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> _Unit:
    constants = [numpy_helper.from_array(np.ascontiguousarray(weight if layer.op == "conv2d" else weight.T), "w")]
    if bias is not None:
        constants.append(numpy_helper.from_array(bias, "b"))
    writer.initializers += constants
    if layer.op == "conv2d":
        writer.node("Conv", ["x0", "w", *(["b"] if bias is not None else [])], "y", **conv_attributes(layer))
    elif bias is None:
        writer.node("MatMul", ["x0", "w"], "y")
    else:
        writer.node("Add", [writer.node("MatMul", ["x0", "w"]), "b"], "y")
    return _finish(writer, feeds, _reference(layer, feeds["x0"].astype(np.float64), weight.astype(np.float64), bias), 1e-4)


def _integer_unit(writer: QdqWriter, layer: Layer, feeds: dict[str, Any], weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> _Unit:
    flat = np.abs(weight.reshape(len(weight), -1)).max(1)
    quantized = QuantizedWeight(
        np.round(weight / (flat / 127).reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8),
        (flat / 127).astype(np.float32),
    )
    grid = _grid(feeds["x0"])
    x = (np.clip(np.round(feeds["x0"] / np.float32(grid.scale)) + grid.zero_point, 0, 255) - grid.zero_point) * np.float64(grid.scale)
    w = quantized.codes.astype(np.float64) * quantized.scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    reference = _reference(layer, x, w, bias)
    if layer.op == "linear":
        writer.linear("x0", quantized, bias, grid, "y")
        return _finish(writer, feeds, reference, 1e-3)
    behind = _grid(reference)
    writer.node("Identity", [writer.quantized(writer.conv("x0", quantized, bias, grid, conv_attributes(layer)), behind)], "y")
    return _finish(writer, feeds, reference, 1.5 * behind.scale / float(np.abs(reference).max()))


def conv_attributes(layer: Layer) -> dict[str, Any]:
    """Attributes of the ONNX Conv of a layer."""
    conv = layer.conv or ConvAttributes()
    return {
        "kernel_shape": list(layer.weight_shape[2:]),
        "strides": list(conv.stride),
        "pads": [*conv.padding, *conv.padding],
        "dilations": list(conv.dilation),
        "group": conv.groups,
    }


def _grid(values: NDArray[Any]) -> Grid:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = max((high - low) / 255, 1e-8)
    return Grid(float(np.float32(scale)), int(np.clip(np.round(-low / scale), 0, 255)))


def _reference(layer: Layer, x: NDArray[np.float64], weight: NDArray[np.float64], bias: NDArray[np.float32] | None) -> NDArray[np.float64]:
    if layer.op == "linear":
        return np.asarray(x @ weight.T + (0.0 if bias is None else bias))
    conv = layer.conv or ConvAttributes()
    (sy, sx), (py, px), (dy, dx), groups = conv.stride, conv.padding, conv.dilation, conv.groups
    padded = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
    kh, kw = weight.shape[2:]
    height, width = (padded.shape[2] - dy * (kh - 1) - 1) // sy + 1, (padded.shape[3] - dx * (kw - 1) - 1) // sx + 1
    batch, channels = x.shape[:2]
    inputs = padded.reshape(batch, groups, channels // groups, *padded.shape[2:])
    kernels = weight.reshape(groups, -1, *weight.shape[1:])
    total = np.zeros((batch, groups, kernels.shape[1], height, width))
    for i in range(kh):
        for j in range(kw):
            window = inputs[..., i * dy : i * dy + sy * (height - 1) + 1 : sy, j * dx : j * dx + sx * (width - 1) + 1 : sx]
            total += np.einsum("bgchw,goc->bgohw", window, kernels[..., i, j], optimize=True)
    result = total.reshape(batch, -1, height, width)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def _finish(writer: QdqWriter, feeds: dict[str, Any], reference: NDArray[np.float64], tolerance: float) -> _Unit:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in feeds.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(writer.nodes, "unit", inputs, outputs, writer.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return _Unit(model, feeds, reference, tolerance)
