"""What calibration keeps of the values that pass by, and the quantiser that it takes from them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.models.reads import Read
from mpsearch.quant import OBSERVERS, ActivationQuantizer
from mpsearch.quant.devices import wide
from mpsearch.quant.region_search import log_params, opt_m, post_softmax_params, two_region_params

MAX_INPUT_VALUES = 2**18
"""Values of one tensor that are kept for its range: 1 MiB for each, whatever the number of images."""

_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Operand:
    """What is known of one operand of a product of two activations.

    Args:
        values: Sample of its values, 1-D, with the extremes of all images in it.
        is_distribution: Whether, on every image, no value was negative and every row (or every column) summed
            to 1: the output of a softmax.
    """

    values: Tensor
    is_distribution: bool = False


def input_quantizer(observer: str, operand: Operand, bits: int, *, symmetric: bool) -> ActivationQuantizer:
    """The quantiser of a tensor.

    Args:
        observer: `opt_m` or `auto`, which try uniform, two-region and, for distributions, logarithmic grids
            and keep the best on the sample; for distributions also `log2` and `two_region`; else a registered
            observer, which gives a uniform grid.
        operand: What was seen of the tensor.
        bits: 2 to 8.
        symmetric: Whether a uniform grid is signed around zero.
    """
    search = _SEARCHES.get((observer, operand.is_distribution))
    if search is not None:
        return search(operand.values, bits, symmetric=symmetric)
    return OBSERVERS.create(observer).observe(operand.values, bits, symmetric=symmetric)


def _log2(values: Tensor, bits: int, *, symmetric: bool) -> ActivationQuantizer:
    return log_params(values, bits)


def _two_region(values: Tensor, bits: int, *, symmetric: bool) -> ActivationQuantizer:
    return two_region_params(values, bits, "unsigned")


_SEARCHES: Mapping[tuple[str, bool], Callable[..., ActivationQuantizer]] = {
    ("opt_m", False): opt_m,
    ("opt_m", True): post_softmax_params,
    ("auto", False): opt_m,
    ("auto", True): post_softmax_params,
    ("log2", True): _log2,
    ("two_region", True): _two_region,
}
SEARCHED = frozenset(name for name, _ in _SEARCHES)
"""Names that stand for a search among grids of several kinds, and for no observer."""


class RunningSample:
    """A random sample of the values that pass by, of bounded size, with the extremes always in it.

    Args:
        seed: Random seed of the sample.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)  # the same places on every device
        self._kept: list[Tensor] = []
        self._share = 1.0
        self._ends: tuple[Tensor, Tensor] | None = None
        self._is_distribution: Tensor | None = None

    def take(self, values: Tensor) -> None:
        """Let values of any shape pass by."""
        x = values.detach().flatten()
        low, high = x.aminmax()
        before = self._ends or (low, high)
        self._ends = torch.minimum(before[0], low), torch.maximum(before[1], high)
        self._share = min(self._share, MAX_INPUT_VALUES / len(x))
        take = max(1, round(len(x) * self._share))
        self._kept.append(
            x[torch.randint(len(x), (take,), generator=self._generator, device="cpu")]
            if take < len(x)
            else x.clone()
        )
        while sum(map(len, self._kept)) > MAX_INPUT_VALUES:
            self._share /= 2
            held = torch.cat(self._kept)
            self._kept = [
                held[torch.randint(len(held), (len(held) // 2,), generator=self._generator, device="cpu")]
            ]

    def copy(self) -> RunningSample:
        """Another that has seen the same."""
        found = copy.copy(self)
        found._kept, found._generator = list(self._kept), self._generator.clone_state()
        return found

    def take_operand(self, values: Tensor) -> None:
        """`take`, and remember whether all that passed was a softmax's output."""
        self.take(values)
        now = _sums_to_one(values)
        self._is_distribution = now if self._is_distribution is None else self._is_distribution & now

    def values(self, unit: str) -> Tensor:
        """The sample, 1-D. Raises ModelError, naming the unit, where nothing passed or some was NaN or
        infinite.
        """
        if self._ends is None:
            raise ModelError(
                f"Unit {unit!r} was never called in the calibration pass. Leave it out, or give images "
                "that reach it."
            )
        values = torch.cat([*self._kept, torch.stack(self._ends)])
        if not torch.isfinite(values).all():
            raise ModelError(
                f"Unit {unit!r} meets NaN or infinity on the calibration images. Check the weights and "
                "the normalisation of the images."
            )
        return values

    def operand(self, unit: str) -> Operand:
        """The sample with what is known of it. Raises as `values`."""
        return Operand(self.values(unit), self._is_distribution is not None and bool(self._is_distribution))


class RunningMean:
    """The mean of the rows that meet a unit's weight, or of their squares, every place and image alike."""

    def __init__(self, square: bool = False) -> None:
        self._square = square
        self._sum: Tensor | None = None
        self._rows = 0
        self._biases: list[Tensor | None] = []

    def adds(self, bias: Tensor | None) -> bool:
        """Whether this very bias was added at every call, which a layer that computes another does not do."""
        return bias is not None and bool(self._biases) and all(seen is bias for seen in self._biases)

    def add(self, read: Read) -> None:
        """One call."""
        self._biases.append(read.bias)
        rows = len(read.x) * read.places
        total = wide((replace(read, x=read.x.square()) if self._square else read).mean()) * rows
        self._sum = total if self._sum is None else self._sum.add_(total)
        self._rows += rows

    @property
    def value(self) -> Tensor | None:
        """G x n float32; None where nothing passed."""
        return None if self._sum is None else (self._sum / self._rows).float()


def _sums_to_one(x: Tensor) -> Tensor:
    """Whether no value is negative and all sums over the last axis, or all over the one before, are 1; 0-d
    bool, which nobody waits for.
    """
    if x.ndim < 2:
        return torch.zeros((), dtype=torch.bool, device=x.device)
    last, before = (((x.sum(axis) - 1).abs() < _SUM_TOLERANCE).all() for axis in (-1, -2))
    return (x >= 0).all() & (last | before)
