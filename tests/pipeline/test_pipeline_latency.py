"""A latency budget: refused where it cannot be predicted, repaired where what was measured breaks it."""

from types import SimpleNamespace

import pytest

from mpsearch.errors import InfeasibleError, TableError
from mpsearch.hardware.cost_model import CostModel, FitError
from mpsearch.pipeline import flow
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.results import Choice, Proxy, Repair
from mpsearch.pipeline.steps.clock import Clock
from mpsearch.pipeline.steps.finalists import Chosen
from mpsearch.pipeline.steps.fitted import require_trust
from mpsearch.pipeline.steps.tightening import scouted
from mpsearch.problem import Assignment, Budget, Candidate, Cost, Layer, Problem

BUDGETS = (Budget.parse("10us"), Budget.parse("5kB"))


class Told(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def rounds(monkeypatch):
    """`rounds(latencies)`: what is measured round by round; returns the limits that each search was given."""

    def patch(measured, predicted=9.5, least=1.0, artifacts=()):
        limits, lasts, waiting, shipped = [], [], list(measured), list(artifacts)
        monkeypatch.setattr(
            flow, "search_assignments", lambda problem, given, *_: limits.append([b.limit for b in given])
        )

        def choose(problem, budgets, found, searched, workshop, hardware, last, early, floor=None):
            lasts.append(last)
            took = {"latency_us": waiting.pop(0), "size_bytes": 4000.0}
            cost, proxy = Cost(latency_us=predicted, size_bytes=4000.0), Proxy("coding", "optimal", "a fake")
            return Chosen((), Choice("best", "", Assignment(()), (), BUDGETS, cost, took, {}, proxy, {}), {})

        def ship(choice, states, workshop):
            workshop.study.artifact.mkdir()
            return choice.shipped(shipped.pop(0) if shipped else {})

        monkeypatch.setattr(flow, "scouted", lambda problem, budgets, *_: (budgets, []))
        monkeypatch.setattr(flow, "choose", choose)
        monkeypatch.setattr(flow, "_shipped", ship)
        monkeypatch.setattr(
            flow, "reachable", lambda problem: {"latency_us": (least, 100.0), "size_bytes": (1.0, 1e6)}
        )
        return limits, lasts

    return patch


@pytest.fixture
def repaired(tmp_path):
    def run(told=None):
        workshop = SimpleNamespace(
            progress=told or Told(),
            study=SimpleNamespace(artifact=tmp_path / "artifact"),
            clock=Clock(),
        )
        chosen, _, _ = flow._within_budgets(None, BUDGETS, None, workshop, None, {})
        return chosen.best

    return run


def test_a_choice_that_keeps_its_budget_is_not_repaired(rounds, repaired):
    limits, _ = rounds([10.0])
    assert repaired().repairs == ()
    assert limits == [[10.0, 5000.0]]


def test_a_choice_that_breaks_its_budget_is_searched_again_under_a_tighter_one(rounds, repaired):
    limits, _ = rounds([12.0, 9.9])
    told = Told()
    best = repaired(told)
    assert limits == [[10.0, 5000.0], [pytest.approx(9.5 * 10 / 12 * 0.99), 5000.0]]
    assert best.repairs == (Repair("latency_us", limit=10.0, predicted=9.5, measured=12.0),)
    assert "breaks the budget" in told.lines[0] and "searched again" in told.lines[0]


def test_a_limit_is_tightened_to_what_can_be_reached_and_no_lower(rounds, repaired):
    limits, lasts = rounds([20.0, 9.9], least=8.0)
    repaired()
    assert [row[0] for row in limits] == [10.0, 8.0] and lasts == [False, True]
    rounds([20.0, 19.0], least=8.0)
    with pytest.raises(
        InfeasibleError, match=r"10us is not kept by what is predicted to take the least, .* up to 0\.019 ms"
    ) as caught:
        repaired()
    assert caught.value.least == {"latency_us": 19.0}


def test_an_artifact_that_breaks_the_budget_in_new_processes_is_repaired(rounds, repaired, tmp_path):
    limits, _ = rounds(
        [9.8, 9.0],
        artifacts=[{"latency_us": 9.9, "latency_high_us": 10.5}, {"latency_us": 9.1, "latency_high_us": 9.6}],
    )
    best = repaired()
    assert [row[0] for row in limits] == [10.0, pytest.approx(9.5 * 10 / 10.5 * 0.99)]
    assert (
        best.repairs == (Repair("latency_us", limit=10.0, predicted=9.5, measured=10.5),)
        and best.measured["latency_high_us"] == 9.6
    )
    assert (tmp_path / "artifact").exists()


def test_an_artifact_that_breaks_its_budget_is_not_left_to_be_shipped(rounds, repaired, tmp_path):
    rounds([9.8] * 4, artifacts=[{"latency_high_us": 10.5}] * 4)
    with pytest.raises(InfeasibleError, match="After 4 rounds"):
        repaired()
    assert not (tmp_path / "artifact").exists()


def test_repairs_end_and_the_last_round_takes_what_keeps_the_budgets(rounds, repaired, tmp_path):
    limits, lasts = rounds([12.0, 11.0, 11.0, 11.0])
    with pytest.raises(InfeasibleError, match="After 4 rounds") as caught:
        repaired()
    assert lasts == [False, False, False, True] and caught.value.least["latency_us"] == 11.0
    assert [row[0] for row in limits] == sorted([row[0] for row in limits], reverse=True)


class Scale:
    """A workshop in which a new process takes `ratio` times what is predicted, at most."""

    def __init__(self, ratio, budgets=("50us",)):
        self.ratio, self.asked, self.progress = ratio, [], Told()
        here = SimpleNamespace(elsewhere=False)
        self.config = SimpleNamespace(budgets=budgets, objectives=["coding"], deployment=here)
        self.calibration = SimpleNamespace(states=lambda assignment: assignment)

    def measured(self, assignment):
        self.asked.append(PROBLEM.cost(PROBLEM.indices(assignment)).latency_us)
        return {"latency_us": self.asked[-1], "latency_high_us": self.ratio * self.asked[-1]}


def problem(scores, latencies, layers=3):
    units = tuple(Layer(f"l{i}", "linear", (4, 4), ((1, 4),), (1, 4), 16, "block") for i in range(layers))
    choices = (Candidate(4, 8), Candidate(8, 8), Candidate.parse("float"))
    return Problem(
        units, (choices,) * layers, {"coding": (scores,) * layers}, {"latency_us": (latencies,) * layers}
    )


PROBLEM = problem((4.0, 1.0, 0.0), (10.0, 16.0, 24.0))


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.07, 1.6])
def test_the_limit_of_the_search_is_what_the_optimum_keeps_when_measured(ratio):
    workshop = Scale(ratio)
    (limit,), repairs = scouted(PROBLEM, (Budget.parse("50us"),), {"latency_us": 30.0}, workshop)
    assert max(ratio, 1.0) * workshop.asked[-1] <= 50.0
    assert (
        workshop.asked[-1] <= limit.limit <= 50.0 / max(ratio, 1.0)
    )  # nothing that is as far off as the optimum is breaks the budget
    assert len(workshop.asked) == len(set(workshop.asked)) and (ratio > 1.0) == bool(workshop.progress.lines)
    assert [(r.limit, r.predicted, r.measured) for r in repairs] == [
        (50.0, us, ratio * us) for us in workshop.asked[:-1]
    ]


def test_a_budget_that_even_the_fastest_breaks_when_measured_is_told_with_what_it_takes():
    with pytest.raises(
        InfeasibleError, match=r"not kept by what is predicted to take the least, 0\.030 ms.* up to 0\.060 ms"
    ) as caught:
        scouted(PROBLEM, (Budget.parse("50us"),), {"latency_us": 30.0}, Scale(2.0))
    assert caught.value.least == {"latency_us": 60.0}


def test_a_budget_of_bytes_alone_is_not_scouted():
    workshop = Scale(2.0, budgets=("5kB",))
    assert scouted(PROBLEM, BUDGETS[1:], {}, workshop) == (BUDGETS[1:], []) and workshop.asked == []


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
    assert told.lines == [
        (
            "Latency of mixed assignments is predicted within 5.0% (worst 20.0%), tau 0.90; the same "
            "measured twice 1.0%, tau 0.95; 24 runs."
        )
    ]
