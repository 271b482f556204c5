"""How far each candidate moves a unit's output, weighed call by call: the part that `gradient` and `jacobian`
share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.objectives._base import Parts, ScoringContext
from mpsearch.objectives._grads import Scored
from mpsearch.objectives._local import input_state, weight_kind, weight_state
from mpsearch.problem import Candidate
from mpsearch.quant import UnitState
from mpsearch.quant.devices import wide

Weigh = Callable[[Tensor, Tensor | None], Tensor | None]
"""Error at a node, squared gradient there (None where it is 0) -> what is summed, 0-d; None for 0."""
Sums = list[NDArray[np.float64]]
"""For each of L units `C_l x 2`: one column, or two for the operands of a product."""
_Running = list[list[list[Tensor | float]]]
"""The same while it is summed, on the device: numbers are read once, when all batches are done."""


@dataclass(frozen=True)
class Moves:
    """Sums over all calls.

    Args:
        total: Weight and input quantised together.
        weights: The weight alone; zeros where not asked for.
        activations: The input alone; zeros where not asked for.
    """

    total: Sums
    weights: Sums
    activations: Sums


def add_moves(
    context: ScoringContext,
    batches: Iterable[Mapping[str, Sequence[Scored]]],
    weigh: Weigh,
    contributions: bool,
) -> Moves:
    """Run every unit at each of its candidates on what it read in each batch, and sum what `weigh` makes of
    the errors.
    """
    whole, weight, given = (_empty(context) for _ in range(3))
    for scored in batches:
        _add(whole, context, scored, weigh, str, context.calibration.state)
        if contributions:
            _add(weight, context, scored, weigh, weight_kind, partial(weight_state, context))
            _add(given, context, scored, weigh, attrgetter("a_bits"), partial(input_state, context))
    return Moves(_read(whole), _read(weight), _read(given))


def add_input_moves(
    context: ScoringContext, batches: Iterable[Mapping[str, Sequence[Scored]]], weigh: Weigh
) -> Sums:
    """`add_moves` of the inputs alone."""
    given = _empty(context)
    for scored in batches:
        _add(given, context, scored, weigh, attrgetter("a_bits"), partial(input_state, context))
    return _read(given)


def _empty(context: ScoringContext) -> _Running:
    return [[[0.0, 0.0] for _ in candidates] for candidates in context.candidates]


def _read(sums: _Running) -> Sums:
    return [np.array([[float(v) for v in row] for row in rows]).reshape(len(rows), 2) for rows in sums]


def weighed(shift: Tensor, power: Tensor | None) -> Tensor | None:
    """Sum of squared gradient times squared error; writes over `shift`."""
    return None if power is None else shift.square_().mul_(power).sum()


def watch_slopes(
    batches: Iterable[dict[str, list[Scored]]], slopes: dict[str, NDArray[np.float64]]
) -> Iterator[dict[str, list[Scored]]]:
    """The same batches; adds to each unit's `2 x 2` the squared gradients (row 0) and the elements (row 1) of
    its nodes, a column each, when the last batch is done.
    """
    powers: dict[tuple[str, int], Tensor | float] = defaultdict(float)
    for scored in batches:
        for unit, calls in scored.items():
            for found in calls:
                for at, (node, power) in enumerate(zip(found.call.nodes, found.powers, strict=True)):
                    slopes[unit][1, at] += node.numel()
                    if power is not None:
                        powers[unit, at] += wide(power.sum())
        yield scored
    for (unit, at), total in powers.items():
        slopes[unit][0, at] += float(total)


def parts_of(moves: Moves, factors: Sequence[NDArray[np.float64]], contributions: bool) -> Parts:
    """Tables of `C_l x 2` sums times the factors (2) of each unit."""

    def table(sums: Sums) -> list[list[float]]:
        return [
            [float(value) for value in found @ factor] for found, factor in zip(sums, factors, strict=True)
        ]

    return (
        Parts(table(moves.total), table(moves.weights), table(moves.activations))
        if contributions
        else Parts(table(moves.total))
    )


@torch.no_grad()
def _add(
    sums: _Running,
    context: ScoringContext,
    scored: Mapping[str, Sequence[Scored]],
    weigh: Weigh,
    kind: Callable[[Candidate], Any],
    state: Callable[[str, Candidate], UnitState],
) -> None:
    """Add one batch to each unit's rows; candidates of one `kind` share a run."""
    for found, layer, candidates in zip(sums, context.layers, context.candidates, strict=True):
        if layer.name not in scored:
            continue
        known: dict[Any, list[Tensor | float]] = {}
        for i, candidate in enumerate(candidates):
            if candidate.is_float:
                continue
            if kind(candidate) not in known:
                known[kind(candidate)] = _sums(scored[layer.name], state(layer.name, candidate), weigh)
            found[i] = [a + b for a, b in zip(found[i], known[kind(candidate)], strict=True)]


def _sums(calls: Sequence[Scored], state: UnitState, weigh: Weigh) -> list[Tensor | float]:
    sums: list[Tensor | float] = [0.0, 0.0]
    for scored in calls:
        for at, (shift, power) in enumerate(zip(scored.call.shifts(state), scored.powers, strict=False)):
            more = weigh(shift, power)
            sums[at] = sums[at] if more is None else sums[at] + wide(more)
    return sums
