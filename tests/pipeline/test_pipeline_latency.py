"""A latency budget: refused where it cannot be predicted, repaired where what was measured breaks it."""

import importlib
from types import SimpleNamespace

import pytest

from mpsearch.errors import InfeasibleError, TableError
from mpsearch.hardware.cost_model import CostModel, FitError
from mpsearch.pipeline.fitted import require_trust
from mpsearch.pipeline.progress import Silent
from mpsearch.problem import Budget

steps = importlib.import_module("mpsearch.pipeline.run")
BUDGETS = (Budget.parse("10us"), Budget.parse("5kB"))


class Told(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def rounds(monkeypatch):
    """`rounds(latencies)`: what is measured round by round; returns the limits that each search was given."""

    def patch(measured, predicted=9.5, least=1.0):
        limits, lasts, waiting = [], [], list(measured)
        monkeypatch.setattr(steps, "_search", lambda problem, given, calibration, workshop, crew: limits.append([b.limit for b in given]) or {"trials": []})

        def finish(problem, budgets, found, workshop, about, last):
            lasts.append(last)
            best = {"label": "best", "measured": {"latency_us": waiting.pop(0), "size_bytes": 4000.0}, "predicted": {"latency_us": predicted}}
            return {"best": best}

        monkeypatch.setattr(steps, "_finish", finish)
        monkeypatch.setattr(steps, "reachable", lambda problem: {"latency_us": (least, 100.0), "size_bytes": (1.0, 1e6)})
        monkeypatch.setattr(steps, "_write", lambda result, problem, given, trials, workshop: result)
        return limits, lasts

    return patch


def repaired(told=None):
    return steps._repaired(None, BUDGETS, None, SimpleNamespace(progress=told or Told()), None, {})


def test_a_choice_that_keeps_its_budget_is_not_repaired(rounds):
    limits, _ = rounds([10.0])
    assert repaired()["best"]["repairs"] == []
    assert limits == [[10.0, 5000.0]]


def test_a_choice_that_breaks_its_budget_is_searched_again_under_a_tighter_one(rounds):
    limits, _ = rounds([12.0, 9.9])
    told = Told()
    best = repaired(told)["best"]
    assert limits == [[10.0, 5000.0], [pytest.approx(9.5 * 10 / 12 * 0.99), 5000.0]]
    assert best["repairs"] == [{"resource": "latency_us", "limit": 10.0, "predicted": 9.5, "measured": 12.0}]
    assert "breaks the budget" in told.lines[0] and "searched again" in told.lines[0]


def test_a_limit_is_tightened_to_what_can_be_reached_before_it_goes_below(rounds):
    limits, _ = rounds([20.0, 20.0, 9.9], least=8.0)
    repaired()
    assert [row[0] for row in limits] == [10.0, 8.0, pytest.approx(8.0 * 10 / 20 * 0.99)]


def test_repairs_end_and_the_last_round_takes_what_keeps_the_budgets(rounds):
    limits, lasts = rounds([12.0, 11.0, 11.0, 11.0])
    with pytest.raises(InfeasibleError, match="After 4 rounds") as caught:
        repaired()
    assert lasts == [False, False, False, True] and caught.value.least["latency_us"] == 11.0
    assert [row[0] for row in limits] == sorted([row[0] for row in limits], reverse=True)


def model(tau):
    return CostModel((), (), ("other",), (1.0,), FitError(0.05, 0.2, tau, 0.01, 0.95, 24), 0.1)


def config(*budgets, allow_estimate=False):
    return SimpleNamespace(budgets=budgets, allow_estimate=allow_estimate)


def test_a_latency_that_cannot_be_predicted_is_refused_unless_told_to_go_on():
    told = Told()
    with pytest.raises(TableError, match=r"tau 0\.30.*24 runs.*--allow-estimate"):
        require_trust(model(0.3), config("1ms"), "latency_us", told)
    require_trust(model(0.3), config("1ms", allow_estimate=True), "latency_us", told)
    assert "Going on with --allow-estimate" in told.lines[0]
    require_trust(model(0.3), config("5MB"), "latency_us", told)
    assert len(told.lines) == 1


def test_a_latency_that_can_be_predicted_says_how_well():
    told = Told()
    require_trust(model(0.9), config("1ms", "5MB"), "latency_us", told)
    assert told.lines == ["Latency of mixed assignments is predicted within 5.0% (worst 20.0%), tau 0.90; the same measured twice 1.0%, tau 0.95; 24 runs."]
