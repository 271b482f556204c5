"""Assignments that an objective has measured: in place of their sums in `solve`, in the front and in everything built on them, against brute force."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from search_problems import every_assignment, everything, problem, random_problem, some_budgets

from mpsearch.errors import InfeasibleError, UserError
from mpsearch.problem import PEAKS, Budget, Problem
from mpsearch.search import apart, front_of_three, least_within, marginal_prices, non_dominated, problem_front, solve, solve_best
from mpsearch.search import optimum as optimum_module


def with_measured(p: Problem, rng) -> Problem:
    """Some assignments at from half to twice their sum: the best by sums, which are often worse than that, and any others."""
    every = sorted(every_assignment(p), key=lambda x: p.score("proxy", x))
    few = [*every[: rng.integers(0, 6)], *(every[k] for k in rng.integers(0, len(every), 5))]
    return replace(p, measured={"proxy": {x: float(p.score("proxy", x) * np.exp(rng.uniform(-0.7, 0.7))) for x in few}})


def best_by_hand(p: Problem, every, budgets) -> float | None:
    fitting = [p.score("proxy", x) for x in every if all(getattr(p.cost(x), b.resource) <= b.limit for b in budgets)]
    return min(fitting, default=None)


@pytest.mark.parametrize("part", range(8))
def test_the_optimum_is_that_of_measured_damages_and_of_sums_elsewhere(part):
    rng = np.random.default_rng([17, part])
    by = set()
    for _ in range(60):
        p = with_measured(replace(everything(rng), interactions={}), rng)
        every = every_assignment(p)
        for _ in range(3):
            budgets = [replace(b, limit=b.limit * (1 + 1e-12)) for b in some_budgets(p, rng, every)]  # decimals add up to more or less by a rounding
            least = best_by_hand(p, every, budgets)
            if least is None:
                with pytest.raises(InfeasibleError):
                    solve(p, "proxy", budgets)
                continue
            found = solve(p, "proxy", budgets)
            assert found.status == "optimal" and found.score == pytest.approx(least, rel=1e-9) and p.score("proxy", found.indices) == found.score
            assert all(getattr(found.cost, b.resource) <= b.limit for b in budgets)
            assert (found.indices in p.measured["proxy"]) == found.found_by.startswith("measured by the objective")
            by.add(found.found_by)
    assert {"exact dynamic programme", "measured by the objective, exact dynamic programme"} <= by


@pytest.mark.parametrize("part", range(4))
def test_the_front_has_the_least_at_every_cost(part):
    rng = np.random.default_rng([18, part])
    chained = 0
    for _ in range(60):
        p = with_measured(replace(everything(rng), interactions={}), rng)
        every = every_assignment(p)
        for resource in (r for r in p.costs if r not in PEAKS):
            chained += bool(p.conversions.get(resource))
            front = problem_front(p, "proxy", resource)
            points = [(getattr(p.cost(x), resource), p.score("proxy", x)) for x in every]
            assert (np.diff(front.costs) > 0).all() and (np.diff(front.scores) < 0).all()
            for limit in sorted({points[i][0] for i in non_dominated(points)}):
                at = front.best_under(limit * (1 + 1e-12))
                best = min(score for cost, score in points if cost <= limit * (1 + 1e-12))
                assert float(front.scores[at]) == pytest.approx(best, rel=1e-9)
                assert p.score("proxy", front.indices(at)) == pytest.approx(best, rel=1e-9)
    assert chained > 10


def test_what_is_built_on_them_agrees():
    rng = np.random.default_rng(19)
    for _ in range(40):
        p = with_measured(random_problem(rng), rng)
        every = sorted(p.score("proxy", x) for x in every_assignment(p))
        best = solve_best(p, "proxy", [], min(8, len(every)))
        assert [s.score for s in best] == pytest.approx(every[: len(best)], rel=1e-9) and len(best) == min(8, len(every))
        assert all(apart(a, b) for a, b in zip(best[1:], best[:-1], strict=True))
        prices = marginal_prices(problem_front(p, "proxy"))
        assert sum(price.saved for price in prices) == pytest.approx((prices[0].score if prices else 0) - (every[0] if prices else 0), rel=1e-6)
        assert least_within(p, []) == least_within(replace(p, measured={}), [])
        surface = front_of_three(p, "proxy", steps=3)
        assert min(s.score for s in surface) == pytest.approx(every[0], rel=1e-9)


def test_a_long_problem_is_solved_by_bounds_as_by_the_whole_front():
    """Where nothing can be listed: the programme that is thinned by a bound, the whole front and the cuts say the same."""
    rng = np.random.default_rng(20)
    count, widths = 30, (8, 6, 5, 4, 3, 2)
    scores = rng.lognormal(0, 1.5, (count, 1)) * 4.0 ** -np.array(widths)
    sizes = rng.integers(50, 2000, (count, 1)) * np.array(widths)
    p = problem(scores.tolist(), {"size_bytes": sizes.tolist(), "latency_us": rng.integers(1, 50, (count, 6)).tolist()})
    limits = np.linspace(sizes[:, -1].sum(), sizes[:, 0].sum(), 12)[1:-1]
    optima = [solve(p, "proxy", [Budget("size_bytes", float(v), "")]) for v in limits]
    known = {}
    for k, found in enumerate(optima):
        near = [s.indices for s in solve_best(p, "proxy", [Budget("size_bytes", float(limits[k]), "")], 6)]
        known |= {x: p.score("proxy", x) * float(np.exp(rng.uniform(-0.05, 0.4))) for x in near}
        assert found.indices in known
    p = replace(p, measured={"proxy": known})
    front, both = problem_front(p, "proxy"), Budget("latency_us", 1e9, "")
    kinds = set()
    for limit in limits:
        budget = Budget("size_bytes", float(limit), "")
        found, whole, cut = solve(p, "proxy", [budget]), front.best_under(float(limit)), solve(p, "proxy", [budget, both])
        assert found.status == cut.status == "optimal"
        assert found.score == pytest.approx(float(front.scores[whole]), rel=1e-9) == pytest.approx(cut.score, rel=1e-7)
        kinds.add(found.indices in known)
    assert kinds == {True, False}


def test_only_what_is_measured_fits():
    p = problem([[1.0, 2.0]], {"size_bytes": [[5, 3]], "latency_us": [[1, 9]]})
    p = replace(p, measured={"proxy": {(1,): 7.0}})
    found = solve(p, "proxy", [Budget("size_bytes", 4, ""), Budget("latency_us", 9, "")])
    assert (found.indices, found.score, found.status) == ((1,), 7.0, "optimal") and "no other fits" in found.found_by
    with pytest.raises(InfeasibleError):
        solve(p, "proxy", [Budget("size_bytes", 4, ""), Budget("latency_us", 8, "")])


def test_an_unproven_optimum_is_no_better_than_what_was_measured(monkeypatch):
    p = problem([[1.0, 2.0], [1.0, 3.0]], {"size_bytes": [[5, 3], [5, 3]], "latency_us": [[5, 1], [5, 1]]})
    p = replace(p, measured={"proxy": {(1, 1): 2.5}})
    solved = optimum_module.solve_rows
    monkeypatch.setattr(optimum_module, "solve_rows", lambda *given: replace(solved(*given), proven=False, bound=1.5))
    found = solve(p, "proxy", [Budget("size_bytes", 8, ""), Budget("latency_us", 8, "")])
    assert (found.indices, found.score, found.status, found.bound) == ((1, 1), 2.5, "feasible", 1.5)


def test_with_fewer_candidates_and_through_a_file_they_stay():
    p = problem([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], {"size_bytes": [[3, 2, 1]] * 2})
    plain = p.to_json()
    p = replace(p, measured={"proxy": {(0, 2): 9.0, (1, 1): 8.0, (2, 2): 7.0}})
    assert plain["schema"] == 1 and "measured" not in plain and p.to_json()["schema"] == 4
    assert Problem.from_json(json.loads(json.dumps(p.to_json()))) == p
    assert p.score("proxy", (0, 2)) == 9.0 and p.score("proxy", [1, 1]) == 8.0 and p.score("proxy", (0, 0)) == 2.0
    assert p.only([[2, 0], [2]]).measured == {"proxy": {(1, 0): 9.0, (0, 0): 7.0}}


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"other": {(0, 0): 1.0}}, "must have a score table"),
        ({"proxy": {(0,): 1.0}}, "not one of the candidates"),
        ({"proxy": {(0, 2): 1.0}}, "not one of the candidates"),
        ({"proxy": {(0, 1): 1.0}}, "layers of one tie"),
        ({"proxy": {(0, 0): float("nan")}}, "finite"),
    ],
)
def test_what_is_not_an_assignment_is_refused(known, message):
    p = problem([[1.0, 2.0]] * 2, {"size_bytes": [[2, 1]] * 2}, ["tie", "tie"])
    with pytest.raises(UserError, match=message):
        replace(p, measured=known)
