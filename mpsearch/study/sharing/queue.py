"""A study's waiting trials as a queue: one process leads and fills it, any number of processes take from it, and what a dead one had is tried again.

Written down before it is measured, told once: Optuna's storage lets one process take a waiting trial and one finish a running one, so
whatever happens in between, an assignment is counted once. A trial's `ordinal` says which proposal it is; a second try has the same.
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

from mpsearch.errors import MpsearchError
from mpsearch.study.sampler import INDICES, INTERRUPTED, ORDINAL, REASON, Trials
from mpsearch.study.sharing.heartbeat import OWNER, Pulse, beating, dead, pulse_of, this_process
from mpsearch.study.sharing.pace import Pace
from mpsearch.study.sharing.storage import FINISHED, Hold

COST, LOST, JOB = "cost", "lost", "job"
"""Attributes: a trial's second value; why a trial must be tried again; of a study, what workers need to know."""
_OPEN = (TrialState.WAITING, TrialState.RUNNING)
_MOST_LOSSES = 5

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
        """A waiting trial, not yet added, of the least ordinal below `limit` that is neither finished nor open; None while it must wait for open ones."""

    def finished(self, study: Trials) -> set[int]:
        """Ordinals that are not to be tried again."""


class Snapshot:
    """A study's trials as one reading found them.

    Args:
        study: Read once.
    """

    def __init__(self, study: Study) -> None:
        self._trials = study.get_trials(deepcopy=False)

    def get_trials(self, deepcopy: bool = False, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """Those in these states; never copied."""
        return [t for t in self._trials if states is None or t.state in states]


def take(study: Study, pulse: Pulse) -> FrozenTrial | None:
    """Make a waiting trial this process's own; None where there is none. The sign of life comes first: a death in between is noticed."""
    trials = Snapshot(study)
    taken = {t.user_attrs.get(ORDINAL) for t in trials.get_trials(states=(TrialState.RUNNING, TrialState.COMPLETE))}
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


def evaluate(study: Study, trial: FrozenTrial, measure: Measure, pulse: Pulse, pace: Pace, say: Callable[[str], None]) -> bool:
    """Measure a taken trial and tell; whether it counted. A loss that is not finite fails it for good, an exception until it is tried again."""
    try:
        with beating(pulse, trial._trial_id, pace):
            loss = float(measure(tuple(trial.user_attrs[INDICES])))
    except BaseException as error:
        with contextlib.suppress(StorageInternalError):  # out of reach: it stays this process's own, which is found to be dead
            _give_back(study, trial, f"{type(error).__name__}: {error}" if isinstance(error, Exception) else None)
        raise
    return pace.patiently(lambda: _tell(study, trial, loss), say)


def _tell(study: Study, trial: FrozenTrial, loss: float) -> bool:
    storage, trial_id = study._storage, trial._trial_id
    try:
        if math.isfinite(loss):
            return storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [loss, trial.user_attrs[COST]])
        storage.set_trial_user_attr(trial_id, REASON, f"the measured loss is {loss}")
        return storage.set_trial_state_values(trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:  # this process was thought dead, or has told already and the answer was lost
        return False


def _give_back(study: Study, trial: FrozenTrial, lost: str | None) -> None:
    try:
        study._storage.set_trial_user_attr(trial._trial_id, REASON, INTERRUPTED)
        if lost is not None:
            study._storage.set_trial_user_attr(trial._trial_id, LOST, lost)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return


class Leader:
    """Keeps a study's queue filled until `trials` of it are done.

    Args:
        study: Held by this process alone.
        proposer: Says what to measure next.
        trials: In all.
        hold: On the study.
        sharing: With whom.
    """

    def __init__(self, study: Study, proposer: Proposer, trials: int, hold: Hold, sharing: Sharing) -> None:
        self._study, self._proposer, self._trials, self._hold, self._sharing = study, proposer, trials, hold, sharing
        self._pulse = pulse_of(study._storage, sharing.pace)
        self._lost = _losses(study)

    def run(self, measure: Measure, on_trial: Callable[[int, int], None] | None) -> None:
        """Until all is measured, or nothing is left to propose."""
        pace, say = self._sharing.pace, self._sharing.say
        told: int | None = None
        while True:
            self._sharing.watch()
            done, still_open, added = pace.patiently(self._round, say)
            if on_trial is not None and told is not None:
                for count in range(told + 1, done + 1):
                    on_trial(count, self._trials)
            told = done
            if added:
                continue
            if not still_open:
                return
            if not self._sharing.takes_part or work(self._study, measure, self._pulse, pace, say) is None:
                time.sleep(pace.poll_s)

    def _round(self) -> tuple[int, int, bool]:
        """Take back what the dead had, and add one proposal if it may be; how many ordinals are done and how many open, and whether one was added."""
        self._hold.check()
        trials = Snapshot(self._study)
        for trial in dead(self._pulse, self._study, trials):
            _give_back(self._study, trial, "its process died")
        self._stop_where_all_die(trials)
        self._drop_doubles(trials)
        proposed = self._proposer.next_trial(trials, self._trials)
        if proposed is not None:
            self._study.add_trial(proposed)
        done = {k for k in self._proposer.finished(trials) if k < self._trials}
        still_open = {t.user_attrs.get(ORDINAL, self._trials) for t in trials.get_trials(states=_OPEN)}
        return len(done), len({k for k in still_open if k < self._trials} - done), proposed is not None

    def _drop_doubles(self, trials: Trials) -> None:
        """A connection that breaks while a trial is added may leave it there twice; what waits beyond `trials` is for a later run."""
        seen = self._proposer.finished(trials)
        for trial in sorted(trials.get_trials(states=_OPEN), key=lambda t: (t.state == TrialState.WAITING, t.number)):
            ordinal = trial.user_attrs.get(ORDINAL)
            if trial.state == TrialState.WAITING and ordinal is not None and (ordinal in seen or ordinal >= self._trials):
                _give_back(self._study, trial, None)
            if ordinal is not None:
                seen.add(ordinal)

    def _stop_where_all_die(self, trials: Trials) -> None:
        for ordinal, why in _losses(trials).items():
            if len(why) >= _MOST_LOSSES and len(why) > len(self._lost.get(ordinal, ())):  # a new run may try once more
                raise MpsearchError(
                    f"Trial {ordinal} was lost {len(why)} times, at last because {why[-1]}. "
                    "Look at what the workers said and at their memory; the same command goes on from here."
                )


def _losses(trials: Trials) -> dict[int, list[str]]:
    """Ordinal -> why its tries were lost."""
    lost: dict[int, list[str]] = {}
    for trial in trials.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        if LOST in trial.user_attrs and ORDINAL in trial.user_attrs:
            lost.setdefault(trial.user_attrs[ORDINAL], []).append(trial.user_attrs[LOST])
    return lost


class Worker:
    """Takes trials of a run's studies until the run is finished.

    Args:
        found: The run's studies that are there by now.
        prepare: Makes a `measure` from a study's job; raises where this process cannot do it.
        pace: Intervals and patience of all processes.
        say: For what people should know.
    """

    def __init__(
        self, found: Callable[[], list[Study]], prepare: Callable[[Mapping[str, Any]], Measure], pace: Pace, say: Callable[[str], None] = lambda _: None
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
