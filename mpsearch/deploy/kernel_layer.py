"""One quantised convolution or linear layer on a kernel: the module that stands in the float one's place, and
how it is packed from that and its state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn

from mpsearch.errors import UserError
from mpsearch.hardware.kernels.grids import InputGrid, WeightCodes
from mpsearch.hardware.kernels.unit import KernelUnit, TileChooser
from mpsearch.problem import ConvAttributes, Layer
from mpsearch.quant import QuantizedTensor, UnitState
from mpsearch.quant.layers import called

Pad = Callable[[Tensor], Tensor]


class KernelLayer(nn.Module):
    """A convolution or linear layer on packed weights, in the place of the float one. For inference: there is
    no gradient.

    Args:
        inner: The float layer, whose sizes are kept as attributes; its weight is not.
        unit: The packed unit, on its device.
        pad: What the float layer does to its input before it convolves; None for nothing.
    """

    def __init__(self, inner: nn.Module, unit: KernelUnit, pad: Pad | None = None) -> None:
        super().__init__()
        self.unit, self.pad = unit, pad
        for name in nn.Conv2d.__constants__ if isinstance(inner, nn.Conv2d) else nn.Linear.__constants__:
            setattr(self, name, getattr(inner, name))
        self.register_forward_pre_hook(called)
        self.eval()

    @property
    def bias(self) -> Tensor | None:
        """float32 [N]; some forwards ask whether there is one."""
        return self.unit.bias

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W or ... x K, taken to the unit's type; the same layout and the unit's type out. Raises
        UserError where a gradient is wanted.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise UserError(
                f"The unit {self.unit.layer.name!r} runs in a kernel, which has no gradient. Load the "
                "checkpoint without kernels= to train it."
            )
        x = x.to(self.unit.dtype)
        x = x if self.pad is None else self.pad(x)
        if self.unit.layer.op == "linear":
            return self.unit(x.contiguous())
        return self.unit(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """The kernel and the bytes that it holds."""
        return f"w{self.unit.weight.bits} x {self.unit.activation}, {self.unit.packed_bytes} bytes"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KernelLayer:
        """Nothing is moved: a move elsewhere would leave the packed weight behind, so it is refused."""
        held = torch.empty(0, dtype=self.unit.dtype, device=self.unit.scale.device)
        moved = fn(held)
        if (moved.dtype, moved.device) != (held.dtype, held.device):
            raise UserError(
                f"A module on kernels stays {held.dtype} on {held.device} and cannot become "
                f"{moved.dtype} on {moved.device}. Load it again for that."
            )
        return self


def kernel_layer(
    unit: str, inner: nn.Module, state: UnitState, device: torch.device, dtype: torch.dtype, tile: TileChooser
) -> KernelLayer:
    """The layer on a kernel that stands for a float one at a state whose weight is quantised."""
    assert state.weight is not None
    layer, pad = _described(unit, inner)
    grid = None if state.activation is None else _grid(state.activation)
    bias = state.bias if state.bias is not None else inner._parameters["bias"]
    held = None if bias is None else bias.detach().to(device)
    return KernelLayer(
        inner, KernelUnit.make(layer, _weight(state.weight, device), held, grid, dtype, tile), pad
    )


def _grid(params: Any) -> InputGrid:
    """A signed grid has the same levels as an unsigned one whose zero point is half its codes."""
    zero = 1 << (params.bits - 1) if params.symmetric else int(params.zero_point)
    return InputGrid(float(params.scale), zero, params.bits)


def _weight(weight: QuantizedTensor, device: torch.device) -> WeightCodes:
    """Codes on the unsigned grid, on the device; one scale for the tensor becomes one for each channel."""
    params = weight.params
    codes = (weight.codes.to(torch.int32) - params.qmin).to(device)
    zero = None if params.symmetric else params.zero_point.expand(len(codes)).contiguous().to(device)
    return WeightCodes(codes, params.scale.expand(len(codes)).contiguous().to(device), zero, params.bits)


def _described(unit: str, inner: nn.Module) -> tuple[Layer, Pad | None]:
    """A float layer as the kernels know it, and what is done to its input before."""
    weight, bias = tuple(inner.get_parameter("weight").shape), inner._parameters["bias"] is not None
    if not isinstance(inner, nn.Conv2d):
        return Layer(unit, "linear", weight, ((1, weight[1]),), (1, weight[0]), 0, "", bias=bias), None
    padding, pad = _padding(inner)
    conv = ConvAttributes(
        (inner.stride[0], inner.stride[1]), padding, (inner.dilation[0], inner.dilation[1]), inner.groups
    )
    return Layer(
        unit,
        "conv2d",
        weight,
        ((1, inner.in_channels, 1, 1),),
        (1, weight[0], 1, 1),
        0,
        "",
        bias=bias,
        conv=conv,
    ), pad


def _padding(inner: nn.Conv2d) -> tuple[tuple[int, int], Pad | None]:
    """What the kernel pads by itself, height and width, and an explicit pad where it is of another kind."""
    if type(inner).forward is Conv2dSame.forward:
        return (0, 0), partial(
            pad_same,
            kernel_size=list(inner.kernel_size),
            stride=list(inner.stride),
            dilation=list(inner.dilation),
        )
    left, right, top, bottom = inner._reversed_padding_repeated_twice
    if inner.padding_mode == "zeros" and (left, top) == (right, bottom):
        return (top, left), None
    mode = "constant" if inner.padding_mode == "zeros" else inner.padding_mode
    return (0, 0), partial(F.pad, pad=[left, right, top, bottom], mode=mode)
