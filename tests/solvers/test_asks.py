"""What a user asks next: several different optima, prices, ranges within budgets, fronts of three objectives;
all against brute force.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from search_problems import budget, chain, every_assignment, everything, keeps, some_budgets

from mpsearch.errors import InfeasibleError, OptionError
from mpsearch.problem import Budget
from mpsearch.solvers import (
    apart,
    front_of_three,
    least_within,
    marginal_prices,
    non_dominated,
    problem_front,
    solve,
    solve_best,
)
from mpsearch.solvers.budgeted import milp as milp_module


@pytest.mark.parametrize(("distance", "few"), [(1, 64), (2, 0), (3, 64)])
def test_the_best_that_differ_are_brute_force(monkeypatch, distance, few):
    monkeypatch.setattr(milp_module, "_FEW_COLUMNS", few)
    several = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = everything(rng)
        every = every_assignment(p)
        budgets = some_budgets(p, rng, every)
        left = [x for x in every if keeps(p, x, budgets)]
        if not left or distance > sum(len(row) > 1 for row in p.candidates):
            continue
        found = solve_best(p, "proxy", budgets, 4, distance)
        tolerance = 1e-8 * max(max(map(abs, row)) for row in p.scores["proxy"])
        for solution in found:
            assert solution.status == "optimal" and solution.indices in left
            assert solution.score == pytest.approx(
                min(p.score("proxy", x) for x in left), rel=1e-8, abs=tolerance
            )
            left = [
                x for x in left if sum(a != b for a, b in zip(x, solution.indices, strict=True)) >= distance
            ]
        assert len(found) == 4 or not left
        assert all(apart(a, b) >= distance for a, b in itertools.combinations(found, 2))
        several += len(found) > 1
    assert several > 10


def test_numbers_that_cannot_be_are_refused():
    p = chain(3, 2)
    with pytest.raises(OptionError, match="No two assignments differ in 4 layers; 3 layers"):
        solve_best(p, "proxy", [], 2, 4)
    for count, distance in ((0, 1), (1, 0)):
        with pytest.raises(OptionError, match="at least 1"):
            solve_best(p, "proxy", [], count, distance)
    with pytest.raises(InfeasibleError):
        solve_best(p, "proxy", [Budget("size_bytes", 1, "")], 2)
    with pytest.raises(OptionError, match="list of 0 prices"):
        marginal_prices(problem_front(p, "proxy"), 0)
    with pytest.raises(OptionError, match="two resources, not 3 and size_bytes, size_bytes"):
        front_of_three(p, "proxy", ("size_bytes", "size_bytes"), steps=3)


def test_prices_are_the_hull_of_the_front():
    p = chain(8, 4)
    front = problem_front(p, "proxy", "latency_us")
    prices = marginal_prices(front)
    rates = [price.rate for price in prices]
    assert rates == sorted(rates, reverse=True) and len(prices) > 5
    corners = [*((price.cost, price.score) for price in prices), (front.costs[-1], front.scores[-1])]
    line = np.interp(front.costs, *zip(*corners, strict=True))
    assert (front.scores >= line - 1e-9).all(), "no point of the front lies below the hull"
    at = front.indices(0)
    for price in prices:
        assert tuple(i for i in range(8) if at[i] != price.indices[i]) == price.changed
        at = price.indices
        assert p.score("proxy", at) == pytest.approx(price.score - price.saved) and p.cost(
            at
        ).latency_us == pytest.approx(price.cost + price.more)
    few = marginal_prices(front, 3)
    assert len(few) == 3 and sum(x.saved for x in few) == pytest.approx(front.scores[0] - front.scores[-1])


def test_the_least_within_budgets_is_brute_force():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p = everything(rng)
        every = every_assignment(p)
        budgets = some_budgets(p, rng, every)
        costs = [p.cost(x) for x in every if keeps(p, x, budgets)]
        if not costs:
            with pytest.raises(InfeasibleError):
                least_within(p, budgets)
            continue
        assert least_within(p, budgets) == pytest.approx(
            {r: min(getattr(c, r) for c in costs) for r in p.costs}, rel=1e-9
        )


def test_a_front_of_three_objectives_is_part_of_the_whole_one():
    p = chain(5, 3)
    resources = ("size_bytes", "latency_us")
    points = [(p.score("proxy", x), p.cost(x).size_bytes, p.cost(x).latency_us) for x in every_assignment(p)]
    whole = {points[i] for i in non_dominated(points)}
    solved = []
    front = front_of_three(p, "proxy", steps=9, on_solve=lambda done, total: solved.append((done, total)))
    mine = [(s.score, s.cost.size_bytes, s.cost.latency_us) for s in front]
    assert len(mine) == len(set(mine)) > 8 and set(mine) <= whole and solved[-1] == (81, 81)
    for a, b in itertools.product(
        *(np.linspace(max(v), min(v), 9) for v in list(zip(*mine, strict=True))[1:])
    ):
        fitting = [s for s, c, d in points if c <= a and d <= b]
        if fitting:
            assert min(s for s, c, d in mine if c <= a and d <= b) == pytest.approx(min(fitting), rel=1e-9)
            assert solve(
                p, "proxy", [Budget(r, v, r) for r, v in zip(resources, (a, b), strict=True)]
            ).score == pytest.approx(min(fitting), rel=1e-9)
    within = front_of_three(p, "proxy", steps=5, budgets=[budget(p, "latency_us", 0.4)])
    assert all(s.cost.latency_us <= budget(p, "latency_us", 0.4).limit for s in within)
