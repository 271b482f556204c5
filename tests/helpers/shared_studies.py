"""A cheap study, the workers that share it, and what must be true of its trials whatever befell them."""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import optuna
from search_problems import interacting

from mpsearch.errors import StudyError
from mpsearch.problem import Budget
from mpsearch.solvers import reachable
from mpsearch.study import explore
from mpsearch.study.sharing import heartbeat
from mpsearch.study.sharing.pace import Pace
from mpsearch.study.sharing.queue import Sharing, Worker
from mpsearch.study.sharing.storage import Studies

PACE = Pace(poll_s=0.05, beat_s=1, grace_s=3, patience_s=60)
RUN, DIGEST = "run", "0" * 16


def setting():
    p, loss = interacting(8, 1)
    low, high = reachable(p)["size_bytes"]
    return p, loss, [Budget("size_bytes", low + 0.35 * (high - low), "budget")]


def lead(studies, trials, sharing, measure=None):
    p, loss, budgets = setting()
    found = explore(
        p, "proxy", budgets, measure or loss, studies.place(DIGEST), trials, seed=3, batch=8, sharing=sharing
    )
    studies.finish()
    return found


def work(where, log, seconds, elsewhere=False):
    """A worker that takes its time, writes down what it measured, and may pretend to be on another host."""
    if elsewhere:
        heartbeat._machine = lambda: f"host-{os.getpid()}"
    _, loss, _ = setting()
    draw = random.Random(os.getpid())

    def measure(indices):
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()} {','.join(map(str, indices))}\n")
        time.sleep(draw.uniform(0.5, 1.5) * seconds)
        return loss(indices)

    with contextlib.closing(Studies(where, RUN, PACE)) as studies:
        Worker(studies.found, lambda job: measure, PACE).run()


def lead_too(where, answers):
    with contextlib.closing(Studies(where, RUN, PACE)) as studies:
        try:
            answers.put(str(lead(studies, 9, Sharing(pace=PACE))))
        except StudyError as error:
            answers.put(str(error))


def busy(study, process):
    """Whether a process has a trial."""
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    return any((t.user_attrs.get(heartbeat.OWNER) or {}).get("pid") == process.pid for t in running)


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def check_accounts(study, trials, kills):
    """Every proposal has one complete trial and nothing is open; whatever else is there failed, and was tried
    again.
    """
    states = Counter(t.state.name for t in study.trials)
    done = [t.user_attrs["ordinal"] for t in study.trials if t.state.name == "COMPLETE"]
    assert sorted(done) == list(range(trials))
    assert set(states) <= {"COMPLETE", "FAIL"}
    assert states["FAIL"] <= kills
    for failed in (t for t in study.trials if t.state.name == "FAIL"):
        assert failed.user_attrs["reason"] == "interrupted"
        again = next(
            t
            for t in study.trials
            if t.state.name == "COMPLETE" and t.user_attrs["ordinal"] == failed.user_attrs["ordinal"]
        )
        assert again.user_attrs["indices"] == failed.user_attrs["indices"] and again.number > failed.number
    return states


__all__ = [
    "DIGEST",
    "PACE",
    "RUN",
    "Sharing",
    "Studies",
    "busy",
    "check_accounts",
    "kill",
    "lead",
    "lead_too",
    "setting",
    "work",
]
