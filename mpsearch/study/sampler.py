"""`CorrectedTableSampler`: the search as an Optuna sampler that keeps nothing but what the study's trials
say.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mpsearch.problem import Choices
from mpsearch.solvers.tables.groups import SuperLayers
from mpsearch.study.proposals import Planner, Proposal, Result

ORDINAL, INDICES, PROPOSED_BY, REASON = "ordinal", "indices", "proposed_by", "reason"
INTERRUPTED = "interrupted"
"""Reason of a failed trial that is to be tried again; any other reason is final."""


class Trials(Protocol):
    """What is read of a study; a study is one."""

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Trials in these states, in the order of their numbers."""


class CorrectedTableSampler(BaseSampler):
    """Proposes exact optima of the proxy, then of the proxy corrected by the trials, and their neighbours.

    A proposal's `ordinal` is its place in the sequence; its batch follows from that. The proposals of a batch
    depend on the finished trials of earlier batches alone, so a study that was killed and continued proposes
    what it would have proposed.

    Args:
        planner: What proposes.
    """

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self._first: list[Proposal] = []
        self._batch: tuple[int, list[Result], list[Proposal]] = (0, [], [])
        self._independent = RandomSampler(seed=planner.seed)

    def propose(self, study: Trials) -> tuple[int, Proposal] | None:
        """Ordinal and assignment of the next trial; None where nothing is left to propose."""
        layers = self.planner.constraints.layers
        running, done = (
            pending(study, layers),
            finished(study, layers),
        )  # in this order: what ends in between is in both, not in neither
        ordinal = next(k for k in range(len(done) + len(running) + 1) if k not in done and k not in running)
        number = self.batch_of(ordinal) - 1
        if number < 0:
            return ordinal, self._first[ordinal]
        before = len(self._first) + number * self.planner.batch
        place = ordinal - before
        results = [done[k] for k in sorted(done) if k < before]
        if self._batch[:2] != (number, results):
            self._batch = (
                number,
                results,
                self.planner.following(number + 1, results, [c for k, c in running.items() if k < before]),
            )
        proposals = self._batch[2]
        return (ordinal, proposals[place]) if place < len(proposals) else None

    def batch_of(self, ordinal: int) -> int:
        """Number of the batch that an ordinal is in, from 0; its proposals need the results of every batch
        before.
        """
        self._first = self._first or self.planner.first()
        return 0 if ordinal < len(self._first) else 1 + (ordinal - len(self._first)) // self.planner.batch

    def search_space(self) -> dict[str, IntDistribution]:
        """One index for each super-layer with more than one candidate, under the name of its first layer."""
        layers = self.planner.constraints.layers
        names = [self.planner.constraints.problem.layers[group[0]].name for group in layers.groups]
        return {
            name: IntDistribution(0, width - 1)
            for name, width in zip(names, layers.widths, strict=True)
            if width > 1
        }

    def params(self, choices: Choices) -> dict[str, int]:
        """Optuna's parameters of M choices."""
        layers = self.planner.constraints.layers
        names = [self.planner.constraints.problem.layers[group[0]].name for group in layers.groups]
        return {
            name: choice
            for name, choice, width in zip(names, choices, layers.widths, strict=True)
            if width > 1
        }

    def attributes(self, ordinal: int, proposal: Proposal) -> dict[str, Any]:
        """User attributes of a trial."""
        indices = self.planner.constraints.layers.expand(proposal.choices)
        fits = self.planner.constraints.fits(indices)
        return {ORDINAL: ordinal, INDICES: list(indices), PROPOSED_BY: proposal.proposed_by, "feasible": fits}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space: every parameter is proposed together."""
        return dict(self.search_space())

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """For `study.ask` and `study.optimize`; leaves the trial its attributes, as Optuna's own samplers
        do.
        """
        proposed = self.propose(study)
        if proposed is None:
            return {}
        for key, value in self.attributes(*proposed).items():
            study._storage.set_trial_user_attr(trial._trial_id, key, value)
        return self.params(proposed[1].choices)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Random; only once every assignment that fits has been measured."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def finished(study: Trials, layers: SuperLayers) -> dict[int, Result]:
    """Ordinal -> choices by super-layer and loss, of the trials that are not to be tried again."""
    found = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
        complete = trial.state == TrialState.COMPLETE
        if ORDINAL in trial.user_attrs and (
            complete or trial.user_attrs.get(REASON, INTERRUPTED) != INTERRUPTED
        ):
            found[int(trial.user_attrs[ORDINAL])] = Result(
                _choices(trial, layers), trial.values[0] if complete else None
            )
    return found


def pending(study: Trials, layers: SuperLayers) -> dict[int, Choices]:
    """Ordinal -> choices of the trials that wait or are being measured."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    return {
        int(t.user_attrs[ORDINAL]): _choices(t, layers)
        for t in trials
        if ORDINAL in t.user_attrs and INDICES in t.user_attrs
    }


def _choices(trial: FrozenTrial, layers: SuperLayers) -> Choices:
    return layers.contract(trial.user_attrs[INDICES])
