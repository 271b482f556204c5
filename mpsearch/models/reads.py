"""What convolutions and linear layers multiply their weights with, whatever a module does before, such as
padding of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Read:
    """The input of one product with a weight.

    Args:
        x: N x C x H x W of a convolution, before it is padded; N x ... x n, or n, of a linear layer.
        kernel: Height and width of a convolution's kernel; None for a linear layer.
        stride: Stride of the convolution.
        dilation: Dilation of the convolution.
        groups: Groups of the convolution; 1 for a linear layer.
        bias: What is added to the product: the layer's own parameter, unless it computes another; None for
            nothing.
        pads: Zeros around the image of a convolution: left, right, above, below.
    """

    x: Tensor
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: Tensor | None = None
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def columns(self) -> int:
        """n: values that meet a row of the weight."""
        if self.kernel is None:
            return self.x.shape[-1]
        return self.x.shape[1] // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def places(self) -> int:
        """P: places of an output, or tokens, of each image."""
        if self.kernel is None:
            return self.x[..., 0].numel() // len(self.x) if self.x.ndim > 1 else 1
        down, across = self._extent()
        return down * across

    def windows(self, places: Tensor | None = None) -> Tensor:
        """N x G x n x P: what meets a row of the weight, G groups of n values at each place, or at the given
        ones (int64, P') alone.
        """
        if self.kernel is None:
            x = (
                self.x.reshape(len(self.x), -1, self.x.shape[-1])
                if self.x.ndim > 1
                else self.x.view(1, 1, -1)
            )
            found = x.transpose(1, 2).unsqueeze(1)
            return found if places is None else found[..., places]
        x = F.pad(self.x, self.pads) if any(self.pads) else self.x
        count, channels = x.shape[:2]
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        shape = (count, self.groups, channels // self.groups * kh * kw, -1)
        if places is None:
            image, channel, row, column = x.stride()
            strides = (image, channel, row * dh, column * dw, row * sh, column * sw)
            return x.as_strided((count, channels, kh, kw, *self._extent()), strides).reshape(shape)
        across = self._extent()[1]
        down = (places // across * sh)[None, :] + torch.arange(kh, device=places.device)[:, None] * dh
        along = (places % across * sw)[None, :] + torch.arange(kw, device=places.device)[:, None] * dw
        return x[:, :, down[:, None, :], along[None, :, :]].reshape(shape)

    def mean(self) -> Tensor:
        """G x n: mean over all places of all images."""
        if self.kernel is None:
            return self.x.reshape(-1, self.x.shape[-1]).mean(0, keepdim=True)
        return replace(self, x=self.x.mean(0, keepdim=True)).windows()[0].mean(2)

    def _extent(self) -> tuple[int, int]:
        (kh, kw), (sh, sw), (dh, dw) = self.kernel or (1, 1), self.stride, self.dilation
        left, right, above, below = self.pads
        height, width = self.x.shape[2] + above + below, self.x.shape[3] + left + right
        return (height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1


class Products(TorchFunctionMode):
    """While it lasts, `meet` makes every convolution and linear product with one of the given weights.

    Args:
        weights: Unit -> the very parameter that its layer holds; units may share one.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._units: dict[int, list[str]] = {}
        for unit, weight in weights.items():
            self._units.setdefault(id(weight), []).append(unit)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The function's result, or what `meet` makes of it."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("linear", "conv2d"):
            given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
            units = self._units.get(id(given["weight"]))
            if units:
                return self.meet(units, func, given)
        return func(*args, **kwargs)

    def meet(self, units: list[str], func: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        """The product of `given["input"]` and the weight of `units`."""
        return func(**given)


class Reads(Products):
    """Tells what each unit multiplies.

    Args:
        weights: Products of weights, as in `Products`.
        on_read: Called with the unit and its input, without a graph.
    """

    def __init__(self, weights: Mapping[str, Tensor], on_read: Callable[[str, Read], None]) -> None:
        super().__init__(weights)
        self._on_read = on_read

    def meet(self, units: list[str], func: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        """The product."""
        found = read_of(given)
        for unit in units:
            self._on_read(unit, found)
        return func(**given)


class ReadsOnly(Reads):
    """As `Reads`, without the products: for a layer that gives its product as it is, whose output nobody
    asks for.
    """

    def meet(self, units: list[str], func: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        """The input itself."""
        found = read_of(given)
        for unit in units:
            self._on_read(unit, found)
        return found.x


def read_of(given: Mapping[str, Any]) -> Read:
    """The input of a call of `conv2d` or `linear`, from its arguments by name."""
    x, weight = given["input"].detach(), given["weight"]
    if weight.ndim == 2:
        return Read(x, bias=given.get("bias"))
    stride, dilation = _pair(given.get("stride", 1)), _pair(given.get("dilation", 1))
    kernel, padding = (weight.shape[2], weight.shape[3]), given.get("padding", 0)
    if padding == "same":
        rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        pads = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    else:
        height, width = (0, 0) if padding == "valid" else _pair(padding)
        pads = (width, width, height, height)
    x = x.unsqueeze(0) if x.ndim == 3 else x
    return Read(
        x,
        kernel,
        stride,
        dilation,
        given.get("groups", 1),
        given.get("bias"),
        pads,
    )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
