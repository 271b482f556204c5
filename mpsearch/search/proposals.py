"""Which assignments to measure next: a pure function of the problem, the seed and what earlier batches measured.

Batch 0 is the caller's own assignments and exact optima of the proxy under the budget and along the front. Every later batch mixes
exact optima of the corrected table, of tables drawn from its posterior, and neighbours of the best assignment so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mpsearch.errors import MpsearchError
from mpsearch.search.constraints import Constraints
from mpsearch.search.correction import CorrectedTable, correct
from mpsearch.search.coupled import Coupled
from mpsearch.search.neighbours import Choices, best_neighbour, random_unseen
from mpsearch.search.optimum import best_choices
from mpsearch.search.reach import reachable
from mpsearch.search.superlayers import Row

_NEAR = (0.97, 0.94, 0.91, 0.88, 0.85)  # shares of the budget
_ALONG = (0.75, 0.5, 0.25)  # shares of the room between the least reachable cost and the budget
_KINDS = ("corrected table", "thompson", "neighbour", "front", "thompson", "neighbour", "thompson", "neighbour")
_GAP, _NODES = 1e-3, 2000  # for several budgets at once: a proposal needs no proof, but it must be the same on every run


@dataclass(frozen=True)
class Proposal:
    """M choices and who proposed them."""

    choices: Choices
    proposed_by: str


@dataclass(frozen=True)
class Result:
    """M choices and their measured loss; None where it was not finite."""

    choices: Choices
    loss: float | None


@dataclass(frozen=True)
class Planner:
    """Proposes batch after batch and holds no state but a memory of fits.

    Args:
        constraints: The budgets; the first that is no peak limits the resource that the front is drawn over.
        rows: M proxy rows.
        seed: Of everything random.
        batch: Proposals in each batch but the first.
        warm: Assignments that are measured first, whether they keep the budgets or not.
    """

    constraints: Constraints
    rows: list[Row]
    seed: int
    batch: int
    warm: tuple[Choices, ...] = ()
    _proxy: dict[float, Choices] = field(default_factory=dict, compare=False, repr=False)

    def first(self) -> list[Proposal]:
        """Batch 0. Raises InfeasibleError where no assignment keeps all budgets."""
        found = [Proposal(choices, "warm") for choices in self.warm]
        found += [Proposal(self.proxy_optimum(limit), "exact front") for limit in self._first_limits()]
        return list({p.choices: p for p in reversed(found)}.values())[::-1]

    def following(self, number: int, results: Sequence[Result], pending: Sequence[Choices] = ()) -> list[Proposal]:
        """Batch `number` (from 1), given the results of those before; shorter than `batch` once nothing is left to propose.

        Args:
            number: Of the batch.
            results: Of the earlier batches, in the order of their proposal.
            pending: Assignments that are being measured elsewhere; not proposed again.
        """
        rng = np.random.default_rng([self.seed, number])
        seen = {r.choices for r in results} | set(pending)
        fits = _Fits(self, results)
        found: list[Proposal] = []
        for slot in range(self.batch):
            proposal = self._one(_KINDS[slot % len(_KINDS)], fits, seen, rng)
            if proposal is None:
                break
            seen.add(proposal.choices)
            found.append(proposal)
        return found

    def _one(self, kind: str, fits: _Fits, seen: set[Choices], rng: np.random.Generator) -> Proposal | None:
        limit = self._along(float(rng.uniform(0.05, 0.95))) if kind == "front" else self._limit
        table = fits.at(limit)
        rows = self.rows if table is None else table.mean() if kind == "corrected table" else table.draw(rng)
        start = fits.incumbent if kind == "neighbour" and fits.incumbent is not None else self._optimum(rows, limit)
        if start not in seen:
            return Proposal(start, "thompson" if kind == "front" else kind)
        near = best_neighbour(self.constraints.tightened(self.resource, limit), rows, start, seen)
        if near is not None:
            return Proposal(near, "neighbour")
        anywhere = random_unseen(self.constraints, self.proxy_optimum(self._limit), seen, rng)
        return None if anywhere is None else Proposal(anywhere, "random")

    @property
    def resource(self) -> str:
        """The resource that the front is drawn over."""
        return next(iter(self.constraints.rows))

    @property
    def _limit(self) -> float:
        return self.constraints.limits[self.resource]

    def _along(self, share: float) -> float:
        least = reachable(self.constraints.problem)[self.resource][0]
        return least + share * (self._limit - least)

    def _first_limits(self) -> list[float]:
        least = self._along(0.05)
        return [self._limit, *(limit for limit in (share * self._limit for share in _NEAR) if limit > least), *map(self._along, _ALONG)]

    def proxy_optimum(self, limit: float) -> Choices:
        """Least predicted damage with this limit on the first resource; where the other budgets forbid that, with the whole budget."""
        if limit not in self._proxy:
            at_budget = limit == self._limit
            found = best_choices(self.constraints, self._coupled(self.rows))[0].choices if at_budget else self._optimum(self.rows, limit)
            self._proxy[limit] = found
        return self._proxy[limit]

    def _coupled(self, rows: Sequence[Row]) -> Coupled:
        return Coupled(self.constraints.layers, list(rows), ())

    def _optimum(self, rows: Sequence[Row], limit: float) -> Choices:
        try:
            found, _ = best_choices(self.constraints.tightened(self.resource, limit), self._coupled(rows), gap=_GAP, node_limit=_NODES)
            return found.choices
        except MpsearchError:  # other budgets forbid it, or the nodes ran out: the caller goes on from what does fit
            return self.proxy_optimum(self._limit)


class _Fits:
    """Tables corrected by the results so far, one for each limit that is asked about."""

    def __init__(self, planner: Planner, results: Sequence[Result]) -> None:
        self._planner = planner
        measured = [(r.choices, r.loss) for r in results if r.loss is not None]
        fitting = [(loss, choices) for choices, loss in measured if planner.constraints.fits(planner.constraints.layers.expand(choices))]
        self.incumbent: Choices | None = min(fitting)[1] if fitting else None
        self._choices = np.array([choices for choices, _ in measured], dtype=np.intp)
        self._losses = np.array([loss for _, loss in measured], dtype=np.float64)
        self._tables: dict[float, CorrectedTable] = {}

    def at(self, limit: float) -> CorrectedTable | None:
        if not len(self._losses):
            return None
        if limit not in self._tables:
            self._tables[limit] = correct(self._planner.rows, self._choices, self._losses, self._planner.proxy_optimum(limit))
        return self._tables[limit]
