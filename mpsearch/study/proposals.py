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

from mpsearch.errors import MpsearchError
from mpsearch.problem import Choices
from mpsearch.solvers.ask.lagrangian_front import most_improving, supported
from mpsearch.solvers.budgeted.neighbours import best_neighbour, best_neighbours, random_unseen
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.coupled import Coupled
from mpsearch.solvers.optimum import best_choices
from mpsearch.solvers.reach import reachable
from mpsearch.solvers.tables.groups import Row
from mpsearch.study.model.correction import CorrectedTable, correct, positive
from mpsearch.study.model.gaussian_process import LocalModel

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
_GAP, _NODES = (
    1e-3,
    2000,
)  # for several budgets at once: a proposal needs no proof, but it must be the same on every run


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
        seed: Random seed; the same one gives the same result.
        batch: Proposals in each batch but the first.
        warm: Assignments that are measured first, whether they keep the budgets or not.
        others: Rows of other proxies. The optimum of each at the budget is measured.
    """

    constraints: Constraints
    rows: list[Row]
    seed: int
    batch: int
    warm: tuple[Choices, ...] = ()
    others: tuple[list[Row], ...] = ()
    _proxy: dict[float, Choices] = field(default_factory=dict, compare=False, repr=False)
    _local: dict[int, LocalModel] = field(default_factory=dict, compare=False, repr=False)

    def first(self) -> list[Proposal]:
        """Batch 0. Raises InfeasibleError where no assignment keeps all budgets."""
        found = [Proposal(choices, "warm") for choices in self.warm]
        limits = [
            self._limit,
            *(limit for limit in (share * self._limit for share in _NEAR) if limit > self._least),
        ]
        found += [Proposal(self.proxy_optimum(limit), "exact front") for limit in limits]
        found += [Proposal(self._optimum(rows, self._limit), "other proxy") for rows in self.others]
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
            else self._optimum(rows, self._limit)
        )
        if start not in seen:
            return Proposal(start, kind)
        near = best_neighbour(self.constraints, rows, start, seen)
        if near is not None:
            return Proposal(near, "neighbour" if kind == "corrected table" else kind)
        anywhere = random_unseen(self.constraints, self.proxy_optimum(self._limit), seen, rng)
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
            self._optimum(drawn, self._limit) for drawn in (rows, *(table.draw(rng) for _ in range(_DRAWN)))
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

    @property
    def resource(self) -> str:
        """The resource that the front is drawn over."""
        return next(iter(self.constraints.rows))

    @property
    def _limit(self) -> float:
        return self.constraints.limits[self.resource]

    @property
    def _least(self) -> float:
        return reachable(self.constraints.problem)[self.resource][0]

    @property
    def corner(self) -> float:
        """Beyond the costs of all that keeps the budget."""
        return self._limit + 1e-3 * max(self._limit - self._least, 1e-9 * abs(self._limit))

    def costs(self, choices: Sequence[Choices]) -> Row:
        """[P] cost of each in the resource of the front."""
        problem, layers = self.constraints.problem, self.constraints.layers
        return np.array([getattr(problem.cost(layers.expand(c)), self.resource) for c in choices])

    def proxy_front(self, count: int, held: Sequence[Choices] = ()) -> list[Choices]:
        """Up to `count` points of the exact front of the proxy that dominate most, in log damage, beside
        those held.
        """
        rows = positive(self.rows)
        pool = supported(self.constraints, rows, np.random.default_rng(self.seed))
        points, found = (np.column_stack([self.costs(c), np.log(sums(rows, c))]) for c in (pool, held))
        corner = (self.corner, float(points[:, 1].max()) + 1e-9) if len(points) else (0.0, 0.0)
        return [pool[i] for i in most_improving(points, found, corner, count)]

    def proxy_optimum(self, limit: float) -> Choices:
        """Least predicted damage with this limit on the first resource; where the other budgets forbid that,
        with the whole budget.
        """
        if limit not in self._proxy:
            at_budget = limit == self._limit
            found = (
                best_choices(self.constraints, self._coupled(self.rows))[0].choices
                if at_budget
                else self._optimum(self.rows, limit)
            )
            self._proxy[limit] = found
        return self._proxy[limit]

    def _coupled(self, rows: Sequence[Row]) -> Coupled:
        return Coupled(self.constraints.layers, list(rows), ())

    def _optimum(self, rows: Sequence[Row], limit: float) -> Choices:
        try:
            found, _ = best_choices(
                self.constraints.tightened(self.resource, limit),
                self._coupled(rows),
                gap=_GAP,
                node_limit=_NODES,
            )
            return found.choices
        except (
            MpsearchError
        ):  # other budgets forbid it, or the nodes ran out: the caller goes on from what does fit
            return self.proxy_optimum(self._limit)


class Fits:
    """What the results so far say: the best of them, and tables corrected by them, one for the budget and one
    for the whole front.
    """

    def __init__(self, planner: Planner, results: Sequence[Result]) -> None:
        self._planner = planner
        measured = [(r.choices, r.loss) for r in results if r.loss is not None]
        fitting = [
            (loss, choices)
            for choices, loss in measured
            if planner.constraints.fits(planner.constraints.layers.expand(choices))
        ]
        self.incumbent: Choices | None = min(fitting)[1] if fitting else None
        self._losses = np.array([loss for _, loss in measured], dtype=np.float64)
        self._choices = [choices for choices, _ in measured]
        self.near_budget = self._table(planner.proxy_optimum(planner.constraints.limits[planner.resource]))

    def _table(self, focus: Choices | None) -> CorrectedTable | None:
        if not len(self._losses):
            return None
        return correct(self._planner.rows, np.array(self._choices, dtype=np.intp), self._losses, focus)

    def along(self, count: int, seen: set[Choices], rng: np.random.Generator) -> list[Choices]:
        """Up to `count` unseen assignments that are predicted to add most to the dominated area, in log loss
        over the resource of the front.

        Candidates are exact optima of the expected table and of two drawn ones, and changes of one or two
        choices around what was measured.
        """
        table = self._table(None) if count else None
        if table is None:
            return []
        planner, mean = self._planner, table.mean()
        pool = [
            c
            for rows in (mean, table.draw(rng), table.draw(rng))
            for c in supported(planner.constraints, rows, rng)
        ]
        around = [
            best_neighbour(planner.constraints.tightened(planner.resource, cost), mean, c, seen)
            for c, cost in self._on_front()
        ]
        unseen = [c for c in dict.fromkeys([*pool, *(c for c in around if c is not None)]) if c not in seen]
        if not unseen:
            return []
        points = np.column_stack([planner.costs(unseen), table.log_loss(sums(mean, unseen))])
        found = np.column_stack([planner.costs(self._choices), np.log(self._losses - table.base)])
        corner = (planner.corner, float(found[:, 1].max()))
        return [unseen[i] for i in most_improving(points, found, corner, count)]

    def _on_front(self) -> list[tuple[Choices, float]]:
        """Measured assignments that keep the budgets and that no other dominates, with their cost."""
        costs = self._planner.costs(self._choices)
        found: list[tuple[Choices, float]] = []
        least = np.inf
        for i in np.lexsort((self._losses, costs)):
            if self._losses[i] < least and self._planner.constraints.fits(
                self._planner.constraints.layers.expand(self._choices[i])
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


def sums(rows: Sequence[Row], choices: Sequence[Choices]) -> Row:
    """[P] sum of M rows at each of P choices."""
    taken = np.array(choices, dtype=np.intp).reshape(len(choices), len(rows))
    return np.asarray(sum((row[taken[:, m]] for m, row in enumerate(rows)), np.zeros(len(taken))))
