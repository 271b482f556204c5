"""First and second moments of what units read: all that rounding in closed form and bias correction need of
the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mpsearch.models.reads import Read, Reads
from mpsearch.pytrees import Inputs
from mpsearch.quant.devices import wide

ROWS_PER_COLUMN, FEWEST_COLUMNS = 8, 512
"""Windows of the input that are looked at, over all images: so many for each column of a weight, as if it had
so many columns at least. Early convolutions have a hundred times as many; with six times as many a ResNet20
at 3 bits is as good within its error."""
PARTS = 4
"""Stripes in which a symmetric product is taken: five eighths of the work of the whole one."""


@dataclass(frozen=True)
class Moments:
    """Of the rows x that meet a unit's weight, G groups of n columns.

    Args:
        covariance: G x n x n float32, of z and x, where z is x, or the same row in another network; G x C x n
            where z is that row times a weight.
        mean: G x n float32, of x.
        other: G x n or G x C float32, of z.
        rows: Rows that were seen.
    """

    covariance: Tensor
    mean: Tensor
    other: Tensor
    rows: int

    @property
    def second(self) -> Tensor:
        """G x n x n float64: the mean of z x^T."""
        return wide(self.covariance) + wide(self.other)[:, :, None] * wide(self.mean)[:, None, :]


class Sums:
    """Adds up the moments of one unit, or of what two networks give it.

    Rows are taken less the mean of the first call's: else the sum of squares of inputs whose mean is far
    above their deviation would drown what they do.

    Args:
        images: How many images are to come; with the columns it decides how many places of each are looked
            at.
        seed: Random seed for the places.
        weight: G x C x n, which rows of the other network are multiplied by before they are added up: less
            work than the product afterwards, where C is small beside n.

    Attributes:
        rows: Rows that were seen.
    """

    def __init__(self, images: int, seed: int, weight: Tensor | None = None) -> None:
        self._images, self._weight = images, weight
        self._generator = torch.Generator("cpu").manual_seed(seed)  # the same places on every device
        self._pivots: tuple[Tensor, Tensor] | None = None
        self._second: Tensor | None = None
        self.rows = 0

    def add(self, read: Read, other: Read | None = None) -> None:
        """One call; `other` is its input in the other network, whose products x_other x^T are then added
        up.
        """
        wanted = max(1, math.ceil(ROWS_PER_COLUMN * max(read.columns, FEWEST_COLUMNS) / self._images))
        count, places = read.places, None
        if count > wanted:
            drawn = torch.randperm(count, generator=self._generator, device="cpu")[:wanted].sort().values
            places = drawn.to(read.x.device)
        x = read.windows(places).permute(1, 2, 0, 3).flatten(2)
        z = x if other is None else other.windows(places).permute(1, 2, 0, 3).flatten(2)
        if self._weight is not None:
            z = self._weight @ z
        if self._pivots is None:
            self._pivots = x.mean(2), z.mean(2)
        x = x - self._pivots[0][:, :, None]
        z = x if other is None else z - self._pivots[1][:, :, None]
        if self._second is None:
            self._second = x.new_zeros((len(x), z.shape[1], x.shape[1]))
            self._totals = x.new_zeros(x.shape[:2]), z.new_zeros(z.shape[:2])
        self._symmetric = other is None
        step = -(-x.shape[1] // PARTS) if self._symmetric and x.shape[1] >= FEWEST_COLUMNS else x.shape[1]
        for start in range(0, x.shape[1], step):  # of a symmetric matrix, what is on and above the diagonal
            across = x[:, start:] if self._symmetric else x
            held = self._second[:, start : start + step, start if self._symmetric else 0 :]
            held.baddbmm_(z[:, start : start + step], across.transpose(1, 2))
        for total, some in zip(self._totals, (x, z), strict=True):
            total += some.sum(2)
        self.rows += x.shape[2]

    def moments(self) -> Moments | None:
        """What was seen; None where nothing was."""
        if self._pivots is None or self._second is None:
            return None
        x, z = (total / self.rows for total in self._totals)
        covariance = torch.baddbmm(self._second, z[:, :, None], x[:, None, :], beta=1 / self.rows, alpha=-1)
        if self._symmetric:
            covariance = torch.triu(covariance) + torch.triu(covariance, 1).transpose(1, 2)
        return Moments(covariance, x + self._pivots[0], z + self._pivots[1], self.rows)


def gather_moments(
    module: nn.Module,
    units: Sequence[str],
    batches: Callable[[], Iterable[Inputs]],
    images: int,
    *,
    memory_bytes: int = 2**30,
    seed: int = 0,
) -> Iterator[tuple[str, Moments | None]]:
    """The moments of every unit, in as many float passes as keep the memory.

    Args:
        module: Float model in eval mode.
        units: Convolutions and linear layers.
        batches: Gives the normalised inputs, from the first on, at each call.
        images: How many there are in all.
        memory_bytes: Bound on the moments that are held at a time; those of one unit are held in any case.
        seed: Of the places that are looked at.
    Returns: Unit and moments; None for a unit whose layer does not multiply its weight as it is.
    """
    weights: dict[str, Tensor] = {unit: module.get_submodule(unit).get_parameter("weight") for unit in units}
    for group in _within(module, weights, memory_bytes):
        sums = {unit: Sums(images, seed) for unit in group}
        with torch.no_grad(), Reads({unit: weights[unit] for unit in group}, partial(_add, sums)):
            for inputs in batches():
                module(inputs)
        for unit in group:
            yield unit, sums.pop(unit).moments()


def _add(sums: Mapping[str, Sums], unit: str, read: Read) -> None:
    sums[unit].add(read)


def _within(module: nn.Module, weights: Mapping[str, Tensor], memory_bytes: int) -> list[list[str]]:
    """Units in groups whose moments fit."""
    found: list[list[str]] = [[]]
    held = 0
    for unit, weight in weights.items():
        need = 4 * getattr(module.get_submodule(unit), "groups", 1) * weight[0].numel() ** 2
        if found[-1] and held + need > memory_bytes:
            found.append([])
            held = 0
        found[-1].append(unit)
        held += need
    return found
