"""`openvino-cpu` and `openvino-cpu-bf16`: OpenVINO's CPU plugin. Integer convolutions and linear layers,
compressed weights of linear layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mpsearch.errors import TableError
from mpsearch.hardware.backend import BACKENDS, Backend, Cell, Support
from mpsearch.hardware.bench import CpuBench
from mpsearch.hardware.device import identity
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
from mpsearch.hardware.openvino_nodes import (
    OpenVinoWriter,
    arithmetic_of,
    capabilities,
    compiled,
    container_bits,
    openvino,
    ran_nodes,
)
from mpsearch.hardware.qdq import Array, Grid, QuantizedWeight
from mpsearch.problem import FLOAT, Candidate, ConvAttributes, Layer


@BACKENDS.register("openvino-cpu")
@dataclass(frozen=True)
class OpenVinoCpu(Backend):
    """OpenVINO, CPU plugin, float layers in float32.

    Args:
        threads: Threads of the runtime's pool; 1 is measured by process CPU time.
    """

    threads: int = 1
    runtime: ClassVar[str] = "openvino"
    precision: ClassVar[str] = "f32"

    @property
    def version(self) -> str:
        """Version of the package openvino. Raises MissingExtraError where it is not installed."""
        return str(openvino().__version__).partition("-")[0]

    def supports(self, layer: Layer, candidate: Candidate) -> Support:
        """Float everywhere; integers for convolutions and linear layers where they do not overflow;
        compressed weights for linear layers.
        """
        if self.precision == "bf16" and "BF16" not in capabilities():
            return Support(
                "no",
                f"this processor has no bf16 arithmetic (OpenVINO offers {', '.join(capabilities())})",
                None,
            )
        if candidate.is_float:
            return Support("ok", f"{self.precision} kernel", FLOAT)
        if layer.op == "matmul":
            return Support("no", "activation products run in float on this backend", None)
        if candidate.w_granularity != "channel":
            return Support("no", "weights have one scale for each output channel on this backend", None)
        return _compressed(layer, candidate) if candidate.weight_only else _integer(candidate)

    def build(self, layer: Layer, candidate: Candidate, batch: int) -> Cell:
        """A compiled model of one unit on random data, checked against float64 arithmetic on the same
        quantised values.
        """
        if self.supports(layer, candidate).kernel != candidate:
            raise TableError(
                f"{self.name} has no kernel for {candidate} of {layer.name!r}: "
                f"{self.supports(layer, candidate).reason}."
            )
        data = draw(layer, batch)
        unit = _unit(layer, candidate, data, self.precision)
        live = compiled(unit.model, self.threads, self.precision)
        request, feeds = live.create_infer_request(), list(data.feeds.values())
        error = relative_error(np.array(request.infer(feeds)[0]), unit.reference)
        nodes = ran_nodes(live)
        computing = [node.arithmetic for node in nodes if node.computes]
        as_asked = computing == [arithmetic_of(candidate, self.precision)]
        return Cell(lambda: request.infer(feeds), tuple(map(str, nodes)), as_asked, error, unit.tolerance)

    def require(self) -> None:
        """Raises MissingExtraError where OpenVINO is not installed."""
        openvino()

    def bench(self, seconds: float = 0.25) -> CpuBench:
        """The CPU's bench, with as many threads as the runtime has."""
        return CpuBench(self.threads, seconds)

    def packed_bytes(self, layer: Layer, candidate: Candidate) -> int:
        """Bytes of the weight and its scales in the runtime's file, at the kernel of a candidate; the bias is
        not in it.
        """
        if not layer.weight_shape or candidate.is_float:
            return layer.weight_numel * 4
        stored = candidate.weight_only and layer.op == "linear"
        bits = container_bits(candidate.w_bits or 8, layer.weight_shape[1]) if stored else 8
        return layer.weight_numel * bits // 8 + 4 * layer.weight_shape[0]


@BACKENDS.register("openvino-cpu-bf16")
@dataclass(frozen=True)
class OpenVinoCpuBf16(OpenVinoCpu):
    """OpenVINO, CPU plugin, float layers in bfloat16 where the processor has it. Its float candidate is bf16;
    integer layers stand between bf16 ones.
    """

    precision: ClassVar[str] = "bf16"


def _integer(candidate: Candidate) -> Support:
    """Integers: 8-bit inputs, and weights of 8 bits or, where pairs of products are added in 16 bits, of
    7.
    """
    saturates = identity().saturates
    widest = 7 if saturates else 8
    kernel = Candidate(widest, 8)
    if candidate == kernel:
        return Support(
            "ok", f"u8 x s8 integer kernel{', exact up to 7 weight bits' if saturates else ''}", kernel
        )
    if candidate.w_bits is not None and candidate.w_bits > widest:
        return Support(
            "no",
            (
                "products with 8-bit weights overflow 16 bits on this processor, which has no VNNI; weights "
                "may have up to 7 bits"
            ),
            None,
        )
    return Support(
        "storage-only", f"{candidate} is stored in 8-bit containers and runs the {kernel} kernel", kernel
    )


def _compressed(layer: Layer, candidate: Candidate) -> Support:
    if layer.conv is not None and max(layer.conv.stride) > 1 and max(layer.weight_shape[2:]) == 1:
        return Support(
            "no",
            "a strided 1 x 1 convolution takes a stored weight apart at every call on this backend",
            None,
        )
    if layer.op != "linear":
        return Support(
            "storage-only",
            (
                f"{candidate} is stored in 8-bit containers; a convolution takes the weight apart when it is "
                "loaded, and runs in float"
            ),
            FLOAT,
        )
    kernel = Candidate(container_bits(candidate.w_bits or 8, layer.weight_shape[1]), candidate.a_bits)
    if candidate == kernel:
        return Support(
            "ok", f"float kernel that takes {candidate.w_bits}-bit weights apart as it reads them", kernel
        )
    return Support(
        "storage-only",
        f"{candidate} is stored in {kernel.w_bits}-bit containers and runs the {kernel} kernel",
        kernel,
    )


def _folding_error(weight: QuantizedWeight, grid: Grid) -> float:
    """What an output loses as OpenVINO sums zero point x codes when it compiles, term after term in float32:
    nothing while the sum is below 2**24.
    """
    codes = weight.codes.reshape(len(weight.codes), -1)
    summed = np.cumsum(np.float32(grid.zero_point) * codes, axis=1, dtype=np.float32)[
        :, -1
    ]  # cumsum keeps the order, as sum does not
    lost = np.abs(summed - grid.zero_point * codes.sum(1, dtype=np.float64)) * weight.scale
    return float(lost.max()) * grid.scale


@dataclass(frozen=True)
class _Unit:
    model: Any
    reference: Array
    tolerance: float


def _unit(layer: Layer, candidate: Candidate, data: Draw, precision: str) -> _Unit:
    writer = OpenVinoWriter()
    parameters = [writer.parameter(value.shape) for value in data.feeds.values()]
    loose = 1e-4 if precision == "f32" else 2e-2
    if data.weight is None:
        return _Unit(
            openvino().Model([writer.product(*parameters)], parameters, "unit"),
            reference(layer, data.feeds, None, None),
            loose,
        )
    x, tolerance = parameters[0].output(0), loose
    feeds: dict[str, Array] = dict(data.feeds)
    conv = layer.conv or ConvAttributes()
    if candidate.is_float:
        values, shape = data.weight.astype(np.float64), data.weight.shape
        grouped = shape if conv.groups == 1 else (conv.groups, shape[0] // conv.groups, *shape[1:])
        weight = writer.constant(data.weight.reshape(grouped))
    else:
        codes = quantized(data.weight, candidate.w_bits or 8)
        values = values_of(codes)
        weight = (
            writer.compressed(codes, candidate.w_bits or 8)
            if candidate.weight_only
            else writer.weight(codes, conv.groups)
        )
    if not (candidate.is_float or candidate.weight_only):
        grid = grid_of(data.feeds["x0"])
        x, feeds = writer.quantized(x, grid), {"x0": on_grid(data.feeds["x0"], grid)}
        tie = grid.scale * float(np.abs(values).max())
        tolerance = 1.5 * tie + _folding_error(
            codes, grid
        )  # one input on a tie goes the other way, or half of that in bf16
    wanted = reference(layer, feeds, values, data.bias)
    node = writer.linear(x, weight) if layer.op == "linear" else writer.conv(x, weight, conv)
    node = writer.biased(node, data.bias, -1 if layer.op == "linear" else -3)
    if not (candidate.is_float or candidate.weight_only):
        tolerance = max(tolerance / float(np.abs(wanted).max()), loose)
    return _Unit(openvino().Model([node], parameters, "unit"), wanted, tolerance)
