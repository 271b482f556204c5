"""Optuna's own samplers as baselines: budgets as constraints, nothing measured twice, resumable, and
assignments that are measured first.
"""

from __future__ import annotations

import pytest
from search_problems import every_assignment, interacting, problem
from trial_studies import load, setting

from mpsearch.errors import MpsearchError, StudyError, UnknownNameError
from mpsearch.problem import Budget
from mpsearch.solvers import reachable, solve
from mpsearch.study import baselines, explore
from mpsearch.study.baselines import POPULATION, SAMPLERS, explore_by

BASELINES = [name for name in SAMPLERS if name != "mpsearch"]


@pytest.mark.parametrize("name", BASELINES)
def test_trials_are_distinct_resumable_and_readable(tmp_path, name):
    p, loss, budgets = setting()
    calls = []

    def failing(indices):
        calls.append(indices)
        if len(calls) in (4, 22):
            raise KeyboardInterrupt
        return loss(indices)

    warm = [(0,) * 12]
    expected = explore_by(name, p, "proxy", budgets, loss, tmp_path / "a.log", 30, 1, warm)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            explore_by(name, p, "proxy", budgets, failing, tmp_path / "b.log", 30, 1, warm)
    assert explore_by(name, p, "proxy", budgets, failing, tmp_path / "b.log", 30, 1, warm) == expected
    assert len(calls) == 32
    assert len({t.indices for t in expected}) == 30 and expected[0].indices == (0,) * 12
    assert [t.feasible for t in expected] == [t.cost.size_bytes <= budgets[0].limit for t in expected]
    assert name in {t.proposed_by for t in expected}
    told = {t.user_attrs["ordinal"]: t for t in load(tmp_path / "a.log").trials if "ordinal" in t.user_attrs}
    for t in expected:
        assert told[t.number].values == [t.loss, t.cost.size_bytes]
        assert told[t.number].constraints == {"size_bytes": t.cost.size_bytes - budgets[0].limit}
        assert told[t.number].user_attrs["feasible"] == t.feasible
    best = load(tmp_path / "a.log").best_trials
    assert best and all(t.user_attrs["feasible"] for t in best if "feasible" in t.user_attrs)


@pytest.mark.parametrize(("name", "made_by"), [("nsga2", "NSGAIISampler"), ("tpe", "TPESampler")])
def test_what_is_measured_first_is_given_and_all_else_is_chosen_by_optuna(
    tmp_path, monkeypatch, name, made_by
):
    p, loss, budgets = setting()
    asked = []
    real = getattr(baselines, made_by)
    sample = real.sample_relative
    monkeypatch.setattr(
        real,
        "sample_relative",
        lambda self, study, trial, space: asked.append(trial.number) or sample(self, study, trial, space),
    )
    found = explore_by(name, p, "proxy", budgets, loss, tmp_path / "a.log", POPULATION + 8, 0, [(0,) * 12])
    assert [t.proposed_by for t in found] == ["warm", "exact front", *[name] * (POPULATION + 6)]
    assert found[1].indices == solve(p, "proxy", budgets).indices
    trials = [
        t for t in load(tmp_path / "a.log").trials if "ordinal" in t.user_attrs
    ]  # the others repeat what was measured
    assert {t.number for t in trials if t.user_attrs["proposed_by"] == name} <= set(asked)
    assert all(t.params == {f"l{i}": c for i, c in enumerate(t.user_attrs["indices"])} for t in trials)


def test_nsga2_has_generations(tmp_path):
    """Children have most choices of their parents, and more of them keep the budget than of random draws."""
    p, loss, budgets = setting()
    found = explore_by("nsga2", p, "proxy", budgets, loss, tmp_path / "a.log", 4 * POPULATION, 0)
    drawn, bred = found[1 : POPULATION + 1], found[2 * POPULATION + 1 :]
    genes = [{t.indices[i] for t in found[: 2 * POPULATION] if t.feasible} for i in range(12)]

    def inherited(trials):
        return sum(t.indices[i] in genes[i] for t in trials for i in range(12)) / (12 * len(trials))

    assert inherited(bred) > 0.8
    assert sum(t.feasible for t in bred) / len(bred) > 1.5 * sum(t.feasible for t in drawn) / len(drawn)


def test_a_small_space_is_told_again_and_not_measured_again(tmp_path):
    p = problem([[3, 2, 0], [3, 1, 0], [1, 0, 0.5]], {"size_bytes": [[1, 2, 3]] * 3}, ["a", None, "a"])
    calls = []
    for name in BASELINES:
        calls.clear()
        found = explore_by(
            name,
            p,
            "proxy",
            [Budget("size_bytes", 7, "")],
            lambda x: calls.append(x) or float(sum(x)),
            tmp_path / name,
            50,
            0,
        )
        assert len(calls) == len(set(calls)) == len(found) <= len(every_assignment(p))
    repeats = [t for t in load(tmp_path / "nsga2").trials if "repeat_of" in t.user_attrs]
    assert repeats and all(t.values[0] == sum(t.user_attrs["repeat_of"]) for t in repeats)


def test_by_name_is_the_study_itself_and_other_names_are_refused(tmp_path):
    p, loss, budgets = setting()
    assert explore_by("mpsearch", p, "proxy", budgets, loss, tmp_path / "a.log", 12, 0) == explore(
        p, "proxy", budgets, loss, tmp_path / "b.log", 12, 0
    )
    with pytest.raises(UnknownNameError, match="nsga2"):
        explore_by("nsga", p, "proxy", budgets, loss, tmp_path / "c.log", 12, 0)
    with pytest.raises(StudyError, match="another problem"):
        explore_by("tpe", p, "proxy", budgets, loss, tmp_path / "a.log", 12, 0)
    with pytest.raises(MpsearchError, match="No trial had a finite loss"):
        explore_by("random", p, "proxy", budgets, lambda _: float("nan"), tmp_path / "d.log", 5, 0)


def test_the_study_beats_its_baselines(tmp_path):
    p, shifted = interacting(20, 5)
    low, high = reachable(p)["size_bytes"]
    budgets = [Budget("size_bytes", low + 0.3 * (high - low), "")]
    best = {}
    for name in SAMPLERS:
        found = explore_by(name, p, "proxy", budgets, lambda i: shifted(i) - 1.2, tmp_path / name, 48, 0)
        best[name] = min(t.loss for t in found if t.feasible)
    assert best["mpsearch"] < 0.97 * min(best[name] for name in BASELINES)
