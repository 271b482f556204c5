"""Budgets over every resource, ties, peaks, conversions and interactions at once: `solve` and the front
against brute force.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from search_problems import budget, chain, every_assignment, everything, keeps, some_budgets

from mpsearch.errors import InfeasibleError, UserError
from mpsearch.problem import Budget, Interaction
from mpsearch.solvers import non_dominated, problem_front, reachable, solve
from mpsearch.solvers.budgeted import milp as milp_module
from mpsearch.solvers.budgeted.quadratic import solve_pairs
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.coupled import Coupled
from mpsearch.study import explore

ADDED = ("size_bytes", "latency_us", "energy_mj")


@pytest.mark.parametrize("priced", [False, True])
def test_five_hundred_problems_are_brute_force(monkeypatch, priced):
    """Once more with the Lagrangian bound ruling candidates out, which is left out of problems as small as
    these.
    """
    if priced:
        monkeypatch.setattr(milp_module, "_FEW_COLUMNS", 0)
    solved, refused, methods = 0, 0, set()
    for seed in range(500):
        rng = np.random.default_rng(seed)
        p = everything(rng)
        every = every_assignment(p)
        budgets = some_budgets(p, rng, every)
        fitting = [x for x in every if keeps(p, x, budgets)]
        if not fitting:
            with pytest.raises(InfeasibleError) as error:
                solve(p, "proxy", budgets)
            assert error.value.least == {r: min(getattr(p.cost(x), r) for x in every) for r in p.costs}
            refused += 1
            continue
        found = solve(p, "proxy", budgets)
        tolerance = 1e-9 * max(max(map(abs, row)) for row in p.scores["proxy"])
        assert found.status == "optimal" and found.indices in fitting
        assert (
            found.score
            == found.bound
            == p.score("proxy", found.indices)
            == pytest.approx(min(p.score("proxy", x) for x in fitting), rel=1e-9, abs=tolerance)
        )
        methods.add(found.found_by)
        solved += 1
    assert solved > 400 and refused > 15
    assert methods >= {
        "exact dynamic programme",
        "dynamic programme with bounds" if priced else "HiGHS",
        "HiGHS, pairs linearised",
    }


def test_what_is_reachable_is_brute_force():
    for seed in range(60):
        p = everything(np.random.default_rng(seed))
        costs = [p.cost(x) for x in every_assignment(p)]
        for resource, (low, high) in reachable(p).items():
            values = [getattr(c, resource) for c in costs]
            assert (low, high) == (min(values), max(values))


def test_the_front_over_linked_layers_is_brute_force():
    linked = 0
    for seed in range(60):
        p = everything(np.random.default_rng(seed))
        for resource in ("size_bytes", "latency_us"):
            points = [(getattr(p.cost(x), resource), p.score("proxy", x)) for x in every_assignment(p)]
            front = problem_front(p, "proxy", resource)
            assert (np.diff(front.costs) > 0).all() and (np.diff(front.scores) < 0).all()
            scale = max(abs(s) for _, s in points)
            for limit in sorted({points[i][0] for i in non_dominated(points)}):
                best = min(s for c, s in points if c <= limit)
                at = front.best_under(limit * (1 + 1e-12))
                assert front.scores[at] == pytest.approx(best, rel=1e-9, abs=1e-9 * scale)
                assert p.score("proxy", front.indices(at)) == pytest.approx(best, rel=1e-9, abs=1e-9 * scale)
                assert getattr(p.cost(front.indices(at)), resource) == pytest.approx(
                    front.costs[at], rel=1e-12
                )
            linked += bool(p.conversions.get(resource))
    assert linked > 30


def test_a_long_chain_is_solved_by_both_methods_alike():
    p = chain(14, 4)
    for share in (0.3, 0.6):
        one = [budget(p, "latency_us", share)]
        found = solve(p, "proxy", one)
        constraints, coupled = Constraints.of(p, one), Coupled.of(p, "proxy")
        linear, by = solve_pairs(constraints, coupled)
        assert (
            found.status == "optimal"
            and found.found_by == "exact dynamic programme"
            and by != "exact dynamic programme"
        )
        assert linear.proven and coupled.score(linear.choices) == pytest.approx(found.score, rel=1e-9)
        assert problem_front(p, "proxy", "latency_us").scores[
            problem_front(p, "proxy", "latency_us").best_under(one[0].limit)
        ] == pytest.approx(found.score)
        two = solve(p, "proxy", [*one, budget(p, "size_bytes", share)])
        assert two.status == "optimal" and two.score >= found.score * (1 - 1e-12)
        searched, by = solve_pairs(
            Constraints.of(p, [*one, budget(p, "size_bytes", share)]), coupled, most_entries=0
        )
        assert (
            by == "tabu search"
            and searched.bound <= two.score * (1 + 1e-9)
            and two.score <= coupled.score(searched.choices) * (1 + 1e-9)
        )
        assert coupled.score(searched.choices) <= 1.1 * two.score


def test_what_reaches_too_far_for_a_line_is_left_to_highs():
    p = chain(12, 4)
    rng = np.random.default_rng(1)
    far = tuple(
        Interaction((a, b), (4, 4), tuple(rng.random(16).tolist()))
        for a, b in itertools.combinations(range(12), 2)
    )
    p = replace(p, conversions={"latency_us": far})
    found = solve(p, "proxy", [budget(p, "latency_us", 0.5)])
    assert found.status == "optimal" and found.found_by != "exact dynamic programme"
    with pytest.raises(UserError, match="conversions of latency_us link too many layers"):
        problem_front(p, "proxy", "latency_us")


def test_a_study_keeps_peaks_and_conversions(tmp_path):
    p = chain(5, 3)
    p = replace(p, costs={**p.costs, "memory_bytes": tuple((3.0, 2.0, 1.0) for _ in range(5))})
    budgets = [Budget("memory_bytes", 2.0, ""), budget(p, "latency_us", 0.9)]
    trials = explore(p, "proxy", budgets, lambda x: p.score("proxy", x), tmp_path / "journal.log", 20, 0)
    assert len({t.indices for t in trials}) == len(trials) == 20
    assert all(
        t.feasible and t.cost.memory_bytes <= 2 and t.cost.latency_us <= budgets[1].limit for t in trials
    )
    assert min(t.loss for t in trials) == solve(p, "proxy", budgets).score
    alone = explore(
        p, "proxy", budgets[:1], lambda x: p.score("proxy", x), tmp_path / "other.log", 6, 0, warm=[(2,) * 5]
    )
    assert all(t.cost.memory_bytes <= 2 for t in alone)
    with pytest.raises(UserError, match="Layer 0 takes choice 0; it has the choices 1, 2"):
        explore(p, "proxy", budgets[:1], lambda x: 0.0, tmp_path / "third.log", 6, 0, warm=[(0,) * 5])
    with pytest.raises(UserError, match="is a peak"):
        problem_front(p, "proxy", "memory_bytes")
