"""One call of HiGHS on a scaled multiple-choice knapsack with any number of limits and with pair tables, kept
quiet.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import MpsearchError
from mpsearch.solvers.tables.groups import Row
from mpsearch.solvers.tables.pair_tables import Pair

if TYPE_CHECKING:  # scipy takes most of a second, and most problems never come here
    import scipy.optimize
    from scipy.sparse import csr_array

_LIMIT_SCALE = (
    100.0  # scaled spare room of a limit: HiGHS's absolute tolerance of 1e-6 is then 1e-8 of the room
)
_OPTIMAL, _STOPPED, _INFEASIBLE = 0, 1, 2  # status of scipy.optimize.milp


@dataclass(frozen=True)
class Outcome:
    """What HiGHS found.

    Args:
        choices: M choices; None where it found none.
        bound: Lower bound of the score, in the unit of the rows.
        proven: Whether it proved `choices` optimal, or that there are none.
    """

    choices: tuple[int, ...] | None
    bound: float
    proven: bool


@dataclass(frozen=True)
class Columns:
    """The (super-layer, candidate) pairs that are still in play, one binary variable each.

    Args:
        count: M, super-layers in all.
        layer: [N] super-layer of each.
        candidate: [N].
        scores: [N], the least of each super-layer taken off.
        costs: `B x N`, the least of each super-layer taken off.
        spare: [B] what each limit leaves above the sums of the least.
    """

    count: int
    layer: NDArray[np.intp]
    candidate: NDArray[np.intp]
    scores: Row
    costs: Row
    spare: Row

    @classmethod
    def of(
        cls,
        scores: Sequence[Row],
        costs: Sequence[Sequence[Row]],
        spare: Sequence[float],
        paired: Collection[int] = (),
    ) -> Columns:
        """Flatten M score rows and B x M cost rows; candidates that cannot fit or that another one dominates
        are left out.

        In the super-layers of `paired` nothing is dominated: what a candidate is worth depends on others.
        """
        layer = np.repeat(np.arange(len(scores)), [len(row) for row in scores])
        candidate = np.concatenate([np.arange(len(row)) for row in scores])
        flat = np.array([np.concatenate([row - row.min() for row in rows]) for rows in (scores, *costs)])
        found = cls(len(scores), layer, candidate, flat[0], flat[1:], np.array(spare))
        fits = (found.costs <= found.spare[:, None] + 1e-9 * np.abs(found.spare[:, None])).all(0)
        return found.only(fits & (~_dominated(layer, flat) | np.isin(layer, list(paired))))

    def only(self, mask: NDArray[np.bool_]) -> Columns:
        """Those of a mask."""
        return Columns(
            self.count,
            self.layer[mask],
            self.candidate[mask],
            self.scores[mask],
            self.costs[:, mask],
            self.spare,
        )


@dataclass(frozen=True)
class Link:
    """What two super-layers together add to the score and to each of the limited costs.

    Args:
        first: Position of a super-layer.
        second: Position of a later one.
        scores: `C_first x C_second`.
        costs: `B x C_first x C_second`.
    """

    first: int
    second: int
    scores: Row
    costs: Row

    @classmethod
    def all(cls, pairs: Sequence[Pair[Row]], costs: Sequence[Sequence[Pair[Row]]] = ()) -> list[Link]:
        """From the pairs of the score, and those of each of B costs; the least of each table is taken off."""
        by_place = [{(p.first, p.second): p.table - p.table.min() for p in part} for part in (pairs, *costs)]
        found = []
        for key in sorted(set().union(*by_place)):
            shape = next(tables[key].shape for tables in by_place if key in tables)
            score, *rest = (tables.get(key, np.zeros(shape)) for tables in by_place)
            found.append(cls(*key, score, np.array(rest).reshape(len(costs), *shape)))
        return found


@dataclass(frozen=True)
class Cut:
    """Assignments that are not allowed: those that agree too much with one.

    Args:
        agreement: For each of M super-layers and each of its choices, in how many layers it agrees.
        most: That an assignment may agree in.
    """

    agreement: tuple[Row, ...]
    most: int

    @classmethod
    def itself(cls, choices: Sequence[int], widths: Sequence[int]) -> Cut:
        """Forbids M choices and nothing else."""
        return cls(
            tuple((np.arange(width) == c).astype(float) for c, width in zip(choices, widths, strict=True)),
            len(choices) - 1,
        )

    def allows(self, choices: Sequence[int]) -> bool:
        """Whether M choices are not forbidden."""
        return sum(float(row[c]) for row, c in zip(self.agreement, choices, strict=True)) <= self.most


def minimise(
    columns: Columns,
    cuts: Sequence[Cut],
    unit: float,
    gap: float,
    time_limit_s: float,
    node_limit: int | None,
    links: Sequence[Link] = (),
) -> Outcome:
    """Least score with one candidate for each super-layer and each limit kept up to HiGHS's tolerance.

    A link is linearised with one variable in 0..1 for each entry of its table, whose sums over either side
    are the binary variables of the other (RLT; tighter than McCormick's).

    Args:
        columns: The variables.
        cuts: Assignments that are not allowed.
        unit: Scores are divided by this.
        gap: Relative gap at which HiGHS stops; 0 proves the optimum.
        time_limit_s: Wall-clock limit.
        node_limit: Limit on branch-and-bound nodes, which stops at the same point on every run.
        links: Between super-layers.
    """
    import scipy.optimize
    from scipy.sparse import vstack

    if len(np.unique(columns.layer)) < columns.count:
        return Outcome(None, 0.0, proven=True)  # a super-layer has no candidate that fits
    linked, values, uses = _linking(columns, links)
    beyond = (uses > columns.spare[:, None] * (1 + 1e-9)).any(
        0
    )  # such an entry cannot be; its coefficient, which may be huge, is left out
    uses = np.where(beyond, 0.0, uses)
    choosing, lower, upper = _choosing(columns, cuts, uses)
    matrix = vstack([choosing, linked])
    nothing = np.zeros(linked.shape[0])
    options = {"mip_rel_gap": gap, "time_limit": time_limit_s} | (
        {} if node_limit is None else {"node_limit": node_limit}
    )
    with _quiet():
        result = scipy.optimize.milp(
            np.append(columns.scores, values) / unit,
            integrality=np.append(np.ones(len(columns.layer)), np.zeros(len(values))),
            bounds=scipy.optimize.Bounds(
                0, np.append(np.ones(len(columns.layer)), np.where(beyond, 0.0, 1.0))
            ),
            constraints=scipy.optimize.LinearConstraint(
                matrix, np.append(lower, nothing), np.append(upper, nothing)
            ),
            options=options,
        )
    return _outcome(result, columns, unit)


def _choosing(columns: Columns, cuts: Sequence[Cut], uses: Row) -> tuple[csr_array, Row, Row]:
    """One candidate for each super-layer, the limits, and the cuts: matrix over columns and entries of links,
    least and greatest value of each row.
    """
    from scipy.sparse import csr_array, hstack, vstack

    count, width = columns.count, len(columns.layer)
    one_of_each = csr_array((np.ones(width), (columns.layer, np.arange(width))), shape=(count, width))
    factor = np.where(columns.spare > 0, _LIMIT_SCALE / np.where(columns.spare > 0, columns.spare, 1.0), 1.0)
    agreeing = np.array(
        [[cut.agreement[m][c] for m, c in zip(columns.layer, columns.candidate, strict=True)] for cut in cuts]
    ).reshape(len(cuts), width)
    limits = hstack([csr_array(columns.costs * factor[:, None]), csr_array(uses * factor[:, None])])
    nowhere = [csr_array((rows, uses.shape[1])) for rows in (count, len(cuts))]
    matrix = vstack([hstack([one_of_each, nowhere[0]]), limits, hstack([csr_array(agreeing), nowhere[1]])])
    upper = np.concatenate([np.ones(count), columns.spare * factor, [float(cut.most) for cut in cuts]])
    return matrix, np.concatenate([np.ones(count), np.full(len(upper) - count, -np.inf)]), upper


def _linking(columns: Columns, links: Sequence[Link]) -> tuple[csr_array, Row, Row]:
    """Rows that hold the entries of each link to its binary variables, the score of each of Z entries, and
    its costs. `R x (N + Z)`, [Z], `B x Z`.
    """
    from scipy.sparse import csr_array

    width, rows, at, signs, values, uses = (
        len(columns.layer),
        [],
        [],
        [],
        [np.zeros(0)],
        [np.zeros((len(columns.spare), 0))],
    )
    row, column = 0, width
    for link in links:
        sides = [np.flatnonzero(columns.layer == m) for m in (link.first, link.second)]
        entries = column + np.arange(len(sides[0]) * len(sides[1])).reshape(len(sides[0]), len(sides[1]))
        for side, lines in ((sides[0], entries), (sides[1], entries.T)):
            here = row + np.arange(len(side))
            rows += [np.repeat(here, lines.shape[1]), here]
            at += [lines.ravel(), side]
            signs += [np.ones(lines.size), -np.ones(len(side))]
            row += len(side)
        first, second = (columns.candidate[side] for side in sides)
        values.append(link.scores[np.ix_(first, second)].ravel())
        uses.append(link.costs[:, first[:, None], second[None, :]].reshape(len(columns.spare), entries.size))
        column += entries.size
    if not links:
        return csr_array((0, width)), values[0], uses[0]
    matrix = csr_array(
        (np.concatenate(signs), (np.concatenate(rows), np.concatenate(at))), shape=(row, column)
    )
    return matrix, np.concatenate(values), np.concatenate(uses, axis=1)


def _outcome(result: scipy.optimize.OptimizeResult, columns: Columns, unit: float) -> Outcome:
    if result.status not in (_OPTIMAL, _STOPPED, _INFEASIBLE):
        raise MpsearchError(f"HiGHS stopped with status {result.status}: {result.message}")
    dual = result.get("mip_dual_bound")
    bound = float(dual) * unit if dual is not None and math.isfinite(dual) else 0.0
    if result.x is None:
        return Outcome(None, bound, result.status == _INFEASIBLE)
    choices = np.zeros(columns.count, np.intp)
    on = result.x[: len(columns.layer)] > 0.5
    choices[columns.layer[on]] = columns.candidate[on]
    return Outcome(tuple(int(c) for c in choices), max(bound, 0.0), result.status == _OPTIMAL)


def _dominated(layer: NDArray[np.intp], values: Row) -> NDArray[np.bool_]:
    """Columns that another column of the same super-layer is no worse than in every row of `values`; of
    equals the first stays.
    """
    found = np.zeros(len(layer), bool)
    for m in range(int(layer.max()) + 1):
        at = np.flatnonzero(layer == m)
        own = values[:, at]
        no_worse = (own[:, :, None] <= own[:, None, :]).all(0)  # [i, j]: i is no worse than j
        equal = no_worse & no_worse.T
        found[at] = ((no_worse & ~equal) | np.triu(equal, 1)).any(0)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Sends file descriptor 1 to nowhere: some versions of HiGHS print a line of their own source there."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # the process has no standard output to protect
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)
