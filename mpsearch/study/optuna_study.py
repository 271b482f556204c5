"""`explore`: an Optuna study on the measured loss that survives being killed and continues as if it had not
been.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from mpsearch.errors import BudgetError, MpsearchError, OptionError, StudyError, UnknownNameError, UserError
from mpsearch.files import digest
from mpsearch.problem import PEAKS, Budget, Cost, Problem
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.reach import reachable
from mpsearch.study.proposals import Planner, Proposal
from mpsearch.study.sampler import (
    INDICES,
    ORDINAL,
    PROPOSED_BY,
    CorrectedTableSampler,
    Trials,
    finished,
    pending,
)
from mpsearch.study.sharing.leader import Leader
from mpsearch.study.sharing.queue import COST, JOB, Sharing
from mpsearch.study.sharing.storage import FINISHED, STUDY_NAME, Place, lead, quiet

_METHOD = 3  # raised when the same inputs would lead to other proposals
_INPUTS = "inputs"


@dataclass(frozen=True)
class Trial:
    """A measured assignment.

    Args:
        number: Its place in the sequence of proposals, from 0; the `ordinal` of Optuna's trial.
        indices: `L` choices.
        loss: Measured loss.
        cost: Cost that the problem predicts.
        feasible: Whether it keeps every budget.
        proposed_by: `warm`, `exact front`, `other proxy`, `corrected table`, `thompson`, `neighbour`, `front`
            or `random`.
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
    path: Path | Place,
    trials: int,
    seed: int,
    warm: Sequence[Sequence[int]] = (),
    on_trial: Callable[[int, int], None] | None = None,
    batch: int = 8,
    sharing: Sharing | None = None,
    others: Sequence[str] = (),
) -> list[Trial]:
    """Measure up to `trials` assignments, none twice, each chosen by what the earlier ones showed.

    The same arguments and the same `measure` give the same trials, however often the run was interrupted and
    however many workers share it, because a batch is proposed once all earlier ones are measured; more trials
    continue it. A loss that is not finite fails its trial for good; an exception of `measure`,
    KeyboardInterrupt among them, until the next call.

    Args:
        problem: Holds the proxy table, named `objective`, and a cost table for each budgeted resource.
        objective: Name of the proxy.
        budgets: Absolute limits; the first names the second objective of the study. None: the size, without a
            limit.
        measure: Loss of an assignment of `L` choices, lower is better.
        path: Optuna's journal file, or where else the study lies.
        trials: In all, those of earlier runs included.
        seed: Random seed; the same one gives the same result.
        warm: Assignments to be measured first.
        on_trial: Called after each trial with how many are done, and `trials`.
        batch: Proposals that are made from the same knowledge; more workers than that wait for each other.
        sharing: With workers, which may come and go; None: this process measures all.
        others: Names of further additive proxies: the optimum of each at the budget is measured too.

    Returns:
        Trials in the order of their proposal; fewer where losses were not finite or nothing that keeps the
        budgets was left.

    Raises:
        UserError: Unknown tables, a budget without costs, a warm assignment that is not one, or numbers out
            of range.
        InfeasibleError: No assignment keeps the budgets.
        StudyError: The study is another run's or in use; the file is no journal, or the server out of reach.
        MpsearchError: No loss was finite, or worker after worker died on one trial.
    """
    _check_numbers(trials, batch, seed)
    sampler = CorrectedTableSampler(make_planner(problem, objective, budgets, seed, warm, batch, others))
    inputs = digest(
        [
            _METHOD,
            problem.to_json(),
            objective,
            [b.to_json() for b in budgets],
            seed,
            [list(w) for w in warm],
            batch,
            list(others),
        ]
    )
    place, sharing = path if isinstance(path, Place) else Place(str(path)), sharing or Sharing()
    with lead(place, sharing.pace) as (storage, hold):
        study = sharing.pace.patiently(
            lambda: _open_shared(storage, sampler, inputs, place, sharing), sharing.say
        )
        Leader(study, _Proposals(sampler, budgets), trials, hold, sharing).run(measure, on_trial)
        return sharing.pace.patiently(lambda: measured_trials(study, problem, trials), sharing.say)


def _check_numbers(trials: int, batch: int, seed: int) -> None:
    if trials < 1 or batch < 1 or seed < 0:
        raise OptionError(
            "A study needs at least 1 trial, a batch of at least 1 and a seed of at least 0, not "
            f"{trials}, {batch} and {seed}."
        )


def make_planner(
    problem: Problem,
    objective: str,
    budgets: Sequence[Budget],
    seed: int,
    warm: Sequence[Sequence[int]] = (),
    batch: int = 8,
    others: Sequence[str] = (),
) -> Planner:
    """What proposes, for the arguments of `explore`. Raises as `explore` for tables, budgets and warm
    assignments.
    """
    for name in (objective, *others):
        if name not in problem.scores:
            raise UnknownNameError("score table", name, problem.scores)
        if problem.interactions.get(name):
            raise UserError(
                f"A study corrects a table, and {name!r} has interactions beside it. Name an additive "
                f"objective; `warm` takes the optimum of {name!r}."
            )
    if not problem.costs:
        raise BudgetError(
            "The problem has no cost table, so there is nothing to trade the loss against. Give it one, "
            "such as size_bytes."
        )
    if all(b.resource in PEAKS for b in budgets):  # the front is drawn over something that adds up
        resource = "size_bytes" if "size_bytes" in problem.costs else next(iter(problem.costs))
        budgets = [Budget(resource, reachable(problem)[resource][1], "no limit"), *budgets]
    constraints = Constraints.of(problem, budgets)
    rows = constraints.layers.merge(problem.scores[objective])
    further = tuple(
        constraints.layers.merge(problem.scores[name]) for name in dict.fromkeys(others) if name != objective
    )
    return Planner(
        constraints,
        rows,
        seed,
        batch,
        tuple(constraints.layers.contract(indices) for indices in warm),
        further,
    )


def open_study(
    storage: BaseStorage, sampler: BaseSampler | None, resource: str, inputs: str, place: Place
) -> Study:
    """The study of these inputs, made where there is none.

    Args:
        storage: Where it lies.
        sampler: Optuna's, for who calls `study.ask`; None for one that is set later.
        resource: Its second objective.
        inputs: Digest of all that decides what is proposed.
        place: Its name, for Optuna and for messages.

    Raises:
        StudyError: The study there is one of other inputs.
    """
    with quiet():
        study = optuna.create_study(
            study_name=place.name,
            storage=storage,
            sampler=sampler,
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
    attrs = study.user_attrs
    if attrs.get(_INPUTS, inputs) != inputs or (_INPUTS not in attrs and study.get_trials(deepcopy=False)):
        raise StudyError(
            f"{place.url if place.name == STUDY_NAME else place.name} holds a study of another problem, "
            "sampler, objective, budget, seed, warm start or batch. "
            "Name another study, or remove the file."
        )
    if _INPUTS not in attrs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(["measured_loss", resource])
        study.set_user_attr(_INPUTS, inputs)
    return study


def _open_shared(
    storage: BaseStorage, sampler: CorrectedTableSampler, inputs: str, place: Place, sharing: Sharing
) -> Study:
    """The study, told what its workers need."""
    study = open_study(storage, sampler, sampler.planner.resource, inputs, place)
    attrs = study.user_attrs
    if sharing.job is not None and attrs.get(JOB) != sharing.job:
        study.set_user_attr(JOB, sharing.job)
    if attrs.get(FINISHED):
        study.set_user_attr(FINISHED, False)
    return study


@dataclass(frozen=True)
class _Proposals:
    """The sampler's proposals as waiting trials, batch by batch."""

    sampler: CorrectedTableSampler
    budgets: Sequence[Budget]

    def finished(self, study: Trials) -> set[int]:
        """Ordinals that are not to be tried again."""
        return set(finished(study, self.sampler.planner.constraints.layers))

    def next_trial(self, study: Trials, limit: int) -> FrozenTrial | None:
        """The next one, if its batch is open; see `queue.Proposer`."""
        open_now, done = pending(study, self.sampler.planner.constraints.layers), self.finished(study)
        ordinal = next(k for k in range(len(done) + len(open_now) + 1) if k not in done and k not in open_now)
        batch = self.sampler.batch_of(ordinal)
        if ordinal >= limit or any(self.sampler.batch_of(k) != batch for k in open_now):
            return None
        proposed = self.sampler.propose(study)
        return None if proposed is None else self._waiting(*proposed)

    def _waiting(self, ordinal: int, proposal: Proposal) -> FrozenTrial:
        constraints = self.sampler.planner.constraints
        cost = constraints.problem.cost(constraints.layers.expand(proposal.choices))
        return create_trial(
            state=TrialState.WAITING,
            params=self.sampler.params(proposal.choices),
            distributions=dict(self.sampler.search_space()),
            user_attrs={
                **self.sampler.attributes(ordinal, proposal),
                COST: getattr(cost, self.sampler.planner.resource),
            },
            constraints={
                b.resource: getattr(cost, b.resource) - constraints.limits[b.resource] for b in self.budgets
            },
        )


def measured_trials(study: Study, problem: Problem, trials: int) -> list[Trial]:
    """The first `trials` proposals that were measured, in their order. Raises MpsearchError where there is
    none.
    """
    found = []
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    by_ordinal = {t.user_attrs[ORDINAL]: t for t in complete if ORDINAL in t.user_attrs}
    for ordinal in sorted(k for k in by_ordinal if k < trials):
        attrs = by_ordinal[ordinal].user_attrs
        indices = tuple(attrs[INDICES])
        cost = problem.cost(indices)
        found.append(
            Trial(
                ordinal, indices, by_ordinal[ordinal].values[0], cost, attrs["feasible"], attrs[PROPOSED_BY]
            )
        )
    if not found:
        raise MpsearchError(
            "No trial had a finite loss. See the attribute `reason` of the study's trials, and check the "
            "model and the data."
        )
    return found
