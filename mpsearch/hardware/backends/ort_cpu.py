"""`ort-cpu`: ONNX Runtime on the CPU. Integer convolutions (u8 x s8, int32 bias) and linear layers through
Q/DQ nodes, stored weights through MatMulNBits.
"""

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
from mpsearch.hardware.backend import BACKENDS, Backend, Cell, Support
from mpsearch.hardware.bench import CpuBench
from mpsearch.hardware.draws import (
    Draw,
    draw,
    grid_of,
    on_grid,
    quantized,
    reference,
    relative_error,
    values_of,
)
from mpsearch.hardware.overflow import is_depthwise, without_overflow
from mpsearch.hardware.qdq import QdqWriter, opset_imports, stored_bytes
from mpsearch.problem import FLOAT, Candidate, ConvAttributes, Layer

W8A8 = Candidate(8, 8)
_ARITHMETIC = {
    "QLinearConv": "integer",
    "MatMulIntegerToFloat": "integer",
    "MatMulNBits": "stored",
    "DynamicQuantizeMatMul": "dynamic",
    **dict.fromkeys(
        ("Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "ConvInteger", "MatMulInteger"),
        "float",
    ),
}
"""Operator of an optimised graph that multiplies -> what it computes in; the bare integer products count as
float: no candidate asks for them.
"""


def kernels_of(ran: tuple[str, ...]) -> list[str]:
    """What the operators that multiply compute in, in order: `integer`, `stored` or `float`."""
    return [_ARITHMETIC[op] for op in ran if op in _ARITHMETIC]


def arithmetic_of(candidate: Candidate) -> str:
    """What `kernels_of` must say of a unit at a candidate."""
    return "float" if candidate.is_float else "stored" if candidate.weight_only else "integer"


def session(
    model: bytes | Path,
    threads: int = 1,
    optimized: Path | None = None,
    *,
    arena: bool = True,
    fused: bool = True,
) -> ort.InferenceSession:
    """The one place where sessions are made, for timing cells and for the exported model alike.

    It is ONNX Runtime's default session but for the threads: options that change a result do not travel with
    a file.

    Args:
        model: Serialised ONNX, or its file.
        threads: Threads of the runtime's pool.
        optimized: Where to write the graph that really runs.
        arena: Whether memory is kept for the next call; without it, what a call takes can be read from the
            process.
        fused: Whether Q/DQ pairs may become integer kernels; else what stands between them computes in float.
    """
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = arena
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


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
        threads: Threads of the runtime's pool; 1 is measured by process CPU time.
    """

    threads: int = 1
    runtime: ClassVar[str] = "onnxruntime"

    @property
    def version(self) -> str:
        """Version of the package onnxruntime."""
        return str(ort.__version__)

    def supports(self, layer: Layer, candidate: Candidate) -> Support:
        """Float everywhere; integers through the 8-bit kernel for convolutions and linear layers; stored
        weights for linear layers.
        """
        if candidate.is_float:
            return Support("ok", "float kernel", FLOAT)
        if layer.op == "matmul":
            return Support("no", "activation products run in float on this backend", None)
        if candidate.w_granularity != "channel":
            return Support("no", "weights have one scale for each output channel on this backend", None)
        if candidate.weight_only:
            return _stored(layer, candidate)
        if candidate == W8A8:
            return Support("ok", "u8 x s8 integer kernel", W8A8)
        return Support(
            "storage-only", f"{candidate} is stored in 8-bit containers and runs the W8A8 kernel", W8A8
        )

    def build(self, layer: Layer, candidate: Candidate, batch: int) -> Cell:
        """A session of one unit on random data, checked against float64 arithmetic on the same quantised
        values.
        """
        support = self.supports(layer, candidate)
        if support.kernel != candidate:
            raise TableError(
                f"{self.name} has no kernel for {candidate} of {layer.name!r}: {support.reason}."
            )
        unit = _unit(layer, candidate, batch)
        model = unit.model.SerializeToString()
        ran = executed(model, self.threads)
        live = session(model, self.threads)
        error = relative_error(np.asarray(live.run(None, unit.feeds)[0]), unit.reference)
        return Cell(
            lambda: live.run(None, unit.feeds),
            ran,
            kernels_of(ran) == [arithmetic_of(candidate)],
            error,
            unit.tolerance,
        )

    def bench(self, seconds: float = 0.25) -> CpuBench:
        """The CPU's bench, with as many threads as the runtime has."""
        return CpuBench(self.threads, seconds)

    def packed_bytes(self, layer: Layer, candidate: Candidate) -> int:
        """Bytes of the weight, its scales and its zero points in the ONNX file, at the kernel of a candidate;
        the bias is not in it.
        """
        if not layer.weight_shape or candidate.is_float:
            return layer.weight_numel * 4
        if candidate.weight_only:
            return stored_bytes(layer.weight_shape[0], layer.weight_shape[1], candidate.w_bits or 8)
        return layer.weight_numel + 5 * layer.weight_shape[0]


def _stored(layer: Layer, candidate: Candidate) -> Support:
    """Weights alone, in the containers that MatMulNBits reads."""
    if layer.op != "linear":
        return Support(
            "no", "the runtime has no convolution that reads weights of fewer bits with float inputs", None
        )
    kernel = Candidate(4 if (candidate.w_bits or 8) <= 4 else 8, candidate.a_bits)
    if candidate == kernel:
        return Support("ok", f"MatMulNBits with {candidate.w_bits}-bit weights and float inputs", kernel)
    # its 2-bit form took 20 times the float layer's time at one row, where it ran at all
    return Support(
        "storage-only",
        f"{candidate} is stored in {kernel.w_bits}-bit containers and runs the {kernel} kernel",
        kernel,
    )


@dataclass(frozen=True)
class _Unit:
    model: onnx.ModelProto
    feeds: dict[str, NDArray[np.float32]]
    reference: NDArray[np.float64]
    tolerance: float


def _unit(layer: Layer, candidate: Candidate, batch: int) -> _Unit:
    data, writer = draw(layer, batch), QdqWriter()
    if data.weight is None:
        writer.node("MatMul", ["x0", "x1"], "y")
        return _finish(writer, data.feeds, reference(layer, data.feeds, None, None), 1e-4)
    build = _float_unit if candidate.is_float else _stored_unit if candidate.weight_only else _integer_unit
    return build(writer, layer, candidate, data)


def _float_unit(writer: QdqWriter, layer: Layer, candidate: Candidate, data: Draw) -> _Unit:
    weight = np.asarray(data.weight)
    writer.initializers.append(
        numpy_helper.from_array(np.ascontiguousarray(weight if layer.op == "conv2d" else weight.T), "w")
    )
    if data.bias is not None:
        writer.initializers.append(numpy_helper.from_array(data.bias, "b"))
    if layer.op == "conv2d":
        writer.node(
            "Conv", ["x0", "w", *(["b"] if data.bias is not None else [])], "y", **conv_attributes(layer)
        )
    elif data.bias is None:
        writer.node("MatMul", ["x0", "w"], "y")
    else:
        writer.node("Add", [writer.node("MatMul", ["x0", "w"]), "b"], "y")
    return _finish(
        writer, data.feeds, reference(layer, data.feeds, weight.astype(np.float64), data.bias), 1e-4
    )


def _stored_unit(writer: QdqWriter, layer: Layer, candidate: Candidate, data: Draw) -> _Unit:
    weight = quantized(np.asarray(data.weight), candidate.w_bits or 8)
    writer.stored_linear("x0", weight, data.bias, candidate.w_bits or 8, "y")
    return _finish(writer, data.feeds, reference(layer, data.feeds, values_of(weight), data.bias), 1e-4)


def _integer_unit(writer: QdqWriter, layer: Layer, candidate: Candidate, data: Draw) -> _Unit:
    weight, grid = quantized(np.asarray(data.weight), 8), grid_of(data.feeds["x0"])
    if layer.conv is None or not is_depthwise(layer.weight_shape, layer.conv.groups):
        weight = without_overflow(weight)  # as it ships
    wanted = reference(layer, {"x0": on_grid(data.feeds["x0"], grid)}, values_of(weight), data.bias)
    if layer.op == "linear":
        writer.linear("x0", weight, data.bias, grid, "y")
        return _finish(writer, data.feeds, wanted, 1e-3)
    behind = grid_of(wanted)
    writer.node(
        "Identity",
        [writer.quantized(writer.conv("x0", weight, data.bias, grid, conv_attributes(layer)), behind)],
        "y",
    )
    # half a step of the output's 8-bit grid, and a step more where the accumulator lands on a tie
    return _finish(writer, data.feeds, wanted, 1.5 * behind.scale / float(np.abs(wanted).max()))


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


def _finish(writer: QdqWriter, feeds: dict[str, Any], wanted: NDArray[np.float64], tolerance: float) -> _Unit:
    # a free batch, as what ships has: sizes that are known to the runtime let it choose other operators
    free = {name: [f"{name}_batch", *value.shape[1:]] for name, value in feeds.items()}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in free.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(writer.nodes, "unit", inputs, outputs, writer.initializers)
    model = helper.make_model(graph, opset_imports=opset_imports(), ir_version=10)
    return _Unit(model, feeds, wanted, tolerance)
