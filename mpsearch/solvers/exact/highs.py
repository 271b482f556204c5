"""One call of HiGHS on a `knapsack` with any number of limits and with pair tables, kept quiet."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpsearch.errors import MpsearchError
from mpsearch.solvers.exact.knapsack import Columns, Cut, Link
from mpsearch.solvers.tables.groups import Row

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
