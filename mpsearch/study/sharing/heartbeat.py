"""Signs of life of the processes that measure, and which of them are dead."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mpsearch.study.sampler import Trials
from mpsearch.study.sharing.pace import Pace

OWNER, BEAT = "owner", "beat"


class Pulse(Protocol):
    """How a storage keeps signs of life."""

    def beat(self, trial_id: int) -> None:
        """A sign of life of the process that measures a trial, or is about to take it."""

    def silent(self, study: Study, running: list[FrozenTrial]) -> set[int]:
        """Ids of those running trials whose process gave no sign of life for the grace."""


class ServerPulse:
    """Optuna's heartbeat table, by the clock of the server.

    Args:
        storage: With heartbeats on.
    """

    def __init__(self, storage: BaseHeartbeat) -> None:
        self._storage = storage

    def beat(self, trial_id: int) -> None:
        """See `Pulse`."""
        self._storage.record_heartbeat(trial_id)

    def silent(self, study: Study, running: list[FrozenTrial]) -> set[int]:
        """See `Pulse`."""
        return (
            set(self._storage._get_stale_trial_ids(study._study_id)) & {t._trial_id for t in running}
            if running
            else set()
        )


class JournalPulse:
    """An attribute of the trial. Clocks of hosts may differ, so silence is what this process has seen not to
    change for the grace, by its own clock.

    Args:
        storage: Journal.
        pace: For the grace.
    """

    def __init__(self, storage: BaseStorage, pace: Pace) -> None:
        self._storage, self._grace_s = storage, pace.grace_s
        self._seen: dict[int, tuple[Any, float]] = {}

    def beat(self, trial_id: int) -> None:
        """See `Pulse`."""
        self._storage.set_trial_user_attr(trial_id, BEAT, time.time())

    def silent(self, study: Study, running: list[FrozenTrial]) -> set[int]:
        """See `Pulse`."""
        now, before = time.monotonic(), self._seen
        self._seen = {}
        for trial in running:
            beat = trial.user_attrs.get(BEAT)
            held = before.get(trial._trial_id)
            self._seen[trial._trial_id] = held if held is not None and held[0] == beat else (beat, now)
        return {trial_id for trial_id, (_, since) in self._seen.items() if now - since > self._grace_s}


def pulse_of(storage: BaseStorage, pace: Pace) -> Pulse:
    """The storage's way."""
    if is_heartbeat_enabled(storage):
        assert isinstance(storage, BaseHeartbeat)
        return ServerPulse(storage)
    return JournalPulse(storage, pace)


@contextlib.contextmanager
def beating(pulse: Pulse, trial_id: int, pace: Pace) -> Iterator[None]:
    """A sign of life every `beat_s` until the body ends."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(pace.beat_s):
            try:
                pulse.beat(trial_id)
            except StorageInternalError:
                continue  # out of reach for now: the grace is there for that
            except UpdateFinishedTrialError:
                return  # it was given to another process; the end of the measurement finds that out

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def dead(pulse: Pulse, study: Study, trials: Trials) -> list[FrozenTrial]:
    """Running ones of a study's trials whose process is gone: at once where it was one of this machine, else
    after the grace.
    """
    running = trials.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    silent = pulse.silent(study, running)
    return [t for t in running if t._trial_id in silent or gone(t.user_attrs.get(OWNER))]


def this_process() -> dict[str, Any]:
    """What tells this process from every other one."""
    return {"host": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def gone(owner: dict[str, Any] | None) -> bool:
    """Whether a process of this machine has ended; False where that cannot be known."""
    if not owner or owner["host"] != _machine():
        return False
    if not psutil.pid_exists(owner["pid"]):
        return True
    return bool(
        _started(owner["pid"]) != owner["started"]
    )  # another process got its number, or it is a zombie


def _machine() -> str:
    """Host, its boot, and the namespace that process numbers are counted in: containers may share a name."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115  (no path: pid:[4026531836])
    return "/".join(parts)


def _started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process that is not a zombie; None where the system does not
    tell, or there is none.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
