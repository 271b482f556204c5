"""What a greedy walk measures on, and the exchanges that repair where it came to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mpsearch.problem import Choices, Cost
from mpsearch.solvers.constraints import Constraints
from mpsearch.study.ladders import Ladders
from mpsearch.study.losses import Losses

Measure = Callable[[tuple[int, ...]], float]
_LOWER = 1e-12  # share by which a repaired loss must be lower, or rounding could go round in circles


@dataclass(frozen=True)
class Step:
    """A measured assignment of a walk.

    Args:
        indices: `L` choices.
        loss: Measured loss.
        cost: Cost that the problem predicts.
    """

    indices: tuple[int, ...]
    loss: float
    cost: Cost


@dataclass
class Board:
    """The problem as the walk sees it: M choices, remembered losses."""

    constraints: Constraints
    ladders: Ladders
    measure: Measure
    losses: Losses
    measured: int = 0

    def loss(self, choices: Choices) -> float:
        """Measured, or remembered; infinite where it is not finite."""
        indices = self.constraints.layers.expand(choices)
        known = self.losses.get(indices)
        if known is None:
            known = float(self.measure(indices))
            self.measured += 1
            self.losses[indices] = known
        return known if math.isfinite(known) else math.inf

    def fits(self, choices: Choices) -> bool:
        """Whether all budgets are kept."""
        return self.constraints.fits(self.constraints.layers.expand(choices))

    def step(self, choices: Choices) -> Step:
        """The assignment with its loss and cost."""
        indices = self.constraints.layers.expand(choices)
        return Step(indices, self.loss(choices), self.constraints.problem.cost(indices))


def repair(board: Board, choices: Choices, tries: int) -> Choices:
    """Exchanges of one notch up for one down, or one notch up alone, while the budgets are kept and the
    measured loss falls.

    They are tried in the order of the sums of their single changes; where damages add up, nothing better is
    left within one exchange.
    """
    improved = tries > 0
    while improved:
        improved, base = False, board.loss(choices)
        for _, changed in _exchanges(board, choices, base)[:tries]:
            if board.loss(changed) < base - _LOWER * abs(base):
                choices, improved = changed, True
                break
    return choices


def _exchanges(board: Board, choices: Choices, base: float) -> list[tuple[float, Choices]]:
    """Those that fit and whose single changes promise a lower loss, the most promising first."""
    ups, downs = (
        [(m, x, board.loss(moved(choices, m, x)) - base) for m, c in enumerate(choices) for x in way[m][c]]
        for way in (board.ladders.up, board.ladders.down)
    )
    found = [(gain, moved(choices, m, x)) for m, x, gain in ups if gain < 0]
    found += [
        (gain + loss, moved(moved(choices, m, x), n, y))
        for m, x, gain in ups
        for n, y, loss in downs
        if m != n and gain + loss < 0
    ]
    return [pair for pair in sorted(found) if board.fits(pair[1])]


def moved(choices: Choices, m: int, choice: int) -> Choices:
    """The same with another choice of group m."""
    return (*choices[:m], choice, *choices[m + 1 :])
