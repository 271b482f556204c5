"""Quantisers of activations that no single step fits: two steps a power of two apart, and logarithmic levels;
with their searches.

A `k`-bit two-region code is one flag bit and k - 1 bits of magnitude: the flag chooses between step D1 and
step D2 = 2^m D1, so that the hardware needs a shift and no second multiplier. Every value takes the nearest
level of both regions. No stock kernel computes with these grids: their latency must be measured on the kernel
that would run, usually a float one.

References: after Tai and Wu, MPTQ-ViT, arXiv:2401.14895 (OPT-m, whose formulas were not seen: the search here
is exhaustive), TSPTQ-ViT, ICASSP 2023 (magnitude split), and Yuan et al., PTQ4ViT, ECCV 2022,
arXiv:2111.12293 (sign split; post-Softmax split at 2^-i).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mpsearch.errors import OptionError

Split = Literal["sign", "magnitude", "signed_magnitude", "unsigned"]
SPLITS: tuple[Split, ...] = ("sign", "magnitude", "signed_magnitude")
"""The splits that OPT-m tries beside one uniform grid."""

MAX_SHIFT = 15
_OCTAVES = 100  # float32 reaches 126 below 1
COARSE_STEPS = 48  # a twelfth of an octave apart
CHUNK_LEVELS = 2**17  # levels whose errors are computed at once: a few MiB


@dataclass(frozen=True)
class TwoRegionParams:
    """A quantiser with a fine and a coarse step.

    Args:
        step: float32, 0-d: the fine step D1.
        shift: m, 0 to 15; the coarse step is 2^m D1.
        bits: 2 to 8, the flag included.
        split: With L = 2^(bits - 1) codes in each region: `sign` puts -L..-1 on the fine step and 0..L-1 on
            the coarse one; `magnitude` puts -L/2..L/2-1 on the fine and 0..L-1 on the coarse;
            `signed_magnitude` -L/2..L/2-1 on both; `unsigned` 0..L-1 on both.
    """

    step: Tensor
    shift: int
    bits: int
    split: Split

    def __post_init__(self) -> None:
        if not 0 <= self.shift <= MAX_SHIFT:
            raise OptionError(
                f"The steps of two regions are 2^{self.shift} apart; the exponent must be 0 to {MAX_SHIFT}."
            )
        regions_of(self.split, self.bits)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Each value on the nearest level of both regions; the gradient is straight-through inside the
        range.
        """
        fine, coarse = regions_of(self.split, self.bits)
        step = self.step.to(x.device)
        return _TwoRegion.apply(x, step, step * 2**self.shift, fine, coarse)  # type: ignore[no-any-return]

    def inside(self, x: Tensor) -> Tensor:
        """Where straight-through gradients pass: between the lowest and the highest level, half a step beyond
        them included.
        """
        step = self.step.to(x.device)
        return _between(x, step, step * 2**self.shift, *regions_of(self.split, self.bits))

    def scaled(self, factor: Tensor) -> TwoRegionParams:
        """The same with both steps times `factor`; they stay 2^m apart."""
        return replace(self, step=self.step * factor)

    def levels(self) -> Tensor:
        """All values that it can give, ascending, at most 2^bits."""
        levels = two_region_levels(
            self.step.view(1), torch.tensor([self.shift], device=self.step.device), self.split, self.bits
        )[0]
        return levels[torch.cat([torch.ones_like(levels[:1], dtype=torch.bool), levels[1:] > levels[:-1]])]


@dataclass(frozen=True)
class LogParams:
    """Levels 0 and scale * base^-n for n = 0 .. 2^bits - 2, of which none lies more than 100 octaves down;
    for values that are not negative.

    A value is rounded in the exponent, as a leading-one detector does, and to 0 where that is nearer than the
    smallest level.

    References: Lin et al., FQ-ViT, IJCAI 2022, arXiv:2111.13824 (base 2); Li et al., RepQ-ViT, ICCV 2023,
        arXiv:2212.08254 (base sqrt 2). Differs
    in: zero has a code of its own.

    Reconstruction leaves its scale as it was calibrated; see `InputQuantizer.learn`.

    Args:
        scale: float32, 0-d: the largest level.
        bits: 2 to 8.
        root: The base is 2^(1 / root): 1 for log2, 2 for log sqrt 2.
    """

    scale: Tensor
    bits: int
    root: int = 1

    def __post_init__(self) -> None:
        if self.root not in (1, 2):
            raise OptionError(
                f"The base of a logarithmic quantiser is 2^(1/{self.root}); it may be 2 (root 1) or sqrt "
                "2 (root 2)."
            )

    @property
    def last(self) -> int:
        """The greatest n."""
        return min((1 << self.bits) - 2, _OCTAVES * self.root)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Each value on a level; the gradient is straight-through from 0 to the largest level."""
        return _Log.apply(x, self.scale.to(x.device), self.last, self.root)  # type: ignore[no-any-return]

    def levels(self) -> Tensor:
        """All values that it can give, ascending, at most 2^bits."""
        exponents = torch.arange(self.last, -1, -1, device=self.scale.device) / -self.root
        levels = self.scale * torch.exp2(exponents)
        return torch.cat([levels.new_zeros(1), levels])


def regions_of(split: Split, bits: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(lowest, highest) code of the fine and of the coarse region."""
    codes = 2 ** (bits - 1)
    known = {
        "sign": ((-codes, -1), (0, codes - 1)),
        "magnitude": ((-(codes // 2), codes // 2 - 1), (0, codes - 1)),
        "signed_magnitude": ((-(codes // 2), codes // 2 - 1), (-(codes // 2), codes // 2 - 1)),
        "unsigned": ((0, codes - 1), (0, codes - 1)),
    }
    if split not in known or not 2 <= bits <= 8:
        raise OptionError(
            f"Two regions have 2 to 8 bits and a split of {', '.join(known)}, not {bits} bits split by "
            f"{split!r}."
        )
    return known[split]


def two_region_levels(steps: Tensor, shifts: Tensor, split: Split, bits: int) -> Tensor:
    """Levels [C, 2^bits], ascending, of quantisers with fine steps [C] and shifts [C]; zero may be there
    twice.
    """
    fine, coarse = (torch.arange(low, high + 1, device=steps.device) for low, high in regions_of(split, bits))
    wide = steps * 2.0 ** shifts.to(steps.device)
    return torch.cat([steps[:, None] * fine, wide[:, None] * coarse], 1).sort(1).values


def _between(
    x: Tensor, fine_step: Tensor, coarse_step: Tensor, fine: tuple[int, int], coarse: tuple[int, int]
) -> Tensor:
    """Whether values lie between the lowest and the highest level of two regions, or within half a step of
    these.
    """
    ends = ((code, step) for codes, step in ((fine, fine_step), (coarse, coarse_step)) for code in codes)
    reach = [((code - 0.5) * step, (code + 0.5) * step) for code, step in ends]
    low, high = torch.stack([a for a, _ in reach]).min(), torch.stack([b for _, b in reach]).max()
    return (x >= low) & (x <= high)


class _TwoRegion(torch.autograd.Function):
    """The nearer of two grids, straight-through between the lowest and the highest level, half a step beyond
    them included.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        fine_step: Tensor,
        coarse_step: Tensor,
        fine: tuple[int, int],
        coarse: tuple[int, int],
    ) -> Tensor:
        """`x` on the levels."""
        values = x.float()
        near = (values / fine_step).round_().clamp_(*fine).mul_(fine_step)
        far = (values / coarse_step).round_().clamp_(*coarse).mul_(coarse_step)
        quantized = torch.where((near - values).abs_() <= (far - values).abs_(), near, far)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_between(values, fine_step, coarse_step, fine, coarse))
        return quantized.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of `x` alone."""
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None, None, None


class _Log(torch.autograd.Function):
    """Rounding of the exponent, straight-through from 0 to half an exponent above the largest level."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, last: int, root: int) -> Tensor:
        """`x` on the levels."""
        shares = x.float() / scale
        smallest = math.exp2(-last / root)
        exponents = shares.clamp(min=smallest / 2).log2_().mul_(-root).round_().clamp_(0, last)
        quantized = torch.exp2(exponents.div_(-root)).masked_fill_(shares < smallest / 2, 0).mul_(scale)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((shares >= 0) & (shares <= 2 ** (0.5 / root)))
        return quantized.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of `x` alone."""
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None, None
