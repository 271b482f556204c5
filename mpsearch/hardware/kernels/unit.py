"""A linear layer or a convolution with packed weights, ready to run: what the backend times and what a
deployed module calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mpsearch.hardware.kernels import device_code
from mpsearch.hardware.kernels.grids import InputGrid, WeightCodes
from mpsearch.hardware.kernels.layout import PlaneMatrix, pack_planes
from mpsearch.hardware.kernels.tiles import Shape, Tile, default_tile
from mpsearch.problem import ConvAttributes, Layer

TileChooser = Callable[[Shape], Tile]


@dataclass(eq=False)
class KernelUnit:
    """One unit on one device. Call it on float NHWC (a convolution) or ... x K (a linear layer) of `dtype`;
    it returns the same type.

    Buffers that a call needs are made in the first call of each shape, so a CUDA graph can be captured from
    the second on.
    """

    layer: Layer
    weight: PlaneMatrix
    scale: Tensor
    bias: Tensor | None
    corr: Tensor
    zero: Tensor | None
    grid: InputGrid | None
    dtype: torch.dtype
    tile: TileChooser = default_tile
    ran: list[tuple[str, Any]] = field(default_factory=list)
    _frames: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        layer: Layer,
        weight: WeightCodes,
        bias: Tensor | None,
        grid: InputGrid | None,
        dtype: torch.dtype,
        tile: TileChooser = default_tile,
    ) -> KernelUnit:
        """Pack a unit.

        Args:
            layer: Its shapes and attributes.
            weight: [N, K] or [C_out, C_in / groups, kh, kw], on the device.
            bias: Float [N], or None.
            grid: Grid of the input; None leaves the input in float (weight-only).
            dtype: Type of input and output: float16, bfloat16 or float32 (float32 only with a grid).
            tile: Chooses the tile of a shape.
        """
        if grid is None and dtype == torch.float32:
            raise ValueError(
                "A weight-only unit reads float16 or bfloat16; the matrix units have no float32. Convert "
                "the model with .half() or .bfloat16()."
            )
        if is_depthwise(layer):
            matrix = weight.codes.flatten(1).t().contiguous()  # a row for each tap, a column for each channel
        else:
            matrix = weight.codes if layer.op == "linear" else weight.codes.permute(0, 2, 3, 1).flatten(1)
        signed = weight.codes.to(torch.int32).flatten(1) - (1 << (weight.bits - 1))
        zero = (
            None
            if weight.zero_point is None
            else weight.zero_point.to(torch.int32) - (0 if grid is None else 1 << (weight.bits - 1))
        )
        corr, scale = torch.zeros_like(signed[:, 0]), weight.scale.float()
        if grid is not None:
            centre = grid.zero_point - grid.half
            corr = -centre * signed.sum(1, dtype=torch.int32)
            corr = corr if zero is None else corr + signed.shape[1] * centre * zero
            scale = scale * grid.scale
        packed = pack_planes(matrix, weight.bits)
        return cls(
            layer,
            packed,
            scale.contiguous(),
            None if bias is None else bias.float().contiguous(),
            corr.int().contiguous(),
            zero,
            grid,
            dtype,
            tile,
        )

    @property
    def packed_bytes(self) -> int:
        """Bytes of weights, scales, zero points and bias as they lie on the device."""
        held = [self.weight.data, self.scale, self.corr, self.bias, self.zero]
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    @property
    def activation(self) -> str:
        """What the product reads: `int8`, `float16` or `bfloat16`."""
        return "int8" if self.grid is not None else str(self.dtype).removeprefix("torch.")

    def __call__(self, x: Tensor) -> Tensor:
        """The unit's output. Raises ValueError if `x` is not as the layer says."""
        if x.dtype != self.dtype or not x.is_contiguous():
            raise ValueError(
                f"{self.layer.name!r} takes contiguous {self.dtype}, not {x.dtype} of strides "
                f"{x.stride()}. Pictures are N x H x W x C."
            )
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # Triton launches on the current device
            return self.product(x if self.grid is None else self.quantize(x))

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of `x`, int8; those of a convolution with padding lie in a frame that holds the code of
        zero.
        """
        assert self.grid is not None
        pad_h, pad_w = self._attributes.padding if self.layer.op == "conv2d" else (0, 0)
        height, wide, channels = x.shape[1:] if self.layer.op == "conv2d" else (1, 1, x.shape[-1])
        shape = (
            (x.shape[0], height + 2 * pad_h, wide + 2 * pad_w, channels)
            if self.layer.op == "conv2d"
            else tuple(x.shape)
        )
        if shape not in self._frames:
            self._frames[shape] = torch.full(
                shape, self.grid.zero_point - self.grid.half, dtype=torch.int8, device=x.device
            )
        codes, block = self._frames[shape], 1024
        numbers = (self.grid.scale, float(self.grid.zero_point), float(2**self.grid.bits - 1))
        launch = device_code.quantize_kernel[(-(-x.numel() // block),)]
        handle = launch(
            x,
            codes,
            *numbers,
            x.numel(),
            height,
            wide,
            channels,
            float(self.grid.half),
            PAD_H=pad_h,
            PAD_W=pad_w,
            BLOCK=block,
        )
        self._note("quantize", handle)
        return codes

    def product(self, a: Tensor) -> Tensor:
        """The output from what the product kernel reads: codes of `quantize`, or the float input."""
        if self.layer.op == "linear":
            y = torch.empty((*a.shape[:-1], self.weight.rows), dtype=self.dtype, device=a.device)
            return self._product(a, y, a.numel() // a.shape[-1], self.weight.rows, self.weight.columns, 1, {})
        conv = self._attributes
        padding = (0, 0) if self.grid is not None else conv.padding
        kernel, (height, wide) = self.layer.weight_shape[2:], a.shape[1:3]
        out = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(
                (height, wide), padding, conv.dilation, kernel, conv.stride, strict=True
            )
        ]
        y = torch.empty((a.shape[0], *out, self.layer.weight_shape[0]), dtype=self.dtype, device=a.device)
        geometry = {
            "STRIDE_H": conv.stride[0],
            "STRIDE_W": conv.stride[1],
            "PAD_H": padding[0],
            "PAD_W": padding[1],
        }
        geometry |= {"DILATION_H": conv.dilation[0], "DILATION_W": conv.dilation[1], "TAPS_W": kernel[1]}
        if is_depthwise(self.layer):
            return self._depthwise(a, y, geometry)
        rows = self.weight.rows // conv.groups
        plain = kernel == (1, 1) and conv.stride == (1, 1) and conv.groups == 1 and padding == (0, 0)
        return self._product(
            a, y, y.numel() // y.shape[-1], rows, self.weight.columns, conv.groups, {} if plain else geometry
        )

    @property
    def _attributes(self) -> ConvAttributes:
        return self.layer.conv or ConvAttributes()

    @property
    def _numbers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scale, bias, correction and zero points of the columns; another stands for what there is none of,
        which no kernel reads.
        """
        bias = self.scale if self.bias is None else self.bias
        return self.scale, bias, self.corr, self.corr if self.zero is None else self.zero

    def shape(self, m: int) -> Shape:
        """Shape of the product over `m` rows."""
        groups = self._attributes.groups if self.layer.op == "conv2d" else 1
        return Shape(
            m, self.weight.rows // groups, self.weight.columns, 2 if self.grid is None else 1, groups
        )

    def _product(
        self, a: Tensor, y: Tensor, m: int, n: int, k: int, groups: int, geometry: dict[str, int]
    ) -> Tensor:
        tile, integer = self.tile(self.shape(m)), self.grid is not None
        split = min(tile.split_k, -(-k // tile.block_k))
        partial = y
        if split > 1:
            partial = torch.empty(
                (split, m, groups * n), dtype=torch.int32 if integer else torch.float32, device=a.device
            )
        frame = (*a.shape[1:], *y.shape[1:3]) if geometry else (1, 1, 1, 1, 1)
        grid = (-(-m // tile.block_m) * -(-n // tile.block_n), split, groups)
        handle = device_code.product_kernel[grid](
            *(a, self.weight.data, y, partial, *self._numbers),
            *(m, n, k, self.weight.column_units, self.weight.rows, *frame),
            BITS=self.weight.bits,
            INTEGER=integer,
            ZERO=self.zero is not None,
            BIAS=self.bias is not None,
            CONV=bool(geometry),
            EVEN=k % tile.block_k == 0,
            GROUP_CHANNELS=self.layer.weight_shape[1] if geometry else 1,
            **({**_NO_GEOMETRY, **geometry}),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            SPLIT_K=split,
            GROUP_M=tile.group_m,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        self._note(f"product_w{self.weight.bits}_{self.activation}[{tile}]", handle)
        if split > 1:
            self._sum(partial, y, m, groups * n, split)
        return y

    def _sum(self, partial: Tensor, y: Tensor, m: int, n: int, split: int) -> None:
        block = (min(32, 1 << (m - 1).bit_length()), 64)
        handle = device_code.sum_kernel[(-(-m // block[0]), -(-n // block[1]))](
            *(partial, y, *self._numbers[:3], m, n),
            INTEGER=self.grid is not None,
            BIAS=self.bias is not None,
            SPLIT_K=split,
            BLOCK_M=block[0],
            BLOCK_N=block[1],
        )
        self._note("sum", handle)

    def _depthwise(self, a: Tensor, y: Tensor, geometry: dict[str, int]) -> Tensor:
        pixels, channels = y.numel() // y.shape[-1], y.shape[-1]
        block_c = min(128, max(32, 1 << (channels - 1).bit_length()))
        block_p = 1024 // block_c
        handle = device_code.depthwise_kernel[(-(-pixels // block_p), -(-channels // block_c))](
            *(a, self.weight.data, y, *self._numbers),
            *(pixels, channels, self.weight.column_units, *a.shape[1:3], *y.shape[1:3]),
            BITS=self.weight.bits,
            INTEGER=self.grid is not None,
            ZERO=self.zero is not None,
            BIAS=self.bias is not None,
            TAPS_H=self.layer.weight_shape[2],
            **geometry,
            BLOCK_P=block_p,
            BLOCK_C=block_c,
        )
        self._note(f"depthwise_w{self.weight.bits}_{self.activation}", handle)
        return y

    def _note(self, name: str, handle: Any) -> None:
        """Keep what a first call launched: the name and the compiled kernel (None under the interpreter)."""
        if len(self.ran) < 3 and name not in [held for held, _ in self.ran]:
            self.ran.append((name, handle))


_NO_GEOMETRY = {f"{what}_{axis}": 1 for what in ("STRIDE", "DILATION") for axis in "HW"} | {
    "PAD_H": 0,
    "PAD_W": 0,
    "TAPS_W": 1,
}


def is_depthwise(layer: Layer) -> bool:
    """Whether each output channel reads the one input channel of its number."""
    return (
        layer.op == "conv2d"
        and layer.conv is not None
        and layer.conv.groups == layer.weight_shape[0]
        and layer.weight_shape[1] == 1
        and layer.conv.groups > 1
    )
