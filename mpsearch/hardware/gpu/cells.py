"""Cells of one unit on random data: drawn, built in the kernels asked for, checked against float64. On a CPU
our kernels run in Triton's interpreter.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsearch.hardware.backend import Cell
from mpsearch.hardware.kernels.grids import InputGrid, WeightCodes
from mpsearch.hardware.kernels.tiles import default_tile
from mpsearch.hardware.kernels.unit import KernelUnit, TileChooser
from mpsearch.problem import Candidate, ConvAttributes, Layer

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = {torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6, torch.float32: 1e-5}
"""Two units in the last place of the output's type, over its largest value: products and sums are exact or in
float32.
"""
_SEED = 0


@dataclass(frozen=True)
class Draw:
    """Random data of one unit, on a device.

    Args:
        layer: The unit.
        x: Inputs; pictures are N x H x W x C. Two for an activation product.
        weight: float32, or None.
        bias: float32, or None.
    """

    layer: Layer
    x: tuple[Tensor, ...]
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, layer: Layer, batch: int, dtype: torch.dtype, device: str) -> Draw:
        """Always the same values for a layer and a batch. Normal, not zero: a card draws less power on zeros,
        and clocks higher.
        """
        generator = torch.Generator(device=device).manual_seed(_SEED)

        def normal(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        x = tuple(normal((s[0] * batch, *s[1:])) for s in layer.input_shapes)
        if layer.op == "conv2d":
            x = tuple(t.permute(0, 2, 3, 1).contiguous() for t in x)
        weight = normal(layer.weight_shape) * 0.05 if layer.weight_shape else None
        return cls(
            layer,
            tuple(t.to(dtype) for t in x),
            weight,
            normal(layer.weight_shape[:1]) if layer.bias and layer.weight_shape else None,
        )

    @property
    def grid(self) -> InputGrid:
        """8-bit asymmetric quantiser of the input's range."""
        low, high = min(float(self.x[0].min()), 0.0), max(float(self.x[0].max()), 0.0)
        scale = float(torch.tensor(max((high - low) / 255, 1e-8)))
        return InputGrid(scale, max(0, min(255, round(-low / scale))))

    def codes(self, bits: int) -> WeightCodes:
        """The weight on a symmetric grid of its channels' ranges."""
        assert self.weight is not None
        flat = self.weight.flatten(1)
        half = 1 << (bits - 1)
        scale = flat.abs().amax(1).clamp(min=1e-8) / max(half - 0.5, 0.5)
        codes = torch.clamp(
            torch.round(self.weight / scale.view(-1, *[1] * (self.weight.ndim - 1))) + half, 0, 2 * half - 1
        )
        return WeightCodes(codes.to(torch.int32), scale, None, bits)

    def quantized_input(self, grid: InputGrid) -> Tensor:
        """The values that an integer kernel computes with, float64."""
        codes = torch.clamp(
            torch.round(self.x[0].float() / grid.scale) + grid.zero_point, 0, 2**grid.bits - 1
        )
        return (codes.double() - grid.zero_point) * grid.scale

    def reference(self, x: Tensor, weight: Tensor) -> Tensor:
        """The unit in float64 on values that are given, laid out as its output is."""
        bias = None if self.bias is None else self.bias.double()
        if self.layer.op == "linear":
            return F.linear(x.double(), weight.double(), bias)
        c = self.layer.conv or ConvAttributes()
        y = F.conv2d(
            x.double().permute(0, 3, 1, 2), weight.double(), bias, c.stride, c.padding, c.dilation, c.groups
        )
        return y.permute(0, 2, 3, 1)


Run = Callable[[], Tensor]


def finished(
    draw: Draw,
    make: Callable[[], Run],
    expected: Tensor,
    executed: tuple[str, ...],
    as_asked: bool,
    tolerance: float,
    weight_bytes: int,
) -> Cell:
    """A cell from a maker of calls on buffers of their own.

    Args:
        draw: Its data.
        make: Each call gives a run that shares no buffer with another's.
        expected: What a run must give, float64.
        executed: Kernels that ran.
        as_asked: Whether they are those of the candidate.
        tolerance: What the error may be.
        weight_bytes: Bytes of the weight as the kernel holds it.
    """
    run = make()
    y = run()
    error = float((y.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    touched = weight_bytes + sum(t.numel() * t.element_size() for t in (*draw.x, y))
    return Cell(run, executed, as_asked, error, tolerance, touched, make)


def own_cell(
    layer: Layer,
    candidate: Candidate,
    batch: int,
    *,
    dtype: str = "fp16",
    device: str = "cuda",
    tile: TileChooser = default_tile,
) -> Cell:
    """A unit in our Triton kernels.

    Args:
        layer: A linear layer or a convolution.
        candidate: `W<b>A8`, or `W<b>A16` for weights alone.
        batch: Images.
        dtype: `fp16` or `bf16`: of input and output.
        device: `cuda`; `cpu` runs the interpreter.
        tile: Chooses tiles.
    """
    draw = Draw.of(layer, batch, TYPES[dtype], device)
    weight = draw.codes(candidate.w_bits or 8)
    grid = None if candidate.a_bits == 16 else draw.grid
    x = draw.x[0] if grid is None else draw.quantized_input(grid)
    unit = KernelUnit.make(layer, weight, draw.bias, grid, TYPES[dtype], tile)

    expected = draw.reference(x, weight.dequantize())

    def make() -> Run:
        own, inputs = _copied(unit), draw.x[0].clone()
        return lambda: own(inputs)

    unit(draw.x[0])
    names, matrix = _ran(unit)
    return finished(draw, make, expected, names, matrix, TOLERANCE[TYPES[dtype]], unit.packed_bytes)


def float_cell(layer: Layer, batch: int, *, dtype: str = "fp16", device: str = "cuda") -> Cell:
    """A unit in half precision, in torch's kernels (cuDNN and cuBLAS).

    Args:
        layer: Any unit.
        batch: Images in a call.
        dtype: `fp16` or `bf16`: the type of input, weight and output.
        device: `cuda` or `cpu`.
    """
    kind = TYPES[dtype]
    draw = Draw.of(layer, batch, kind, device)
    if draw.weight is None:
        left, right = draw.x

        def product() -> Run:
            a, b = left.clone(), right.clone()
            return lambda: torch.matmul(a, b)

        return finished(
            draw, product, left.double() @ right.double(), ("matmul",), True, TOLERANCE[kind] * 2, 0
        )
    weight = draw.weight.to(kind)
    bias = None if draw.bias is None else draw.bias.to(kind)
    expected = Draw(layer, draw.x, weight, bias).reference(draw.x[0], weight)

    def make() -> Run:
        w, b, x = weight.clone(), None if bias is None else bias.clone(), draw.x[0].clone()
        if layer.op == "linear":
            return lambda: F.linear(x, w, b)
        c, w = layer.conv or ConvAttributes(), w.contiguous(memory_format=torch.channels_last)
        picture = x.permute(0, 3, 1, 2)
        return lambda: F.conv2d(picture, w, b, c.stride, c.padding, c.dilation, c.groups).permute(0, 2, 3, 1)

    size = weight.element_size() * (weight.numel() + (0 if bias is None else bias.numel()))
    return finished(draw, make, expected, (f"{layer.op}_{str(kind)[6:]}",), True, TOLERANCE[kind] * 2, size)


def int8_product(layer: Layer, batch: int, *, device: str = "cuda") -> Cell:
    """A linear layer as `torch._int_mm` on codes that lie ready, sizes filled up to what it takes (17 rows,
    eights of columns): without quantiser, scales and bias, so less than any int8 layer of torch.

    Args:
        layer: A linear layer.
        batch: Images in a call.
        device: `cuda` or `cpu`.
    """
    draw = Draw.of(layer, batch, torch.float16, device)
    assert draw.weight is not None
    rows, inner = draw.x[0].numel() // draw.x[0].shape[-1], draw.x[0].shape[-1]
    n, k = (-(-size // 8) * 8 for size in draw.weight.shape)
    x = torch.zeros(max(rows, 17), k, dtype=torch.int8, device=device)
    w = torch.zeros(n, k, dtype=torch.int8, device=device)
    x[:rows, :inner] = torch.clamp(torch.round(draw.x[0].float().flatten(0, -2) / draw.grid.scale), -128, 127)
    w[: draw.weight.shape[0], :inner] = draw.codes(8).codes - 128

    def make() -> Run:
        a, b = x.clone(), w.clone().t()
        return lambda: torch._int_mm(a, b)

    return finished(
        Draw(layer, (x,), None, None), make, x.double() @ w.double().t(), ("_int_mm",), True, 0.0, n * k
    )


def _copied(unit: KernelUnit) -> KernelUnit:
    """The same unit on buffers of its own."""
    weight = dataclasses.replace(unit.weight, data=unit.weight.data.clone())
    held: dict[str, Any] = {
        name: None if (t := getattr(unit, name)) is None else t.clone()
        for name in ("scale", "bias", "corr", "zero")
    }
    return dataclasses.replace(unit, weight=weight, **held, ran=[], _frames={})


def _ran(unit: KernelUnit) -> tuple[tuple[str, ...], bool]:
    """Kernels of a unit with the matrix instruction that each compiled to, and whether the product is in one
    of the type asked for.
    """
    names, good = [], True
    for name, handle in unit.ran:
        found = matrix_instruction(handle)
        names.append(name + (f"({found})" if found else ""))
        if name.startswith("product") and handle is not None:
            meant = (
                {"s8"} if unit.grid is not None else {"f16", "bf16"}
            )  # one instruction of Blackwell takes both
            good = found is not None and found.split(".")[-1] in meant
    return tuple(names), good


def matrix_instruction(handle: Any) -> str | None:
    """Family and input type of the matrix instruction in a compiled Triton kernel, such as `wgmma.s8`; None
    where it has none, or under the interpreter.
    """
    text = "" if handle is None else str(getattr(handle, "asm", {}).get("ptx", ""))
    match = _MATRIX.search(text)
    if match is None:
        return None
    kinds = [part for part in match[2].replace("kind::", "").split(".") if part in _INPUTS]
    return f"{match[1].split('.')[0]}.{_INPUTS[kinds[0]]}" if kinds else match[1].split(".")[0]


_MATRIX = re.compile(r"(wgmma\.mma_async|tcgen05\.mma|mma\.sync)((?:\.[\w:]+)+)")
_INPUTS = {"s8": "s8", "u8": "s8", "i8": "s8", "bf16": "bf16", "f16": "f16"}
