"""First and second moments of what units read: all that rounding in closed form and bias correction need of the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mpsearch.models.reads import Read, Reads

ROWS_PER_COLUMN = 48
"""Windows of the input that are looked at for each column of a weight, over all images. Early convolutions have a hundred
times as many, which would change the moments by little."""


@dataclass(frozen=True)
class Moments:
    """Of the rows x that meet a unit's weight, G groups of n columns.

    Args:
        second: G x n x n float32: mean of z x^T, where z is x, or the same row in another network.
        mean: G x n float32, of x.
        other: G x n float32, of z.
        rows: Rows that were seen.
    """

    second: Tensor
    mean: Tensor
    other: Tensor
    rows: int

    def about_mean(self) -> Tensor:
        """G x n x n float64: the covariance of z and x, of the rows that were seen."""
        return self.second.double() - self.other.double()[:, :, None] * self.mean.double()[:, None, :]


class Sums:
    """Adds up the moments of one unit, or of what two networks give it.

    Args:
        images: That are to come; with the columns it decides how many places of each are looked at.
        seed: Of the places.
    """

    def __init__(self, images: int, seed: int) -> None:
        self._images = images
        self._generator = torch.Generator().manual_seed(seed)
        self._second: Tensor | None = None
        self._mean: Tensor | None = None
        self._other: Tensor | None = None
        self._rows = 0

    def add(self, read: Read, other: Read | None = None) -> None:
        """One call; `other` is its input in the other network, whose products x_other x^T are then added up."""
        wanted = max(1, math.ceil(ROWS_PER_COLUMN * max(read.columns, 64) / self._images))
        count, places = read.places, None
        if count > wanted:
            places = torch.randperm(count, generator=self._generator)[:wanted].sort().values
        x = read.windows(places).permute(1, 2, 0, 3).flatten(2)
        left = x if other is None else other.windows(places).permute(1, 2, 0, 3).flatten(2)
        second, mean, other_mean = left @ x.transpose(1, 2), x.sum(2), left.sum(2)
        self._second = second if self._second is None else self._second.add_(second)
        self._mean = mean if self._mean is None else self._mean.add_(mean)
        self._other = other_mean if self._other is None else self._other.add_(other_mean)
        self._rows += x.shape[2]

    def moments(self) -> Moments | None:
        """What was seen; None where nothing was."""
        if self._second is None or self._mean is None or self._other is None:
            return None
        return Moments(self._second / self._rows, self._mean / self._rows, self._other / self._rows, self._rows)


def gather_moments(
    module: nn.Module,
    units: Sequence[str],
    batches: Callable[[], Iterable[Tensor]],
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
