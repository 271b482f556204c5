"""The process that proposes: it keeps the queue filled, measures too, and takes back what dead workers
held.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from optuna.study import Study
from optuna.trial import TrialState

from mpsearch.errors import MpsearchError
from mpsearch.study.sampler import ORDINAL, Trials
from mpsearch.study.sharing.heartbeat import dead, pulse_of
from mpsearch.study.sharing.queue import (
    LOST,
    MOST_LOSSES,
    OPEN,
    Measure,
    Proposer,
    Sharing,
    Snapshot,
    give_back,
    work,
)
from mpsearch.study.sharing.storage import Hold


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
        self._study, self._proposer, self._trials, self._hold, self._sharing = (
            study,
            proposer,
            trials,
            hold,
            sharing,
        )
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
        """Take back what the dead had, and add one proposal if it may be; how many ordinals are done and how
        many open, and whether one was added.
        """
        self._hold.check()
        trials = Snapshot(self._study)
        for trial in dead(self._pulse, self._study, trials):
            give_back(self._study, trial, "its process died")
        self._stop_where_all_die(trials)
        self._drop_doubles(trials)
        proposed = self._proposer.next_trial(trials, self._trials)
        if proposed is not None:
            self._study.add_trial(proposed)
        done = {k for k in self._proposer.finished(trials) if k < self._trials}
        still_open = {t.user_attrs.get(ORDINAL, self._trials) for t in trials.get_trials(states=OPEN)}
        return len(done), len({k for k in still_open if k < self._trials} - done), proposed is not None

    def _drop_doubles(self, trials: Trials) -> None:
        """A connection that breaks while a trial is added may leave it there twice; what waits beyond
        `trials` is for a later run.
        """
        seen = self._proposer.finished(trials)
        for trial in sorted(
            trials.get_trials(states=OPEN), key=lambda t: (t.state == TrialState.WAITING, t.number)
        ):
            ordinal = trial.user_attrs.get(ORDINAL)
            if (
                trial.state == TrialState.WAITING
                and ordinal is not None
                and (ordinal in seen or ordinal >= self._trials)
            ):
                give_back(self._study, trial, None)
            if ordinal is not None:
                seen.add(ordinal)

    def _stop_where_all_die(self, trials: Trials) -> None:
        for ordinal, why in _losses(trials).items():
            if len(why) >= MOST_LOSSES and len(why) > len(
                self._lost.get(ordinal, ())
            ):  # a new run may try once more
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
