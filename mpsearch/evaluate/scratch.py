"""Memory and quantisers that the fast evaluator uses again from pass to pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.quant import AffineParams


class Scratch:
    """One piece of memory for what a layer reads and nobody else: quantised inputs live no longer than the
    layer's call.
    """

    def __init__(self) -> None:
        self._held: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        """Uninitialised, with the shape and strides of `x`."""
        if self._held is None or self._held.numel() < x.numel():
            self._held = x.new_empty(x.numel())
        return self._held.as_strided(x.shape, x.stride())


@dataclass(frozen=True)
class ScratchGrid:
    """A per-tensor affine quantiser of inputs that computes what its own does, in fewer passes and in memory
    that is in the cache already.
    """

    params: AffineParams
    scratch: Scratch

    @property
    def bits(self) -> int:
        """2 to 8."""
        return self.params.bits

    def fake_quantize(self, x: Tensor) -> Tensor:
        """`x` on the grid, in scratch memory."""
        if x.dtype != torch.float32 or x.numel() == 0 or not _dense(x):
            return self.params.fake_quantize(x)
        low, high = self.params.ends
        quantized, size = self.scratch.like(x), _PIECE if x.device.type == "cpu" else x.numel()
        for piece, out in zip(torch.split(_flat(x), size), torch.split(_flat(quantized), size), strict=True):
            torch.div(piece, self.params.scale, out=out).round_().clamp_(low, high).mul_(self.params.scale)
        return quantized


def _flat(x: Tensor) -> Tensor:
    """The elements of a dense tensor in the order in which they lie."""
    return x.as_strided((x.numel(),), (1,))


def _dense(x: Tensor) -> bool:
    """Whether the elements lie in one piece without gaps or overlaps, in whatever order of axes."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


_PIECE = (
    2**17
    # elements that the four steps of a fake quantisation go over in turn: half a megabyte, which stays in the
    # cache of a core
)
