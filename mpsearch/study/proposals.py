"""Which assignments to measure next: a pure function of the problem, the seed and what earlier batches
measured.

Batch 0 is the caller's own assignments, exact optima of the proxy at the budget and near it, and those points
of its exact front that dominate most together. Every later batch mixes, for the budget, the exact optimum of
the corrected table, of tables drawn from its posterior, and neighbours of the best assignment so far; and,
for the front, what is predicted to add most to the area that the measured ones dominate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from mpsearch.problem import Choices
from mpsearch.solvers.ask.lagrangian_front import most_improving, supported
from mpsearch.solvers.budgeted.neighbours import best_neighbour, best_neighbours, random_unseen
from mpsearch.solvers.tables.groups import Row
from mpsearch.study.model.correction import CorrectedTable, correct
from mpsearch.study.model.gaussian_process import LocalModel
from mpsearch.study.optima import Optima, sums

_NEAR = (0.97, 0.93)  # shares of the budget
_ALONG = 6  # points of the proxy's front in batch 0
_KINDS = ("corrected table", "neighbour", "thompson", "front", "neighbour", "thompson", "neighbour", "front")
_BEST, _OTHERS, _FAR = 3, 5, 4  # starts of a polish: the best, and the best beyond so many changes of them
_AROUND = 256  # neighbours of each of least predicted loss, among which the expected improvement chooses
_REFIT, _MANY = (
    8,
    128,
    # beyond so many measurements, bases and widths are chosen anew after every eighth: that takes most of the
    # time
)
_DRAWN = 1  # tables whose optima are looked at too


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
class Planner(Optima):
    """Proposes batch after batch and holds no state but a memory of fits and optima.

    Args:
        batch: Proposals in each batch but the first.
        warm: Assignments that are measured first, whether they keep the budgets or not.
        others: Rows of other proxies. The optimum of each at the budget is measured.
    """

    batch: int
    warm: tuple[Choices, ...] = ()
    others: tuple[list[Row], ...] = ()
    _local: dict[int, LocalModel] = field(default_factory=dict, compare=False, repr=False)

    def first(self) -> list[Proposal]:
        """Batch 0. Raises InfeasibleError where no assignment keeps all budgets."""
        found = [Proposal(choices, "warm") for choices in self.warm]
        limits = [
            self.limit,
            *(limit for limit in (share * self.limit for share in _NEAR) if limit > self.least),
        ]
        found += [Proposal(self.proxy_optimum(limit), "exact front") for limit in limits]
        found += [Proposal(self.optimum(rows, self.limit), "other proxy") for rows in self.others]
        found += [
            Proposal(choices, "exact front")
            for choices in self.proxy_front(_ALONG, [p.choices for p in found])
        ]
        return list({p.choices: p for p in reversed(found)}.values())[::-1]

    def following(
        self, number: int, results: Sequence[Result], pending: Sequence[Choices] = ()
    ) -> list[Proposal]:
        """Batch `number` (from 1), given the results of those before; shorter than `batch` once nothing is
        left to propose.

        Args:
            number: Number of the batch.
            results: Results of the earlier batches, in the order of their proposal.
            pending: Assignments that are being measured elsewhere; not proposed again.
        """
        rng = np.random.default_rng([self.seed, number])
        seen = {r.choices for r in results} | set(pending)
        fits = Fits(self, results)
        kinds = [_KINDS[slot % len(_KINDS)] for slot in range(self.batch)]
        along = fits.along(kinds.count("front"), seen, rng)
        found: list[Proposal] = []
        for kind in kinds:
            proposal = self._front(along, seen) if kind == "front" else None
            proposal = proposal or self._one("thompson" if kind == "front" else kind, fits, seen, rng)
            if proposal is None:
                break
            seen.add(proposal.choices)
            found.append(proposal)
        return found

    def _front(self, along: list[Choices], seen: set[Choices]) -> Proposal | None:
        while along:
            choices = along.pop(0)
            if choices not in seen:
                return Proposal(choices, "front")
        return None

    def _one(self, kind: str, fits: Fits, seen: set[Choices], rng: np.random.Generator) -> Proposal | None:
        """For the budget."""
        table = fits.near_budget
        rows = self.rows if table is None else table.draw(rng) if kind == "thompson" else table.mean()
        start = (
            fits.incumbent
            if kind == "neighbour" and fits.incumbent is not None
            else self.optimum(rows, self.limit)
        )
        if start not in seen:
            return Proposal(start, kind)
        near = best_neighbour(self.constraints, rows, start, seen)
        if near is not None:
            return Proposal(near, "neighbour" if kind == "corrected table" else kind)
        anywhere = random_unseen(self.constraints, self.proxy_optimum(self.limit), seen, rng)
        return None if anywhere is None else Proposal(anywhere, "random")

    def most_promising(self, losses: Mapping[Choices, float]) -> Choices | None:
        """The unseen assignment within the budgets whose measurement is expected to lower the least loss
        most; None if there is none.

        Looked for within two changes of the best that fit and of others far from them, and among optima of
        the corrected table and of tables drawn.

        Args:
            losses: Losses of everything seen, at least one of it finite and within the budgets; not finite
                where there is no loss.
        """
        finite = [choices for choices, loss in losses.items() if math.isfinite(loss)]
        fitting = sorted(
            (losses[c], c) for c in finite if self.constraints.fits(self.constraints.layers.expand(c))
        )
        (least, best), rng = fitting[0], np.random.default_rng([self.seed, len(losses)])
        batch = len(losses) // _REFIT if len(losses) > _MANY else -len(losses)
        like = self._local.get(batch)
        table = correct(
            self.rows,
            np.array(finite, dtype=np.intp),
            np.array([losses[c] for c in finite]),
            best,
            None if like is None else like.table,
        )
        with threadpool_limits(1, user_api="blas"):
            model = LocalModel.of(table, like)
        self._local.clear()
        self._local[batch] = model
        rows = table.mean()
        pool = [
            self.optimum(drawn, self.limit) for drawn in (rows, *(table.draw(rng) for _ in range(_DRAWN)))
        ]
        pool += [
            c
            for start in _starts([c for _, c in fitting])
            for c in best_neighbours(self.constraints, rows, start, losses, _AROUND)
        ]
        unseen = [choices for choices in dict.fromkeys(pool) if choices not in losses]
        if not unseen:
            return None
        with threadpool_limits(1, user_api="blas"):
            order = np.argsort(-model.expected_improvement(unseen, least), kind="stable")
        return next(
            (unseen[i] for i in order if self.constraints.fits(self.constraints.layers.expand(unseen[i]))),
            None,
        )


class Fits:
    """What the results so far say: the best of them, and tables corrected by them, one for the budget and one
    for the whole front.
    """

    def __init__(self, optima: Optima, results: Sequence[Result]) -> None:
        self._optima = optima
        measured = [(r.choices, r.loss) for r in results if r.loss is not None]
        fitting = [
            (loss, choices)
            for choices, loss in measured
            if optima.constraints.fits(optima.constraints.layers.expand(choices))
        ]
        self.incumbent: Choices | None = min(fitting)[1] if fitting else None
        self._losses = np.array([loss for _, loss in measured], dtype=np.float64)
        self._choices = [choices for choices, _ in measured]
        self.near_budget = self._table(optima.proxy_optimum(optima.limit))

    def _table(self, focus: Choices | None) -> CorrectedTable | None:
        if not len(self._losses):
            return None
        return correct(self._optima.rows, np.array(self._choices, dtype=np.intp), self._losses, focus)

    def along(self, count: int, seen: set[Choices], rng: np.random.Generator) -> list[Choices]:
        """Up to `count` unseen assignments that are predicted to add most to the dominated area, in log loss
        over the resource of the front.

        Candidates are exact optima of the expected table and of two drawn ones, and changes of one or two
        choices around what was measured.
        """
        table = self._table(None) if count else None
        if table is None:
            return []
        optima, mean = self._optima, table.mean()
        pool = [
            c
            for rows in (mean, table.draw(rng), table.draw(rng))
            for c in supported(optima.constraints, rows, rng)
        ]
        around = [
            best_neighbour(optima.constraints.tightened(optima.resource, cost), mean, c, seen)
            for c, cost in self._on_front()
        ]
        unseen = [c for c in dict.fromkeys([*pool, *(c for c in around if c is not None)]) if c not in seen]
        if not unseen:
            return []
        points = np.column_stack([optima.costs(unseen), table.log_loss(sums(mean, unseen))])
        found = np.column_stack([optima.costs(self._choices), np.log(self._losses - table.base)])
        corner = (optima.corner, float(found[:, 1].max()))
        return [unseen[i] for i in most_improving(points, found, corner, count)]

    def _on_front(self) -> list[tuple[Choices, float]]:
        """Measured assignments that keep the budgets and that no other dominates, with their cost."""
        costs = self._optima.costs(self._choices)
        found: list[tuple[Choices, float]] = []
        least = np.inf
        for i in np.lexsort((self._losses, costs)):
            if self._losses[i] < least and self._optima.constraints.fits(
                self._optima.constraints.layers.expand(self._choices[i])
            ):
                least = self._losses[i]
                found.append((self._choices[i], float(costs[i])))
        return found


def _starts(ranked: Sequence[Choices]) -> list[Choices]:
    """The best few, then the best of those that are far from all taken before."""
    found = list(ranked[:_BEST])
    for choices in ranked[_BEST:]:
        if len(found) == _BEST + _OTHERS:
            break
        if all(sum(a != b for a, b in zip(choices, other, strict=True)) >= _FAR for other in found):
            found.append(choices)
    return found
