"""The study on the measured loss: same trials however it is interrupted, never one twice, better than the
proxy alone.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import optuna
import pytest
from search_problems import every_assignment, problem
from trial_studies import TRIALS, load, setting

from mpsearch.errors import (
    BudgetError,
    InfeasibleError,
    MpsearchError,
    OptionError,
    StudyError,
    UnknownNameError,
    UserError,
)
from mpsearch.problem import Budget
from mpsearch.solvers import solve
from mpsearch.study import CorrectedTableSampler, explore
from mpsearch.study import optuna_study as study_module
from mpsearch.study.sharing.journal import GRACE_S


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    p, loss, budgets = setting()
    return explore(
        p,
        "proxy",
        budgets,
        loss,
        tmp_path_factory.mktemp("study") / "journal.log",
        TRIALS,
        seed=3,
        warm=[(5,) * 12, (0,) * 12],
    )


@pytest.mark.parametrize(
    ("stop", "error"),
    [
        (1, KeyboardInterrupt),
        (2, RuntimeError),
        (12, KeyboardInterrupt),
        (20, KeyboardInterrupt),
        (30, RuntimeError),
    ],
)
def test_an_interrupted_study_continues_as_if_it_had_not_been(tmp_path, undisturbed, stop, error):
    p, loss, budgets = setting()
    calls = []

    def failing(indices):
        calls.append(indices)
        if len(calls) == stop:
            raise error
        return loss(indices)

    arguments = (tmp_path / "journal.log", TRIALS, 3, [(5,) * 12, (0,) * 12])
    with pytest.raises(error):
        explore(p, "proxy", budgets, failing, *arguments)
    assert explore(p, "proxy", budgets, failing, *arguments) == undisturbed
    assert len(calls) == TRIALS + 1


DYING = """
import os, sys
from dataclasses import replace
from pathlib import Path
from trial_studies import TRIALS, setting
from mpsearch.study import explore
p, loss, budgets = setting()
left = int(sys.argv[2])
def measure(indices):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
    return loss(indices)
explore(p, "proxy", budgets, measure, Path(sys.argv[1]), TRIALS, 3, [(5,) * 12, (0,) * 12])
"""


def test_a_dead_process_a_torn_line_and_a_stale_lock_change_nothing(tmp_path, undisturbed):
    path = tmp_path / "journal.log"
    for left in (5, 9):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        died = subprocess.run(
            [sys.executable, "-c", DYING, str(path), str(left)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert died.returncode == 9, died.stderr
        with path.open("ab") as journal:
            journal.write(b'{"op_code": 6, "worker_id": "torn')
        lock = path.with_name(path.name + ".lock")
        lock.touch()
        os.utime(lock, (time.time() - 60,) * 2)
    assert any(t.state == optuna.trial.TrialState.RUNNING for t in trials_on_disk(path))
    p, loss, budgets = setting()
    start = time.monotonic()
    assert explore(p, "proxy", budgets, loss, path, TRIALS, 3, [(5,) * 12, (0,) * 12]) == undisturbed
    assert time.monotonic() - start < GRACE_S
    states = [t.state.name for t in load(path).trials]
    assert (states.count("COMPLETE"), states.count("FAIL"), states.count("RUNNING")) == (TRIALS, 2, 0)


def trials_on_disk(path):
    copy = path.with_name("copy.log")
    copy.write_bytes(path.read_bytes()[: path.read_bytes().rfind(b"\n") + 1])
    return load(copy).trials


def test_more_trials_go_on_where_the_study_ended(tmp_path, undisturbed):
    p, loss, budgets = setting()
    warm = [(5,) * 12, (0,) * 12]
    short = explore(p, "proxy", budgets, loss, tmp_path / "journal.log", 14, 3, warm)
    progress = []
    assert (
        explore(
            p,
            "proxy",
            budgets,
            loss,
            tmp_path / "journal.log",
            TRIALS,
            3,
            warm,
            lambda *at: progress.append(at),
        )
        == undisturbed
    )
    assert short == undisturbed[:14]
    assert progress == [(k, TRIALS) for k in range(15, TRIALS + 1)]
    assert (
        explore(
            p,
            "proxy",
            budgets,
            lambda _: pytest.fail("measured again"),
            tmp_path / "journal.log",
            14,
            3,
            warm,
        )
        == short
    )


def test_trials_are_distinct_and_keep_the_budget(undisturbed):
    _, _, budgets = setting()
    assert len({t.indices for t in undisturbed}) == len(undisturbed) == TRIALS
    assert [t.proposed_by for t in undisturbed[:2]] == ["warm", "warm"]
    assert [t.feasible for t in undisturbed] == [t.cost.size_bytes <= budgets[0].limit for t in undisturbed]
    assert [t.number for t in undisturbed if not t.feasible] == [0]
    assert {"exact front", "front", "neighbour"} <= {t.proposed_by for t in undisturbed}


def test_optuna_reads_the_study(tmp_path):
    p, loss, budgets = setting()
    found = explore(p, "proxy", budgets, loss, tmp_path / "journal.log", 16, 0, warm=[(5,) * 12])
    study = load(tmp_path / "journal.log")
    assert study.metric_names == ["measured_loss", "size_bytes"]
    best = min((t for t in found if t.feasible), key=lambda t: t.loss)
    assert best.indices in [tuple(t.user_attrs["indices"]) for t in study.best_trials]
    assert all(t.user_attrs["feasible"] for t in study.best_trials)
    assert {*study.trials[0].params} == {f"l{i}" for i in range(12)}
    assert study.trials[0].constraints == {"size_bytes": found[0].cost.size_bytes - budgets[0].limit}
    assert study.trials[3].values == [found[3].loss, found[3].cost.size_bytes]


def test_the_sampler_serves_an_ordinary_study(tmp_path):
    p, loss, budgets = setting()
    expected = explore(p, "proxy", budgets, loss, tmp_path / "journal.log", 20, 5)
    sampler = CorrectedTableSampler(study_module.make_planner(p, "proxy", budgets, 5))
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)

    def objective(trial):
        indices = tuple(trial.suggest_int(f"l{i}", 0, 5) for i in range(12))
        return loss(indices), p.cost(indices).size_bytes

    study.optimize(objective, n_trials=20)
    assert [tuple(t.user_attrs["indices"]) for t in study.trials] == [t.indices for t in expected]


@pytest.mark.parametrize("seed", [2, 3])
def test_better_than_the_proxy_alone_and_than_random(tmp_path, seed):
    p, loss, budgets = setting(30, seed)
    found = explore(p, "proxy", budgets, loss, tmp_path / "journal.log", 64, seed)
    rng = np.random.default_rng(seed)
    fitting = []
    while len(fitting) < 64:  # random, and made to fit by lowering layers at random
        x = rng.integers(0, 6, 30)
        while p.cost(x).size_bytes > budgets[0].limit:
            x[rng.choice(np.flatnonzero(x))] -= 1
        fitting.append(loss(tuple(x)) - 1.2)
    proxy, best = found[0].loss - 1.2, min(t.loss for t in found if t.feasible) - 1.2
    assert best < 0.95 * proxy
    assert best < 0.5 * min(fitting)


def test_losses_that_are_not_finite_are_left_behind(tmp_path):
    p, loss, budgets = setting()
    calls = []

    def measure(indices):
        calls.append(indices)
        return {2: math.nan, 5: math.inf}.get(len(calls), loss(indices))

    found = explore(p, "proxy", budgets, measure, tmp_path / "journal.log", 16, 0)
    assert [t.number for t in found] == [k for k in range(16) if k not in (1, 4)]
    reasons = [
        t.user_attrs["reason"] for t in load(tmp_path / "journal.log").trials if t.state.name == "FAIL"
    ]
    assert reasons == ["the measured loss is nan", "the measured loss is inf"]
    explore(p, "proxy", budgets, measure, tmp_path / "journal.log", 20, 0)
    assert len(set(calls)) == len(calls) == 20
    with pytest.raises(MpsearchError, match="No trial had a finite loss"):
        explore(p, "proxy", budgets, lambda _: math.nan, tmp_path / "other.log", 10, 0)


def test_a_small_space_is_exhausted_and_ties_are_kept(tmp_path):
    p = problem([[3, 2, 0], [3, 1, 0], [1, 0, 0.5]], {"size_bytes": [[1, 2, 3]] * 3}, ["a", None, "a"])
    budget = Budget("size_bytes", 7, "")
    found = explore(p, "proxy", [budget], lambda x: float(sum(x)), tmp_path / "journal.log", 50, 0)
    assert {t.indices for t in found} == {x for x in every_assignment(p) if p.cost(x).size_bytes <= 7}
    assert {*load(tmp_path / "journal.log").trials[0].params} == {"l0", "l1"}


def test_without_a_budget_and_with_two(tmp_path):
    p = problem([[9, 4, 1, 0]] * 6, {"size_bytes": [[2, 3, 4, 8]] * 6, "latency_us": [[3.5, 3.25, 3, 4]] * 6})
    measure = lambda x: float(sum((3 - i) ** 2 for i in x))  # noqa: E731
    free = explore(p, "proxy", [], measure, tmp_path / "free.log", 24, 0)
    assert min(t.loss for t in free) == 0 and all(t.feasible for t in free)
    both = [Budget("latency_us", 20, ""), Budget("size_bytes", 30, "")]
    found = explore(p, "proxy", both, measure, tmp_path / "both.log", 24, 0)
    assert all(t.cost.latency_us <= 20 and t.cost.size_bytes <= 30 for t in found) and len(found) == 24
    assert load(tmp_path / "both.log").metric_names == ["measured_loss", "latency_us"]


def test_what_is_wrong_is_said(tmp_path):
    p, loss, budgets = setting()
    path = tmp_path / "journal.log"
    explore(p, "proxy", budgets, loss, path, 2, 0)
    with pytest.raises(StudyError, match="another problem, sampler, objective, budget, seed"):
        explore(p, "proxy", budgets, loss, path, 2, seed=1)
    with pytest.raises(StudyError, match="Another process is exploring"):
        explore(p, "proxy", budgets, lambda _: busy(path), path, 3, 0)
    path.write_text("not a journal\n" + path.read_text())
    with pytest.raises(StudyError, match="Line 1 of"):
        explore(p, "proxy", budgets, loss, path, 2, 0)
    other = tmp_path / "other.log"
    with pytest.raises(OptionError, match="at least 1 trial"):
        explore(p, "proxy", budgets, loss, other, 0, 0)
    with pytest.raises(UnknownNameError):
        explore(p, "proxi", budgets, loss, other, 1, 0)
    with pytest.raises(UserError, match="choice 6; it has the choices 0 to 5"):
        explore(p, "proxy", budgets, loss, other, 1, 0, warm=[(6,) * 12])
    with pytest.raises(InfeasibleError, match="least reachable"):
        explore(p, "proxy", [Budget("size_bytes", 1, "1B")], loss, other, 1, 0)
    with pytest.raises(BudgetError, match="no cost table"):
        explore(problem([[0, 1]], {}), "proxy", [], loss, other, 1, 0)
    assert not other.exists()


def busy(path):
    """Tries, from another process, what `open_journal` does; raises here what it raised there."""
    code = (
        "import sys; from pathlib import Path; from mpsearch.study.sharing.journal import "
        "open_journal\nwith open_journal(Path(sys.argv[1])): pass"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "StudyError" in ended.stderr
    raise StudyError(ended.stderr.splitlines()[-1])


def test_the_search_imports_no_torch():
    code = "import sys, mpsearch.study; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_optima_of_other_proxies_are_measured(tmp_path):
    p, loss, budgets = setting()
    scores = {
        **p.scores,
        "other": tuple(tuple(v * (1 + i) for v in row) for i, row in enumerate(p.scores["proxy"])),
    }
    p = replace(p, scores=scores)
    found = explore(p, "proxy", budgets, loss, tmp_path / "journal.log", 12, 0, others=["other", "proxy"])
    assert [t.indices for t in found if t.proposed_by == "other proxy"] == [
        solve(p, "other", budgets).indices
    ]
    with pytest.raises(UnknownNameError, match="nothing"):
        explore(p, "proxy", budgets, loss, tmp_path / "journal.log", 12, 0, others=["nothing"])
    with pytest.raises(StudyError, match="another"):
        explore(p, "proxy", budgets, loss, tmp_path / "journal.log", 12, 0)
