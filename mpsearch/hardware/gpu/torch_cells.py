"""Cells in torch's own kernels: half precision through cuDNN and cuBLAS, int8 products through `_int_mm`, fp8 products through `_scaled_mm`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsearch.hardware.backends import Cell
from mpsearch.hardware.gpu.cells import TOLERANCE, TYPES, Draw, Run, finished
from mpsearch.hardware.kernels.unit import InputGrid
from mpsearch.problem import Candidate, ConvAttributes, Layer

LEAST_ROWS = 32
"""`_int_mm` refuses 16 rows and fewer; the input is padded to this many."""
FP8 = torch.float8_e4m3fn
FP8_MOST = 448.0


def torch_cell(layer: Layer, candidate: Candidate, batch: int, *, dtype: str = "fp16", device: str = "cuda", compiled: bool = False) -> Cell:
    """A unit in torch's kernels.

    Args:
        layer: Any unit; other than in float only products (see `product_shape`).
        candidate: `float`, `W8A8` or `fp8`.
        batch: Images.
        dtype: `fp16` or `bf16`: of input and output, and the type that `float` stands for.
        device: `cuda` or `cpu`.
        compiled: Let `torch.compile` fuse quantising and scaling, which otherwise are kernels of their own.
    """
    draw = Draw.of(layer, batch, TYPES[dtype], device)
    build = _float_cell if candidate.is_float else _fp8_cell if candidate.number_format == "fp8" else _int8_cell
    return build(draw, TYPES[dtype], _compile if compiled else _eager)


def product_shape(layer: Layer) -> tuple[int, int] | None:
    """(K, N) of a unit that is a plain matrix product: a linear layer, or a 1 x 1 convolution that reads every pixel; else None."""
    if layer.op == "linear":
        return layer.weight_shape[1], layer.weight_shape[0]
    if layer.op != "conv2d":
        return None
    c = layer.conv or ConvAttributes()
    plain = layer.weight_shape[2:] == (1, 1) and (c.stride, c.padding, c.groups) == ((1, 1), (0, 0), 1)
    return (layer.weight_shape[1], layer.weight_shape[0]) if plain else None


Unit = Callable[[Tensor], Tensor]
Wrap = Callable[[Unit], Unit]


def _eager(unit: Unit) -> Unit:
    return unit


def _compile(unit: Unit) -> Unit:
    return torch.compile(unit)


def _float_cell(draw: Draw, dtype: torch.dtype, wrap: Wrap) -> Cell:
    if draw.weight is None:
        left, right = draw.x

        def product() -> Run:
            a, b = left.clone(), right.clone()
            return lambda: torch.matmul(a, b)

        return finished(draw, product, left.double() @ right.double(), ("matmul",), True, TOLERANCE[dtype] * 2, 0)
    weight = draw.weight.to(dtype)
    bias = None if draw.bias is None else draw.bias.to(dtype)
    expected = draw.reference(draw.x[0], weight) if bias is None else Draw(draw.layer, draw.x, weight, bias).reference(draw.x[0], weight)

    def make() -> Run:
        w, b, x = weight.clone(), None if bias is None else bias.clone(), draw.x[0].clone()
        if draw.layer.op == "linear":
            return lambda: F.linear(x, w, b)
        c, w, picture = draw.layer.conv or ConvAttributes(), w.contiguous(memory_format=torch.channels_last), x.permute(0, 3, 1, 2)
        return lambda: F.conv2d(picture, w, b, c.stride, c.padding, c.dilation, c.groups).permute(0, 2, 3, 1)

    size = weight.element_size() * (weight.numel() + (0 if bias is None else bias.numel()))
    return finished(draw, make, expected, (f"{'linear' if draw.layer.op == 'linear' else 'conv2d'}_{str(dtype)[6:]}",), True, TOLERANCE[dtype] * 2, size)


def int8_unit(codes: Tensor, scale: Tensor, bias: Tensor | None, grid: InputGrid) -> Unit:
    """A product with int8 weights and inputs: quantise, `_int_mm`, scale.

    Args:
        codes: int8 [N, K].
        scale: float32 [N].
        bias: float32 [N], or None.
        grid: Of the input.
    """
    centre = grid.zero_point - grid.half
    right = codes.t()
    corr, factor = -centre * codes.sum(1, dtype=torch.int32), scale * grid.scale

    def run(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()
        held = (torch.clamp(torch.round(rows / grid.scale) + grid.zero_point, 0, 2**grid.bits - 1) - grid.half).to(torch.int8)
        if len(held) < LEAST_ROWS:
            held = F.pad(held, (0, 0, 0, LEAST_ROWS - len(held)))
        y = (torch._int_mm(held, right)[: len(rows)] + corr) * factor
        return (y if bias is None else y + bias).to(x.dtype).view(*x.shape[:-1], -1)

    return run


def _int8_cell(draw: Draw, dtype: torch.dtype, wrap: Wrap) -> Cell:
    weight, grid = draw.codes(8), draw.grid
    expected = draw.reference(draw.quantized_input(grid), weight.dequantize())

    def make() -> Run:
        codes = (weight.codes.flatten(1) - 128).to(torch.int8)
        unit, x = wrap(int8_unit(codes, weight.scale.clone(), None if draw.bias is None else draw.bias.clone(), grid)), draw.x[0].clone()
        return lambda: unit(x)

    return finished(draw, make, expected, ("quantize", "_int_mm", "scale"), True, TOLERANCE[dtype], weight.codes.numel() + 8 * len(weight.scale))


def fp8_unit(weight: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor) -> Unit:
    """A product of e4m3 weights and inputs with one scale for each output channel and one for the input.

    Args:
        weight: float8_e4m3fn [N, K].
        scale: float32 [1, N].
        bias: Of the output's type, [N], or None.
        input_scale: float32, 0-d.
    """

    def run(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        held = torch.clamp(rows.float() / input_scale, -FP8_MOST, FP8_MOST).to(FP8)
        left = input_scale.expand(len(held), 1).contiguous()
        y = torch._scaled_mm(held, weight.t(), scale_a=left, scale_b=scale, out_dtype=torch.bfloat16)
        return (y if bias is None else y + bias).to(x.dtype).view(*x.shape[:-1], -1)

    return run


def _fp8_cell(draw: Draw, dtype: torch.dtype, wrap: Wrap) -> Cell:
    assert draw.weight is not None
    rows = draw.weight.flatten(1)
    scale = rows.abs().amax(1).clamp(min=1e-8) / FP8_MOST
    weight = (rows / scale.view(-1, 1)).to(FP8)
    input_scale = draw.x[0].float().abs().amax().clamp(min=1e-8) / FP8_MOST
    x = torch.clamp(draw.x[0].float() / input_scale, -FP8_MOST, FP8_MOST).to(FP8).double() * input_scale.double()
    expected = draw.reference(x, (weight.double() * scale.double().view(-1, 1)).view(draw.weight.shape))

    def make() -> Run:
        bias = None if draw.bias is None else draw.bias.to(torch.bfloat16)
        unit, inputs = wrap(fp8_unit(weight.clone(), scale.view(1, -1).clone(), bias, input_scale.clone())), draw.x[0].clone()
        return lambda: unit(inputs)

    return finished(draw, make, expected, ("quantize", "_scaled_mm"), True, 2.0**-6, weight.numel() + 4 * len(scale))
