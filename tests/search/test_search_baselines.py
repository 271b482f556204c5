"""Optuna's own samplers as baselines: budgets as constraints, nothing measured twice, resumable, and a warm start that NSGA-II really takes."""

from __future__ import annotations

import optuna
import pytest
from optuna.samplers import NSGAIISampler
from search_problems import every_assignment, interacting, problem
from test_search_explore import load, setting

from mpsearch.errors import MpsearchError, StudyError, UnknownNameError
from mpsearch.problem import Budget
from mpsearch.search import explore, reachable
from mpsearch.search.baselines import POPULATION, SAMPLERS, explore_by

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


def test_the_warm_start_is_in_generation_0_of_nsga2_and_begets_generation_1(tmp_path):
    """`enqueue_trial` would not put it there: see the next test."""
    p, loss, budgets = setting()
    explore_by("nsga2", p, "proxy", budgets, loss, tmp_path / "a.log", POPULATION + 8, 0, [(0,) * 12])
    trials = load(tmp_path / "a.log").trials
    key = "NSGAIISampler:generation"
    assert [t.system_attrs[key] for t in trials[: POPULATION + 1]] == [0] * POPULATION + [1]
    assert [t.user_attrs["proposed_by"] for t in trials[:2]] == ["warm", "exact front"]
    study = load(tmp_path / "a.log")
    parents = study._storage.get_study_system_attrs(study._study_id)["NSGAIISampler:parent:1"]
    assert {t._trial_id for t in trials[:POPULATION]} >= set(parents) and len(parents) > 1
    genes = [{t.params[f"l{i}"] for t in trials[:POPULATION]} for i in range(12)]
    children = [t for t in trials if t.system_attrs.get(key) == 1]
    inherited = sum(t.params[f"l{i}"] in genes[i] for t in children for i in range(12)) / (12 * len(children))
    assert inherited > 0.8


def test_the_trap_that_this_avoids_is_still_there():
    """Optuna's NSGA-II leaves enqueued trials without a generation, so that they are never parents. If this fails, the way around may go."""
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=NSGAIISampler(population_size=4, seed=0))
    for k in range(4):
        study.enqueue_trial({"a": k, "b": k})
    study.optimize(lambda t: (t.suggest_int("a", 0, 9), -t.suggest_int("b", 0, 9)), n_trials=6)
    assert all("NSGAIISampler:generation" not in t.system_attrs for t in study.trials[:4])
    assert all(t.system_attrs["NSGAIISampler:generation"] == 0 for t in study.trials[4:])


def test_tpe_chooses_prices_and_every_trial_is_the_optimum_at_its_own(tmp_path):
    p, loss, budgets = setting()
    found = explore_by("tpe", p, "proxy", budgets, loss, tmp_path / "a.log", 20, 0)
    priced = [t for t in load(tmp_path / "a.log").trials if t.user_attrs.get("proposed_by") == "tpe"]
    assert len(priced) == 19 and all(set(t.params) == {"price of size_bytes"} for t in priced)
    for t in priced:
        price = t.params["price of size_bytes"]
        rows = zip(p.scores["proxy"], p.costs["size_bytes"], strict=True)
        assert list(t.user_attrs["indices"]) == [min(range(6), key=lambda c: s[c] + price * z[c]) for s, z in rows]
    assert any(t.feasible for t in found)


def test_a_small_space_is_told_again_and_not_measured_again(tmp_path):
    p = problem([[3, 2, 0], [3, 1, 0], [1, 0, 0.5]], {"size_bytes": [[1, 2, 3]] * 3}, ["a", None, "a"])
    calls = []
    for name in BASELINES:
        calls.clear()
        found = explore_by(name, p, "proxy", [Budget("size_bytes", 7, "")], lambda x: calls.append(x) or float(sum(x)), tmp_path / name, 50, 0)
        assert len(calls) == len(set(calls)) == len(found) <= len(every_assignment(p))
    repeats = [t for t in load(tmp_path / "nsga2").trials if "repeat_of" in t.user_attrs]
    assert repeats and all(t.values[0] == sum(t.user_attrs["repeat_of"]) for t in repeats)


def test_by_name_is_the_study_itself_and_other_names_are_refused(tmp_path):
    p, loss, budgets = setting()
    assert explore_by("mpsearch", p, "proxy", budgets, loss, tmp_path / "a.log", 12, 0) == explore(p, "proxy", budgets, loss, tmp_path / "b.log", 12, 0)
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
