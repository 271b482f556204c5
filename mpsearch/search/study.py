"""`explore`: an Optuna study on the measured loss that survives being killed and continues as if it had not been."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from mpsearch.errors import BudgetError, MpsearchError, OptionError, StudyError, UnknownNameError, UserError
from mpsearch.files import digest
from mpsearch.problem import PEAKS, Budget, Cost, Problem
from mpsearch.search.constraints import Constraints
from mpsearch.search.journal import open_journal
from mpsearch.search.proposals import Planner, Proposal
from mpsearch.search.reach import reachable
from mpsearch.search.sampler import INDICES, INTERRUPTED, ORDINAL, PROPOSED_BY, REASON, CorrectedTableSampler, finished

STUDY_NAME = "mpsearch"
_METHOD = 1  # raised when the same inputs would lead to other proposals
_INPUTS = "inputs"


@dataclass(frozen=True)
class Trial:
    """A measured assignment.

    Args:
        number: Its place in the sequence of proposals, from 0; the `ordinal` of Optuna's trial.
        indices: `L` choices.
        loss: As measured.
        cost: As predicted by the problem.
        feasible: Whether it keeps every budget.
        proposed_by: `warm`, `exact front`, `corrected table`, `thompson`, `neighbour` or `random`.
    """

    number: int
    indices: tuple[int, ...]
    loss: float
    cost: Cost
    feasible: bool
    proposed_by: str


def explore(
    problem: Problem,
    objective: str,
    budgets: Sequence[Budget],
    measure: Callable[[tuple[int, ...]], float],
    path: Path,
    trials: int,
    seed: int,
    warm: Sequence[Sequence[int]] = (),
    on_trial: Callable[[int, int], None] | None = None,
    batch: int = 8,
) -> list[Trial]:
    """Measure up to `trials` assignments, none twice, each chosen by what the earlier ones showed.

    The same arguments and the same `measure` give the same trials, however often the run was interrupted; more trials continue it.
    A loss that is not finite fails its trial for good; an exception of `measure`, KeyboardInterrupt among them, until the next call.

    Args:
        problem: Holds the proxy table, named `objective`, and a cost table for each budgeted resource.
        objective: Name of the proxy.
        budgets: Absolute limits; the first names the second objective of the study. None: the size, without a limit.
        measure: Loss of an assignment of `L` choices, lower is better.
        path: Optuna's journal file.
        trials: In all, those of earlier runs included.
        seed: Of everything random.
        warm: Assignments to be measured first.
        on_trial: Called after each trial with how many are done, and `trials`.
        batch: Proposals that are made from the same knowledge.

    Returns:
        Trials in the order of their proposal; fewer where losses were not finite or nothing that keeps the budgets was left.

    Raises:
        UserError: Unknown tables, a budget without costs, a warm assignment that is not one, or numbers out of range.
        InfeasibleError: No assignment keeps the budgets.
        StudyError: The file is another run's, in use, or no journal.
        MpsearchError: No loss was finite.
    """
    _check_numbers(trials, batch, seed)
    sampler = CorrectedTableSampler(_planner(problem, objective, budgets, seed, warm, batch))
    inputs = digest([_METHOD, problem.to_json(), objective, [b.to_json() for b in budgets], seed, [list(w) for w in warm], batch])
    with open_journal(path) as storage:
        study = _open_study(storage, sampler, inputs, path)
        total = len(finished(study, sampler.planner.constraints.layers))
        while total < trials and (proposed := sampler.propose(study)) is not None:
            _run(study, sampler, *proposed, measure, budgets)
            total += 1
            if on_trial is not None:
                on_trial(total, trials)
        return _measured(study, sampler, trials)


def _check_numbers(trials: int, batch: int, seed: int) -> None:
    if trials < 1 or batch < 1 or seed < 0:
        raise OptionError(f"A study needs at least 1 trial, a batch of at least 1 and a seed of at least 0, not {trials}, {batch} and {seed}.")


def _planner(problem: Problem, objective: str, budgets: Sequence[Budget], seed: int, warm: Sequence[Sequence[int]], batch: int) -> Planner:
    if objective not in problem.scores:
        raise UnknownNameError("score table", objective, problem.scores)
    if problem.interactions.get(objective):
        raise UserError(
            f"A study corrects a table, and {objective!r} has interactions beside it. Name an additive objective; `warm` takes the optimum of {objective!r}."
        )
    if not problem.costs:
        raise BudgetError("The problem has no cost table, so there is nothing to trade the loss against. Give it one, such as size_bytes.")
    if all(b.resource in PEAKS for b in budgets):  # the front is drawn over something that adds up
        resource = "size_bytes" if "size_bytes" in problem.costs else next(iter(problem.costs))
        budgets = [Budget(resource, reachable(problem)[resource][1], "no limit"), *budgets]
    constraints = Constraints.of(problem, budgets)
    rows = constraints.layers.merge(problem.scores[objective])
    return Planner(constraints, rows, seed, batch, tuple(constraints.layers.contract(indices) for indices in warm))


def _open_study(storage: JournalStorage, sampler: CorrectedTableSampler, inputs: str, path: Path) -> Study:
    """The study of these inputs, its left-over trials marked to be tried again."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(study_name=STUDY_NAME, storage=storage, sampler=sampler, directions=["minimize", "minimize"], load_if_exists=True)
    finally:
        optuna.logging.set_verbosity(verbosity)
    if study.user_attrs.get(_INPUTS, inputs) != inputs or (_INPUTS not in study.user_attrs and study.get_trials(deepcopy=False)):
        raise StudyError(f"{path} holds a study of another problem, objective, budget, seed, warm start or batch. Name another study, or remove the file.")
    if _INPUTS not in study.user_attrs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(["measured_loss", sampler.planner.resource])
        study.set_user_attr(_INPUTS, inputs)
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if REASON not in left.user_attrs:
            study._storage.set_trial_user_attr(left._trial_id, REASON, INTERRUPTED)
        study.tell(left.number, state=TrialState.FAIL)
    return study


def _run(
    study: Study, sampler: CorrectedTableSampler, ordinal: int, proposal: Proposal, measure: Callable[[tuple[int, ...]], float], budgets: Sequence[Budget]
) -> None:
    """One trial: written whole before it is measured, so that a death in between leaves what was being measured."""
    constraints = sampler.planner.constraints
    indices = constraints.layers.expand(proposal.choices)
    cost = constraints.problem.cost(indices)
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING,
            params=sampler.params(proposal.choices),
            distributions=dict(sampler.search_space()),
            user_attrs=sampler.attributes(ordinal, proposal),
            constraints={b.resource: getattr(cost, b.resource) - constraints.limits[b.resource] for b in budgets},
        )
    )
    trial = study.get_trials(deepcopy=False)[-1]
    try:
        loss = float(measure(indices))
    except BaseException:
        study._storage.set_trial_user_attr(trial._trial_id, REASON, INTERRUPTED)
        study.tell(trial.number, state=TrialState.FAIL)
        raise
    if math.isfinite(loss):
        study.tell(trial.number, [loss, getattr(cost, sampler.planner.resource)])
    else:
        study._storage.set_trial_user_attr(trial._trial_id, REASON, f"the measured loss is {loss}")
        study.tell(trial.number, state=TrialState.FAIL)


def _measured(study: Study, sampler: CorrectedTableSampler, trials: int) -> list[Trial]:
    found = []
    by_ordinal = {t.user_attrs[ORDINAL]: t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    for ordinal in sorted(k for k in by_ordinal if k < trials):
        attrs = by_ordinal[ordinal].user_attrs
        indices = tuple(attrs[INDICES])
        cost = sampler.planner.constraints.problem.cost(indices)
        found.append(Trial(ordinal, indices, by_ordinal[ordinal].values[0], cost, attrs["feasible"], attrs[PROPOSED_BY]))
    if not found:
        raise MpsearchError("No trial had a finite loss. See the attribute `reason` of the study's trials, and check the model and the data.")
    return found
