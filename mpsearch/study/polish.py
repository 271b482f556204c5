"""Polish: exchanges around the best assignments that keep the budgets, accepted only where the measured loss
falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mpsearch.errors import MpsearchError, OptionError
from mpsearch.problem import Budget, Choices, Problem
from mpsearch.solvers.constraints import Constraints
from mpsearch.study.losses import Losses
from mpsearch.study.optuna_study import Trial, make_planner


def polish(
    problem: Problem,
    objective: str,
    budgets: Sequence[Budget],
    measure: Callable[[tuple[int, ...]], float],
    trials: Sequence[Trial],
    evaluations: int,
    losses: Losses | None = None,
    on_trial: Callable[[int, int], None] | None = None,
) -> list[Trial]:
    """Measure up to `evaluations` exchanges around the best trials, one after the other, and around what is
    found better.

    An exchange changes one choice, or raises one and lowers another; optima of the corrected table are looked
    at beside them. The next has the greatest expected improvement under the table as corrected by every known
    loss and what neighbours share (`LocalModel`); nothing is measured twice.

    Args:
        problem: Layers, candidates and tables, as for `explore`.
        objective: Name of the proxy.
        budgets: Absolute limits.
        measure: Loss of an assignment of `L` choices, lower is better.
        trials: What a study measured.
        evaluations: Measurements at most; 0 for none.
        losses: Remembers what is measured; with a `LossFile` an interrupted run goes on.
        on_trial: Called after each with how many are done, and `evaluations`.

    Returns: The exchanges with a finite loss in the order of trial, numbered on from the study's.

    Raises:
        OptionError: `evaluations` is negative.
        MpsearchError: No trial keeps the budgets.
    """
    planner = make_planner(problem, objective, budgets, 0, batch=1)
    constraints = planner.constraints
    _require(constraints, trials, evaluations)
    known: dict[Choices, float] = {constraints.layers.contract(t.indices): t.loss for t in trials}
    held: Losses = {} if losses is None else losses
    found: list[Trial] = []
    first = 1 + max(t.number for t in trials)
    for done in range(1, evaluations + 1):
        changed = planner.most_promising(known)
        if changed is None:
            break
        indices = constraints.layers.expand(changed)
        remembered = held.get(indices)
        loss = float(measure(indices)) if remembered is None else remembered
        if remembered is None:
            held[indices] = loss
        known[changed] = loss if math.isfinite(loss) else math.inf
        if math.isfinite(loss):
            found.append(Trial(first + len(found), indices, loss, problem.cost(indices), True, "polish"))
        if on_trial is not None:
            on_trial(done, evaluations)
    return found


def _require(constraints: Constraints, trials: Sequence[Trial], evaluations: int) -> None:
    if evaluations < 0:
        raise OptionError(f"A polish of {evaluations} evaluations cannot be done; give 0 or more.")
    if not any(constraints.fits(t.indices) for t in trials):
        raise MpsearchError(
            f"None of {len(trials)} trials keeps the budgets, so there is nothing to polish. Measure "
            "more, or raise the budget."
        )
