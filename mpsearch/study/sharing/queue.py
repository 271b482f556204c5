"""A study's waiting trials as a queue: one process leads and fills it, any number of processes take from it,
and what a dead one had is tried again.

Written down before it is measured, told once: Optuna's storage lets one process take a waiting trial and one
finish a running one, so whatever happens in between, an assignment is counted once. A trial's `ordinal` says
which proposal it is; a second try has the same.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mpsearch.study.sampler import INDICES, INTERRUPTED, ORDINAL, REASON, Trials
from mpsearch.study.sharing.heartbeat import OWNER, Pulse, beating, pulse_of, this_process
from mpsearch.study.sharing.pace import Pace
from mpsearch.study.sharing.storage import FINISHED

COST, LOST, JOB = "cost", "lost", "job"
"""Attributes: a trial's second value; why a trial must be tried again; of a study, what workers need to
know.
"""
OPEN = (TrialState.WAITING, TrialState.RUNNING)
MOST_LOSSES = 5

Measure = Callable[[tuple[int, ...]], float]


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Sharing:
    """How a study is shared with other processes.

    Args:
        takes_part: Whether the leading process measures too; False leaves everything to workers.
        job: Plain data that workers make their `measure` from.
        watch: Called again and again while trials are waited for; may raise.
        pace: Intervals and patience of all processes.
        say: For what people should know.
    """

    takes_part: bool = True
    job: Mapping[str, Any] | None = None
    watch: Callable[[], None] = _nothing
    pace: Pace = field(default_factory=Pace)
    say: Callable[[str], None] = lambda _: None


class Proposer(Protocol):
    """What the leader fills the queue from."""

    def next_trial(self, study: Trials, limit: int) -> FrozenTrial | None:
        """A waiting trial, not yet added, of the least ordinal below `limit` that is neither finished nor
        open; None while it must wait for open ones.
        """

    def finished(self, study: Trials) -> set[int]:
        """Ordinals that are not to be tried again."""


class Snapshot:
    """A study's trials as one reading found them.

    Args:
        study: Read once.
    """

    def __init__(self, study: Study) -> None:
        self._trials = study.get_trials(deepcopy=False)

    def get_trials(
        self, deepcopy: bool = False, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Those in these states; never copied."""
        return [t for t in self._trials if states is None or t.state in states]


def take(study: Study, pulse: Pulse) -> FrozenTrial | None:
    """Make a waiting trial this process's own; None where there is none. The sign of life comes first: a
    death in between is noticed.
    """
    trials = Snapshot(study)
    taken = {
        t.user_attrs.get(ORDINAL) for t in trials.get_trials(states=(TrialState.RUNNING, TrialState.COMPLETE))
    }
    for trial in trials.get_trials(states=(TrialState.WAITING,)):
        if ORDINAL not in trial.user_attrs or trial.user_attrs[ORDINAL] in taken:
            continue
        try:
            pulse.beat(trial._trial_id)
            if study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                study._storage.set_trial_user_attr(trial._trial_id, OWNER, this_process())
                return trial
        except UpdateFinishedTrialError:
            continue
    return None


def work(study: Study, measure: Measure, pulse: Pulse, pace: Pace, say: Callable[[str], None]) -> bool | None:
    """Take a trial and evaluate it; whether it counted, None where none was waiting."""
    trial = pace.patiently(lambda: take(study, pulse), say)
    return None if trial is None else evaluate(study, trial, measure, pulse, pace, say)


def evaluate(
    study: Study, trial: FrozenTrial, measure: Measure, pulse: Pulse, pace: Pace, say: Callable[[str], None]
) -> bool:
    """Measure a taken trial and tell; whether it counted. A loss that is not finite fails it for good, an
    exception until it is tried again.
    """
    try:
        with beating(pulse, trial._trial_id, pace):
            loss = float(measure(tuple(trial.user_attrs[INDICES])))
    except BaseException as error:
        with contextlib.suppress(
            StorageInternalError
        ):  # out of reach: it stays this process's own, which is found to be dead
            give_back(
                study, trial, f"{type(error).__name__}: {error}" if isinstance(error, Exception) else None
            )
        raise
    return pace.patiently(lambda: _tell(study, trial, loss), say)


def _tell(study: Study, trial: FrozenTrial, loss: float) -> bool:
    storage, trial_id = study._storage, trial._trial_id
    try:
        if math.isfinite(loss):
            return storage.set_trial_state_values(
                trial_id, TrialState.COMPLETE, [loss, trial.user_attrs[COST]]
            )
        storage.set_trial_user_attr(trial_id, REASON, f"the measured loss is {loss}")
        return storage.set_trial_state_values(trial_id, TrialState.FAIL)
    except (
        UpdateFinishedTrialError
    ):  # this process was thought dead, or has told already and the answer was lost
        return False


def give_back(study: Study, trial: FrozenTrial, lost: str | None) -> None:
    """Fail a trial so that it is tried again; `lost` is the error that ended its measuring, None where it was
    only interrupted.
    """
    try:
        study._storage.set_trial_user_attr(trial._trial_id, REASON, INTERRUPTED)
        if lost is not None:
            study._storage.set_trial_user_attr(trial._trial_id, LOST, lost)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return


class Worker:
    """Takes trials of a run's studies until the run is finished.

    Args:
        found: The run's studies that are there by now.
        prepare: Makes a `measure` from a study's job; raises where this process cannot do it.
        pace: Intervals and patience of all processes.
        say: For what people should know.
    """

    def __init__(
        self,
        found: Callable[[], list[Study]],
        prepare: Callable[[Mapping[str, Any]], Measure],
        pace: Pace,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._found, self._prepare, self._pace, self._say = found, prepare, pace, say
        self._ready: dict[int, tuple[Study, Measure, Pulse]] = {}

    def run(self, on_trial: Callable[[int], None] | None = None) -> int:
        """How many trials it measured."""
        count = 0
        while True:
            at = self._pace.patiently(self._open, self._say)
            if at is None:
                return count
            for study in at:
                counted = work(study, *self._tools(study), self._pace, self._say)
                if counted is not None:
                    count += counted
                    if on_trial is not None:
                        on_trial(count)
                    break
            else:
                time.sleep(self._pace.poll_s)

    def _open(self) -> list[Study] | None:
        """Studies that may have work; None once the run is finished."""
        found = [(study, study.user_attrs) for study in self._found()]
        if found and all(attrs.get(FINISHED) for _, attrs in found):
            return None
        return [study for study, attrs in found if JOB in attrs and not attrs.get(FINISHED)]

    def _tools(self, study: Study) -> tuple[Measure, Pulse]:
        if id(study) not in self._ready:
            job = self._pace.patiently(lambda: study.user_attrs[JOB], self._say)
            self._ready[id(study)] = study, self._prepare(job), pulse_of(study._storage, self._pace)
        return self._ready[id(study)][1:]
