"""How a quantised unit looks in ONNX: the nodes that are timed are the nodes that ship, because both come
from here.

Facts of ONNX Runtime on x86 that shape this file (measured by `benchmarks/ort_forms.py`): activations must be
uint8; a convolution becomes an integer kernel only with an int32 bias and a QuantizeLinear behind it; a
linear layer only as MatMul with the bias subtracted apart (Gemm stays float, and an Add would be merged into
one).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, OperatorSetIdProto, TensorProto, helper, numpy_helper

OPSET = 20
BLOCK = 128
"""Weights that share a scale in MatMulNBits: a row of them is in whole blocks, each with the scale of its
channel.
"""
_CONTRIB = "com.microsoft"
Array = NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """Asymmetric quantiser of an activation: codes 0 .. 2^bits - 1, x_hat = (q - zero_point) * scale."""

    scale: float
    zero_point: int
    bits: int = 8

    def range(self) -> tuple[float, float]:
        """Smallest and largest value that the grid holds."""
        return -self.zero_point * self.scale, (2**self.bits - 1 - self.zero_point) * self.scale


@dataclass(frozen=True)
class QuantizedWeight:
    """Signed weight: codes int8 in -128 .. 127, [C_out, ...]; one float32 scale for each output channel,
    [C_out].
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]


@dataclass
class QdqWriter:
    """Collects nodes and initialisers, and shares the Q/DQ pair of a tensor between all units that read it
    alike.

    Args:
        prefix: Prefix of every name it makes, so that none meets a name of the float graph.
    """

    prefix: str = "mpsearch"
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    _pairs: dict[tuple[str, Grid], str] = field(default_factory=dict)
    _count: int = 0

    def quantized(self, x: str, grid: Grid) -> str:
        """Name of `x` on its grid: QuantizeLinear, a Clip of the codes below 8 bits, DequantizeLinear."""
        if (x, grid) not in self._pairs:
            scale, zero = (
                self.constant(np.float32(grid.scale), "scale"),
                self.constant(np.uint8(grid.zero_point), "zero_point"),
            )
            codes = self.node("QuantizeLinear", [x, scale, zero])
            if grid.bits < 8:  # QuantizeLinear saturates at 255; the grid ends at 2^bits - 1
                codes = self.node(
                    "Clip",
                    [
                        codes,
                        self.constant(np.uint8(0), "low"),
                        self.constant(np.uint8(2**grid.bits - 1), "high"),
                    ],
                )
            self._pairs[x, grid] = self.node("DequantizeLinear", [codes, scale, zero])
        return self._pairs[x, grid]

    def conv(
        self,
        x: str,
        weight: QuantizedWeight,
        bias: Array | None,
        grid: Grid,
        attributes: dict[str, Any],
        output: str | None = None,
    ) -> str:
        """A convolution of quantised `x`; integer arithmetic once its output is quantised too (`quantized` on
        what it returns, or behind a ReLU).

        Args:
            x: Float tensor, N x C x H x W.
            weight: [C_out, C_in / groups, k, k].
            bias: Float [C_out]; put on the grid of the accumulator, scale_x * scale_w, as int32.
            grid: Grid of `x`.
            attributes: Attributes of the ONNX Conv.
            output: Name of the result, made where None.
        """
        weight = weight if bias is None else _widened(weight, grid, bias)
        inputs = [self.quantized(x, grid), self._weight(weight, axis=0)]
        scale = np.float32(grid.scale) * weight.scale
        values = np.zeros(len(scale)) if bias is None else np.asarray(bias, np.float64)
        codes = np.round(values / scale).astype(np.int32)
        inputs.append(
            self.node(
                "DequantizeLinear", [self.constant(codes, "bias"), self.constant(scale, "bias_scale")], axis=0
            )
        )
        return self.node("Conv", inputs, output, **attributes)

    def linear(
        self, x: str, weight: QuantizedWeight, bias: Array | None, grid: Grid, output: str | None = None
    ) -> str:
        """A linear layer on quantised `x` (..., K), float out: MatMulIntegerToFloat in the runtime. `weight`
        is [N, K].
        """
        transposed = QuantizedWeight(np.ascontiguousarray(weight.codes.T), weight.scale)
        inputs = [self.quantized(x, grid), self._weight(transposed, axis=1)]
        if bias is None:
            return self.node("MatMul", inputs, output)
        # MatMul and Add behind it would be merged into a Gemm, which runs in float
        return self.node(
            "Sub", [self.node("MatMul", inputs), self.constant(-np.asarray(bias, np.float32), "bias")], output
        )

    def stored_linear(
        self, x: str, weight: QuantizedWeight, bias: Array | None, bits: int, output: str | None = None
    ) -> str:
        """A linear layer on float `x` (..., K) whose weight [N, K] stays at 4 or 8 bits: MatMulNBits with
        float arithmetic (accuracy level 1).
        """
        rows, columns = weight.codes.shape
        blocks = -(-columns // BLOCK)
        codes = np.full((rows, blocks * BLOCK), 2 ** (bits - 1), np.uint8)  # padding is the zero point
        codes[:, :columns] = weight.codes.astype(np.int16) + 2 ** (bits - 1)
        packed = codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)
        held = self.constant(packed.reshape(rows, blocks, -1), "weight")
        inputs = [x, held, self.constant(np.repeat(weight.scale.astype(np.float32), blocks), "weight_scale")]
        options = {
            "K": columns,
            "N": rows,
            "bits": bits,
            "block_size": BLOCK,
            "accuracy_level": 1,
            "domain": _CONTRIB,
        }
        if bias is None:
            return self.node("MatMulNBits", inputs, output, **options)
        return self.node(
            "Add",
            [
                self.node("MatMulNBits", inputs, **options),
                self.constant(np.asarray(bias, np.float32), "bias"),
            ],
            output,
        )

    def added(self, bias: str, output: str, spatial: int) -> str:
        """Add a bias that is no constant; the name that the unit's own result must have.

        Args:
            bias: Tensor [C_out].
            output: Name of the sum.
            spatial: Axes behind the channels.
        """
        shaped = (
            bias
            if spatial <= 0
            else self.node("Unsqueeze", [bias, self.constant(np.arange(1, 1 + spatial), "axes")])
        )
        self._count += 1
        unbiased = f"{self.prefix}/unbiased_{self._count}"
        self.node("Add", [unbiased, shaped], output)
        return unbiased

    def node(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output; its name."""
        self._count += 1
        name = output or f"{self.prefix}/{op}_{self._count}"
        self.nodes.append(
            helper.make_node(op, inputs, [name], name=f"{self.prefix}/{op}_{self._count}_node", **attributes)
        )
        return name

    def _weight(self, weight: QuantizedWeight, axis: int) -> str:
        # the zero points are written out: on processors without VNNI the runtime turns int8 weights into
        # uint8, and would put one for all channels
        zeros = self.constant(np.zeros(weight.scale.shape, np.int8), "weight_zero_point")
        return self.node(
            "DequantizeLinear",
            [self.constant(weight.codes, "weight"), self.constant(weight.scale, "weight_scale"), zeros],
            axis=axis,
        )

    def constant(self, value: Any, what: str) -> str:
        """Add an initialiser; its name."""
        self._count += 1
        name = f"{self.prefix}/{what}_{self._count}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def opset_imports(version: int = OPSET) -> list[OperatorSetIdProto]:
    """The operator sets that the nodes come from; a graph of a later version than theirs keeps it."""
    return [helper.make_opsetid("", max(version, OPSET)), helper.make_opsetid(_CONTRIB, 1)]


def stored_bytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of a weight [rows, columns] and its scales as `stored_linear` writes them."""
    blocks = -(-columns // BLOCK)
    return rows * blocks * (BLOCK * bits // 8 + 4)


def _widened(weight: QuantizedWeight, grid: Grid, bias: Array) -> QuantizedWeight:
    """The same weight on scales that let the bias fit into int32.

    A channel that is all but zero (a dead one after folding a batch norm) has a tiny scale, and its bias may
    be more than 2^31 steps of it. Its scale is raised until the bias fits; what the codes lose is below K *
    2^-23 of the bias, K the weights of a channel.
    """
    needed = (np.abs(np.asarray(bias, np.float64)) / (2.0**30 * grid.scale)).astype(np.float32)
    scale = np.maximum(weight.scale, needed)
    ratio = (weight.scale / scale).reshape(-1, *[1] * (weight.codes.ndim - 1))
    return QuantizedWeight(np.round(weight.codes * ratio).astype(np.int8), scale)
