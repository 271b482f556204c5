"""How a quantised unit looks in OpenVINO: the nodes that are timed are the nodes that ship, because both come
from here.

Facts of OpenVINO's CPU plugin that shape this file (seen in its runtime graph by
`benchmarks/openvino_forms.py`): an input is quantised by one FakeQuantize whose output is float (a chain
through u8, as its ONNX reader makes of Q/DQ, lets a pass pull the stride of a 1 x 1 convolution out, which
then runs in float); it has 256 levels whatever the bits, with a Clamp before it where they are fewer, so that
every grid runs the kernel that was timed; the weight is an int8 constant, a Convert and a Multiply. That
constant may be put together from 4- and 1-bit ones: the plugin folds it when a model is compiled, if they are
joined by sums alone (a Multiply or a shift behind a Convert is kept for run time, and the layer then computes
in float). OpenVINO 2025.0 has no 2-bit constants in Python.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import MissingExtraError
from mpsearch.hardware.qdq import Array, Grid, QuantizedWeight
from mpsearch.problem import Candidate, ConvAttributes

CONFIG = {"NUM_STREAMS": "1", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Settings of every compiled model, timed or shipped: one stream; inputs of weight-only layers are not
quantised behind the user's back.
"""
_COMPUTES = ("Convolution", "FullyConnected", "MatMul", "Deconvolution", "RNNSeq")
_STORED = ("i8", "u8", "i4", "u4", "i2", "u2")


def openvino() -> Any:
    """The package openvino. Raises MissingExtraError where it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", "The backend openvino-cpu", error) from None
    return openvino


def compiled(model: Any, threads: int = 1, precision: str = "f32") -> Any:
    """The one place where a model is compiled, for timing cells and for exported models alike.

    Args:
        model: openvino.Model, or the path of its XML.
        threads: Threads of the runtime's pool.
        precision: What float layers compute in, `f32` or `bf16`. Named in any case: a CPU with bf16 takes it
            unasked.
    """
    config = {**CONFIG, "INFERENCE_NUM_THREADS": str(threads), "INFERENCE_PRECISION_HINT": precision}
    return openvino().Core().compile_model(model, "CPU", config)


def capabilities() -> tuple[str, ...]:
    """What the CPU plugin says this processor can compute in, such as `FP32`, `BF16`, `INT8`."""
    return tuple(openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@dataclass(frozen=True)
class RanNode:
    """A node of the runtime graph.

    Args:
        kind: Kind of layer, such as `Convolution`.
        precision: Type of what it reads: for a layer of compressed weights, of the weight.
        primitive: Kernel, such as `jit_avx2_I8`.
        name: Its own, after one of the nodes of the given graph that are in it.
        origins: Names of those.
    """

    kind: str
    precision: str
    primitive: str
    name: str
    origins: tuple[str, ...]

    def __str__(self) -> str:
        """`Convolution:u8:jit_avx2_I8`."""
        return f"{self.kind}:{self.precision}:{self.primitive}"

    @property
    def computes(self) -> bool:
        """Whether it multiplies with weights, or activations with each other."""
        return self.kind in _COMPUTES

    @property
    def arithmetic(self) -> str:
        """`integer`, `stored8` or `stored4` (float arithmetic on weights that stay small), or the float
        type.
        """
        if self.primitive.lower().endswith("i8"):
            return "integer"
        return f"stored{self.precision[1:]}" if self.precision in _STORED else self.precision


def ran_nodes(live: Any) -> tuple[RanNode, ...]:
    """Nodes of a compiled model that do something, in order of execution."""
    found = []
    for node in live.get_runtime_model().get_ordered_ops():
        about = {
            key: node.get_rt_info()[key].astype(str)
            for key in ("layerType", "runtimePrecision", "primitiveType", "originalLayersNames")
        }
        if about["layerType"] not in ("Const", "Input", "Output"):
            origins = tuple(filter(None, about["originalLayersNames"].split(",")))
            found.append(
                RanNode(
                    about["layerType"],
                    about["runtimePrecision"],
                    about["primitiveType"],
                    node.get_friendly_name(),
                    origins,
                )
            )
    return tuple(found)


def container_bits(bits: int, columns: int) -> int:
    """Bits in which a stored weight of a linear layer lies: 4 where they suffice and a row ends with a byte
    (odd rows are read wrongly), else 8.
    """
    return 4 if bits <= 4 and columns % 2 == 0 else 8


def arithmetic_of(candidate: Candidate, precision: str = "f32", columns: int = 2) -> str:
    """What `RanNode.arithmetic` must say of a unit at a candidate.

    Args:
        candidate: Candidate of the unit.
        precision: Precision of float layers.
        columns: Inputs of a linear layer.
    """
    if candidate.is_float or candidate.w_bits is None:
        return precision
    return f"stored{container_bits(candidate.w_bits, columns)}" if candidate.weight_only else "integer"


@dataclass
class OpenVinoWriter:
    """Makes the nodes of units, and shares the FakeQuantize of a tensor between all units that read it
    alike.
    """

    _quantized: dict[tuple[Any, Grid], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        openvino()
        import openvino.opset13 as operators

        self._op: Any = operators

    def quantized(self, x: Any, grid: Grid) -> Any:
        """`x`, an output of a node, on its grid, as float."""
        key = ((x.get_node().get_friendly_name(), x.get_index()), grid)
        if key not in self._quantized:
            op = self._op
            low, high = Grid(grid.scale, grid.zero_point).range()
            held = x if grid.bits == 8 else op.clamp(x, *grid.range())
            ends = [op.constant(np.float32(end)) for end in (low, high, low, high)]
            self._quantized[key] = op.fake_quantize(held, *ends, levels=256)
        return self._quantized[key]

    def weight(self, weight: QuantizedWeight, groups: int = 1, bits: int = 8) -> Any:
        """An int8 tensor with one scale for each output channel; [G, C_out / G, C_in / G, k, k] where there
        are groups.

        Args:
            weight: Codes and scales.
            groups: Of a convolution.
            bits: That each code takes in the file; of 8 the tensor is a constant.
        """
        shape = (
            weight.codes.shape
            if groups == 1
            else (groups, weight.codes.shape[0] // groups, *weight.codes.shape[1:])
        )
        codes = weight.codes.reshape(shape)
        held = self.constant(codes) if bits == 8 else self._joined(codes, bits)
        return self._scaled(held, weight.scale, shape, groups)

    def _joined(self, codes: NDArray[np.int8], bits: int) -> Any:
        """Codes of 2 to 7 bits as int8, from a constant of the highest 4 bits (of the sign alone where there
        are fewer) and one of each further bit: what is there is doubled, and the next bit added.
        """
        op, place = self._op, bits - 4 if bits >= 4 else bits - 1
        rest = codes.view(np.uint8)
        if bits >= 4:
            found = self._field(rest >> place & 15, "i4")
        else:
            found = op.subtract(op.constant(np.int8(0)), self._field(rest >> place & 1, "u1"))
        for bit in reversed(range(place)):
            found = op.add(op.add(found, found), self._field(rest >> bit & 1, "u1"))
        return found

    def _field(self, values: Array, kind: str) -> Any:
        """Values of 4 bits (`i4`) or of one (`u1`) as a constant of that type, converted to int8."""
        runtime, flat = openvino(), values.astype(np.uint8).ravel()
        if kind == "u1":
            packed = np.packbits(flat)
        else:
            flat = np.pad(flat, (0, -flat.size % 2))
            packed = (flat[0::2] | flat[1::2] << 4).astype(np.uint8)
        tensor = runtime.Tensor(packed, list(values.shape), getattr(runtime.Type, kind))
        return self._op.convert(self._op.constant(tensor, shared_memory=False), np.int8)

    def compressed(self, weight: QuantizedWeight, bits: int) -> Any:
        """The weight [N, K] of a linear layer as it lies in memory."""
        if container_bits(bits, weight.codes.shape[1]) == 8:
            return self.weight(weight)
        runtime, codes = openvino(), (weight.codes.reshape(-1) & 15).astype(np.uint8)
        nibbles = codes[0::2] | (codes[1::2] << 4)
        tensor = runtime.Tensor(
            nibbles, list(weight.codes.shape), runtime.Type.i4
        )  # a view: the constant must be a copy made while `nibbles` lives
        return self._scaled(
            self._op.constant(tensor, shared_memory=False), weight.scale, weight.codes.shape, 1
        )

    def linear(self, x: Any, weight: Any) -> Any:
        """The product with a transposed weight [N, K]."""
        return self._op.matmul(x, weight, False, True)

    def conv(
        self, x: Any, weight: Any, attributes: ConvAttributes, ends: tuple[int, int] | None = None
    ) -> Any:
        """A convolution, without its bias; `ends` is the padding below and right, where it is not that above
        and left.
        """
        before, after = list(attributes.padding), list(attributes.padding if ends is None else ends)
        node = self._op.convolution if attributes.groups == 1 else self._op.group_convolution
        return node(x, weight, list(attributes.stride), before, after, list(attributes.dilation))

    def constant(self, value: Array) -> Any:
        """A constant of the type of `value`."""
        return self._op.constant(np.ascontiguousarray(value), shared_memory=False)

    def biased(self, x: Any, bias: Array | None, axis: int) -> Any:
        """`x` plus float `bias` along `axis` (negative) of the output; `x` where there is none."""
        return x if bias is None else self._op.add(x, self.constant(bias.reshape(-1, *[1] * (-1 - axis))))

    def product(self, left: Any, right: Any) -> Any:
        """A product of two activations."""
        return self._op.matmul(left, right, False, False)

    def parameter(self, shape: tuple[int, ...]) -> Any:
        """A float32 input."""
        return self._op.parameter(list(shape), np.float32)

    def _scaled(self, codes: Any, scale: Array, shape: tuple[int, ...], groups: int) -> Any:
        leading = shape[:1] if groups == 1 else shape[:2]
        held = scale.astype(np.float32).reshape(*leading, *[1] * (len(shape) - len(leading)))
        return self._op.multiply(self._op.convert(codes, np.float32), self.constant(held))
