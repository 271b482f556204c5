"""How far each candidate moves a unit's output, weighed call by call: the part that `gradient` and `jacobian`
share.
"""

from __future__ import annotations

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

Weigh = Callable[[Tensor, Tensor | None], float]
"""Error at a node, squared gradient there (None where it is 0) -> what is summed."""
Sums = list[NDArray[np.float64]]
"""For each of L units `C_l x 2`: one column, or two for the operands of a product."""


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
    whole, weight, given = (empty_sums(context) for _ in range(3))
    for scored in batches:
        _add(whole, context, scored, weigh, str, context.calibration.state)
        if contributions:
            _add(weight, context, scored, weigh, weight_kind, partial(weight_state, context))
            _add(given, context, scored, weigh, attrgetter("a_bits"), partial(input_state, context))
    return Moves(whole, weight, given)


def add_input_moves(
    context: ScoringContext, batches: Iterable[Mapping[str, Sequence[Scored]]], weigh: Weigh
) -> Sums:
    """`add_moves` of the inputs alone."""
    given = empty_sums(context)
    for scored in batches:
        _add(given, context, scored, weigh, attrgetter("a_bits"), partial(input_state, context))
    return given


def empty_sums(context: ScoringContext) -> Sums:
    """Zeros."""
    return [np.zeros((len(candidates), 2)) for candidates in context.candidates]


def weighed(shift: Tensor, power: Tensor | None) -> float:
    """Sum of squared gradient times squared error; writes over `shift`."""
    return 0.0 if power is None else float(shift.square_().mul_(power).sum())


def watch_slopes(
    batches: Iterable[dict[str, list[Scored]]], slopes: dict[str, NDArray[np.float64]]
) -> Iterator[dict[str, list[Scored]]]:
    """The same batches; adds to each unit's `2 x 2` the squared gradients (row 0) and the elements (row 1) of
    its nodes, a column each.
    """
    for scored in batches:
        for unit, calls in scored.items():
            for found in calls:
                for at, (node, power) in enumerate(zip(found.call.nodes, found.powers, strict=True)):
                    slopes[unit][:, at] += (0.0 if power is None else float(power.sum()), node.numel())
        yield scored


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
    sums: Sums,
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
        known: dict[Any, NDArray[np.float64]] = {}
        for i, candidate in enumerate(candidates):
            if candidate.is_float:
                continue
            if kind(candidate) not in known:
                known[kind(candidate)] = _sums(scored[layer.name], state(layer.name, candidate), weigh)
            found[i] += known[kind(candidate)]


def _sums(calls: Sequence[Scored], state: UnitState, weigh: Weigh) -> NDArray[np.float64]:
    sums = np.zeros(2)
    for scored in calls:
        for at, (shift, power) in enumerate(zip(scored.call.shifts(state), scored.powers, strict=False)):
            sums[at] += weigh(shift, power)
    return sums
