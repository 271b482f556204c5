"""`solve` against brute force, against recorded optima, and what it says when nothing fits."""

from __future__ import annotations

import os

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from search_problems import every_assignment, golden, problem, random_problem

from mpsearch.errors import BudgetError, InfeasibleError, UnknownNameError
from mpsearch.problem import Budget
from mpsearch.solvers import problem_front, reachable, solve
from mpsearch.solvers.budgeted import milp as milp_module
from mpsearch.solvers.exact import highs as highs_module


@pytest.mark.parametrize("fewest_columns", [0, 64])
def test_one_and_two_budgets_are_brute_force(fewest_columns, monkeypatch):
    monkeypatch.setattr(
        milp_module, "_FEW_COLUMNS", fewest_columns
    )  # 0: bounds and labels on small problems too
    solved = refused = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        p = random_problem(rng)
        every = every_assignment(p)
        costs = [p.cost(x) for x in every]
        both = [
            Budget(r, float(rng.choice([getattr(c, r) for c in costs])), r)
            for r in ("size_bytes", "latency_us")
        ]
        for budgets in (both[:1], both[1:], both):
            fitting = [
                p.score("proxy", x)
                for x, c in zip(every, costs, strict=True)
                if all(getattr(c, b.resource) <= b.limit for b in budgets)
            ]
            if not fitting:
                with pytest.raises(InfeasibleError):
                    solve(p, "proxy", budgets)
                refused += 1
                continue
            found = solve(p, "proxy", budgets)
            assert found.status == "optimal"
            assert found.indices in every
            assert all(getattr(found.cost, b.resource) <= b.limit for b in budgets)
            assert found.score == found.bound == pytest.approx(min(fitting), rel=1e-9)
            solved += 1
    assert solved > 800 and refused > 10


def many_choices(rng, layers, resources):
    """Damage that falls and costs that rise with the choice, each with noise, so that budgets compete."""
    levels = np.arange(1, 10)
    scale = 10.0 ** rng.integers(-6, 7)
    tables = {
        r: (rng.lognormal(0, 1, (layers, 1)) * (levels + rng.random((layers, 9)))).tolist() for r in resources
    }
    return problem(
        (scale * rng.lognormal(0, 1, (layers, 1)) * (4.0**-levels + 0.01 * rng.random((layers, 9)))).tolist(),
        tables,
    )


@pytest.mark.parametrize("count", [2, 3])
def test_labels_with_bounds_agree_with_highs(count, monkeypatch):
    resources = ("size_bytes", "latency_us", "bops")[:count]
    by_labels = 0
    for seed in range(8):
        p = many_choices(np.random.default_rng(seed), 24, resources)
        ends = reachable(p)
        budgets = [Budget(r, ends[r][0] + 0.1 * (seed + 1) * (ends[r][1] - ends[r][0]), r) for r in resources]
        found = solve(p, "proxy", budgets)
        with monkeypatch.context() as without:
            without.setattr(milp_module, "label", lambda *args, **kwargs: None)
            other = solve(p, "proxy", budgets)
        if found.found_by == "exact dynamic programme":  # what is best without budgets keeps them
            assert other == found
            continue
        assert other.found_by == "HiGHS"
        assert found.status == other.status == "optimal"
        assert found.score == pytest.approx(other.score, rel=1e-9)
        assert all(getattr(found.cost, b.resource) <= b.limit for b in budgets)
        by_labels += found.found_by == "dynamic programme with bounds"
    assert by_labels >= 7


def test_where_too_much_is_open_a_thinned_sweep_is_not_called_a_proof(monkeypatch):
    p = many_choices(np.random.default_rng(0), 40, ("size_bytes", "latency_us"))
    budgets = [Budget(r, sum(reachable(p)[r]) / 2, r) for r in ("size_bytes", "latency_us")]
    best = solve(p, "proxy", budgets)
    monkeypatch.setattr(milp_module, "_FEW_LABELS", 2)
    monkeypatch.setattr(milp_module, "_MOST_LABELS", 2)
    found = solve(p, "proxy", budgets)
    assert found.found_by == "HiGHS" and found.status == "optimal"
    assert found.score == pytest.approx(best.score, rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_resnet18_is_optimal_at_every_budget_and_scale(scale):
    layers = golden("solver_resnet18.json")["layers"]
    costs, scores = (
        [layer["costs"] for layer in layers],
        [[v * scale for v in layer["scores"]] for layer in layers],
    )
    p = problem(scores, {"size_bytes": costs, "latency_us": costs})
    front = problem_front(p, "proxy")
    for limit in np.linspace(sum(map(min, costs)), sum(map(max, costs)), 59).tolist():
        expected = front.scores[front.best_under(limit)]
        for resources in (["size_bytes"], ["size_bytes", "latency_us"]):
            found = solve(p, "proxy", [Budget(r, limit, r) for r in resources])
            assert found.status == "optimal"
            assert found.score == pytest.approx(expected, rel=1e-9)


def test_hawq_v3_is_reached():
    data = golden("hawq_v3.json")
    four, eight = (np.array(data[f"delta_weights_{b}bit_square"]) for b in (4, 8))
    scores = [[0.0, v] for v in np.array(data["Hutchinson_trace"]) * (eight - four)]
    size, bops = np.array(data["parameters"]), np.array(data["bops"])
    tables = {
        "size_bytes": (size / 2, size),
        "bops": (bops / 64, bops / 16),
        "latency_us": (data["latency_int4"], data["latency_int8"]),
    }
    costs = {name: np.array(pair).T.tolist() for name, pair in tables.items()}
    ties = [
        next((f"tie{k}" for k, tie in enumerate(data["ties"]) if i in tie), None) for i in range(len(scores))
    ]
    p = problem(scores, costs, ties)
    ends = reachable(p)
    for entry in data["problems"]:
        resource = {"size": "size_bytes", "bops": "bops", "lat": "latency_us"}[entry["budget"]]
        low, high = ends[resource]
        found = solve(p, "proxy", [Budget(resource, low + entry["fraction"] * (high - low), entry["budget"])])
        assert found.status == "optimal"
        assert found.score <= entry["best_known_objective"] + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_looser_budget_is_never_worse(seed, tight, looser, second):
    p = random_problem(np.random.default_rng(seed))
    ends = reachable(p)
    limits = [ends["size_bytes"][0] + t * np.ptp(ends["size_bytes"]) for t in sorted((tight, looser))]
    latency = Budget(
        "latency_us", ends["latency_us"][0] + (0.5 + second / 2) * np.ptp(ends["latency_us"]), ""
    )
    found = []
    for limit in limits:
        try:
            found.append(solve(p, "proxy", [Budget("size_bytes", limit, ""), latency]).score)
        except InfeasibleError:
            found.append(np.inf)
    assert found[1] <= found[0] * (1 + 1e-9)


def test_infeasible_names_what_is_reachable():
    p = problem(
        [[0, 1], [0, 1]],
        {"size_bytes": [[9e6, 6e6], [9e6, 5e6]], "latency_us": [[1e3, 3e3], [1e3, 3e3]]},
        constants={"size_bytes": 3e5},
    )
    with pytest.raises(InfeasibleError) as error:
        solve(p, "proxy", [Budget.parse("9MB")])
    assert str(error.value) == (
        "Budget 9.00 MB (8.58 MiB) is below the least reachable 11.30 MB (10.78 MiB) (all 2 layers at "
        "their smallest). "
        "Raise it, or add cheaper candidates with --bits. Least reachable: latency 2.000 ms."
    )
    assert error.value.least == {"size_bytes": 11.3e6, "latency_us": 2000.0}
    with pytest.raises(InfeasibleError, match=r"together, though each alone.*11\.30 MB.*2\.000 ms") as error:
        solve(p, "proxy", [Budget.parse("12MB"), Budget.parse("2.5ms")])
    assert error.value.least == {"size_bytes": 11.3e6, "latency_us": 2000.0}


def test_budgets_that_cannot_be_read_against_the_problem():
    p = random_problem(np.random.default_rng(0))
    with pytest.raises(BudgetError, match=r"energy_mj.*It has: size_bytes, latency_us"):
        solve(p, "proxy", [Budget.parse("3mJ")])
    with pytest.raises(BudgetError, match="share of the float model"):
        solve(p, "proxy", [Budget.parse("40%")])
    with pytest.raises(UnknownNameError, match="proxy"):
        solve(p, "other", [])


def test_the_tightest_of_two_budgets_on_one_resource_counts():
    p = problem([[3, 2, 0]], {"size_bytes": [[1, 2, 3]]})
    assert solve(p, "proxy", [Budget("size_bytes", 3, ""), Budget("size_bytes", 2, "")]).indices == (1,)
    assert solve(p, "proxy", []).indices == (2,)


def test_what_tolerance_lets_through_is_cut_off_and_solved_again(monkeypatch):
    """HiGHS keeps rows to 1e-6: made far too loose here, so that what it returns first does not fit."""
    costs = [[1_000_000, 1_000_001 + i] for i in range(6)]
    p = problem([[1.0, 0.0]] * 6, {"size_bytes": costs, "latency_us": costs})
    calls = []

    def loose(columns, cuts, *rest):
        calls.append(len(cuts))
        return highs_module.minimise(
            highs_module.Columns(*list(columns.__dict__.values())[:-1], columns.spare + 1.0), cuts, *rest
        )

    monkeypatch.setattr(milp_module, "minimise", loose)
    found = solve(p, "proxy", [Budget("size_bytes", 6_000_005, ""), Budget("latency_us", 6_000_005, "")])
    assert found.cost.size_bytes <= 6_000_005
    assert found.score == 4.0 and found.status == "optimal"
    assert max(calls) > 0


def test_out_of_time_is_not_called_optimal(monkeypatch):
    p = problem([[3.0, 2.0, 0.0]] * 4, {r: [[1, 2, 4]] * 4 for r in ("size_bytes", "latency_us")})

    def stopped(*args):
        outcome = highs_module.minimise(*args)
        return highs_module.Outcome(outcome.choices, outcome.bound / 2, proven=False)

    monkeypatch.setattr(milp_module, "minimise", stopped)
    found = solve(p, "proxy", [Budget(r, 9, "") for r in ("size_bytes", "latency_us")])
    assert found.status == "feasible"
    assert found.bound < found.score


def test_nothing_of_highs_reaches_stdout(capfd, monkeypatch):
    real = scipy.optimize.milp

    def noisy(*args, **kwargs):
        os.write(1, b"HighsMipSolverData::transformNewIntegerFeasibleSolution\n")
        return real(*args, **kwargs)

    monkeypatch.setattr(scipy.optimize, "milp", noisy)
    p = problem([[3.0, 2.0, 0.0]] * 4, {r: [[1, 2, 4]] * 4 for r in ("size_bytes", "latency_us")})
    print("kept")
    solve(p, "proxy", [Budget(r, 9, "") for r in ("size_bytes", "latency_us")])
    print("too")
    assert capfd.readouterr().out == "kept\ntoo\n"
