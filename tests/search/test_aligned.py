"""Tables moved until their optima are as good as what was measured."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize

from mpsearch.problem import Budget, Candidate, Layer, Problem
from mpsearch.search import solve
from mpsearch.search.aligned import _moved, align, search_along, shortlist

WIDTHS = (8, 6, 5, 4, 3, 2)
ORDER = [(m, later, earlier) for m in range(12) for earlier, later in itertools.pairwise(range(len(WIDTHS)))]


def problem_of(seed: int, units: int = 12, ties: dict[int, str] | None = None) -> Problem:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(50, 2000, units)
    layers = tuple(Layer(f"u{m}", "linear", (int(n), 1), ((1,),), (1,), 1, f"u{m}", tie=(ties or {}).get(m)) for m, n in enumerate(sizes))
    candidates = (tuple(Candidate(b, 8) for b in WIDTHS),) * units
    scores = tuple(tuple(float(4.0**-b * s) for b in WIDTHS) for s in rng.lognormal(0, 1.5, units))
    return Problem(layers, candidates, {"proxy": scores}, {"size_bytes": tuple(tuple(float(n * b) for b in WIDTHS) for n in sizes)})


def loss_of(problem: Problem, seed: int):
    """Not additive: units are off by factors, neighbours reinforce or cancel each other."""
    rng = np.random.default_rng(seed)
    factors, beside = np.exp(rng.normal(0, 0.6, len(problem.layers))), rng.uniform(-0.5, 0.7, len(problem.layers) - 1)

    def loss(choices) -> float:
        damage = np.array([row[c] for row, c in zip(problem.scores["proxy"], choices, strict=True)]) * factors
        return float(damage.sum() + (2 * beside * np.sqrt(damage[1:] * damage[:-1])).sum())

    return loss


def limits_of(problem: Problem, parts=range(3, 23)) -> list[float]:
    least, most = (sum(end(row) for row in problem.costs["size_bytes"]) for end in (min, max))
    return [least + (most - least) * k / 24 for k in parts]


def regrets(problem: Problem, rows, losses, loss, limits) -> list[float]:
    table = Problem(problem.layers, problem.candidates, {"proxy": tuple(tuple(map(float, row)) for row in rows)}, problem.costs)
    found = []
    for limit in limits:
        best = min(value for choices, value in losses.items() if problem.cost(choices).size_bytes <= limit)
        found.append(loss(solve(table, "proxy", [Budget("size_bytes", limit, "")]).indices) / best - 1)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_optima_come_close_to_the_best_known_at_every_limit(seed):
    problem = problem_of(seed)
    loss, limits = loss_of(problem, seed), limits_of(problem)
    losses = search_along(problem, ["proxy"], limits[1::3], loss, 8)
    rows, steps = [np.array(row) for row in problem.scores["proxy"]], []
    found = align(problem, rows, losses, limits, loss, 100, order=ORDER, on_step=lambda: steps.append(1))
    before, after = (max(regrets(problem, table, losses, loss, limits)) for table in (rows, found.rows))
    assert after == pytest.approx(found.regret) and found.regret < 0.0801 < 0.25 < before
    assert 0 < len(steps) <= 100 and np.mean(found.regrets) < 0.02
    assert all((np.diff(row) >= -1e-12).all() for row in found.rows), "fewer bits may not do less damage"


def test_a_table_whose_optima_are_the_best_known_stays():
    problem = problem_of(0)
    rows = [np.array(row) for row in problem.scores["proxy"]]

    def loss(choices) -> float:
        return math.fsum(row[c] for row, c in zip(rows, choices, strict=True))

    losses = search_along(problem, ["proxy"], limits_of(problem, [8, 16]), loss, 4)
    found = align(problem, rows, losses, limits_of(problem), loss, 100)
    assert all(np.array_equal(a, b) for a, b in zip(found.rows, rows, strict=True))
    assert found.regret == pytest.approx(0, abs=1e-12) and found.missed == 0


def test_of_inequalities_that_no_table_meets_the_one_of_the_least_difference_is_missed():
    """Unit 1 or unit 3 has to be the one that suffers more from few bits, and each pair names another."""
    first, second = ((0, 1, 1, 0), (0, 0, 1, 1)), ((0, 0, 0, 1), (0, 1, 0, 0))
    rows, missed = _moved([np.array([1.0, 2.0])] * 4, {first: 0.2, second: 0.5}, ())
    good, bad = (math.fsum(row[c] for row, c in zip(rows, choices, strict=True)) for choices in second)
    assert missed == 1 and bad > good * (1 + 0.3 * 0.5)
    assert all(np.allclose(rows[m], [1.0, 2.0], rtol=1e-3) for m in (0, 2)), "what both share hardly moves: only as a part of their sums"


def test_the_table_is_the_nearest_that_meets_the_inequalities():
    """Against a general solver of the same quadratic problem."""
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.lognormal(0, 1, 3))[::-1].copy() for _ in range(4)]
    order = [(m, k, k + 1) for m in range(4) for k in range(2)]
    pairs = {((0, 1, 2, 1), (1, 0, 1, 2)): 0.05, ((2, 2, 0, 0), (1, 1, 1, 1)): 0.03}
    moved, missed = _moved(rows, pairs, order)
    start = np.concatenate(rows)

    def short(x, good, bad, gap):
        values = (start * (1 + x)).reshape(4, 3)
        sums = [sum(values[m, c] for m, c in enumerate(choices)) for choices in (bad, good)]
        base = sum(rows[m][c] for m, c in enumerate(good))
        return (sums[0] - sums[1]) / base - 1e-3 - 0.3 * gap

    conditions = [{"type": "ineq", "fun": lambda x, pair=pair, gap=gap: short(x, *pair, gap)} for pair, gap in pairs.items()]
    conditions += [{"type": "ineq", "fun": lambda x, m=m, k=k: (start * (1 + x))[3 * m + k] - (start * (1 + x))[3 * m + k + 1]} for m, k, _ in order]
    wanted = scipy.optimize.minimize(lambda x: x @ x / 2, np.zeros(12), jac=lambda x: x, constraints=conditions, method="SLSQP", options={"ftol": 1e-12})
    assert wanted.success and missed == 0
    assert np.allclose(np.concatenate(moved), start * (1 + wanted.x), rtol=1e-3)


def test_without_evaluations_and_unknown_optima_the_table_is_as_it_was():
    problem = problem_of(1)
    rows = [np.array(row) for row in problem.scores["proxy"]]
    found = align(problem, rows, {}, limits_of(problem), lambda _: pytest.fail("measured"), 0)
    assert all(np.array_equal(a, b) for a, b in zip(found.rows, rows, strict=True)) and found.regret == math.inf


def test_losses_that_are_not_finite_are_avoided():
    problem = problem_of(2)
    loss = loss_of(problem, 2)

    def measure(choices) -> float:
        return math.nan if choices[0] == len(WIDTHS) - 1 else loss(choices)

    limits = limits_of(problem, range(8, 23))
    losses = search_along(problem, ["proxy"], limits[::3], measure, 8)
    found = align(problem, [np.array(row) for row in problem.scores["proxy"]], losses, limits, measure, 100)
    assert found.regret < 0.3


def test_losses_of_zero_are_all_the_best():
    problem = problem_of(0)
    limits = limits_of(problem, range(8, 23, 4))
    found = align(
        problem, [np.array(row) for row in problem.scores["proxy"]], search_along(problem, ["proxy"], limits, lambda _: 0.0, 2), limits, lambda _: 0.0, 9
    )
    assert found.regret == 0


def test_the_optima_of_every_table_are_measured_at_every_limit():
    problem = problem_of(0)
    other = tuple(tuple(row[0] * (9 - b) ** (1 + m % 3) for b in WIDTHS) for m, row in enumerate(problem.scores["proxy"]))
    both = Problem(problem.layers, problem.candidates, problem.scores | {"other": other}, problem.costs)
    steps, limits = [], limits_of(problem, [8, 16])
    losses = search_along(both, ["proxy", "other"], limits, loss_of(problem, 0), 3, lambda: steps.append(1))
    optima = {solve(both, name, [Budget("size_bytes", limit, "")]).indices for name in ("proxy", "other") for limit in limits}
    assert len(optima) == 4 and optima <= set(losses)
    assert len(losses) <= len(steps) == 2 * (2 + 3)


def test_the_shortlist_is_the_best_few_that_keep_each_limit():
    problem, rng = problem_of(0, units=3), np.random.default_rng(0)
    losses = {choices: float(rng.random()) for choices in itertools.product(range(len(WIDTHS)), repeat=3)}
    losses |= {(0, 0, 0): math.nan, (5, 5, 5): math.inf}
    limits, wanted = limits_of(problem, [6, 12, 24]), set()
    for limit in limits:
        fitting = [c for c, loss in losses.items() if math.isfinite(loss) and problem.cost(c).size_bytes <= limit]
        wanted |= set(sorted(fitting, key=losses.__getitem__)[:3])
    found = shortlist(problem, losses, limits, 3)
    assert set(found) == wanted and len(found) == len(wanted) <= 9
    assert shortlist(problem, {}, limits, 3) == []


def test_ties_are_one_choice():
    problem = problem_of(0, ties={2: "t", 3: "t"})
    loss, limits = loss_of(problem, 0), limits_of(problem, [8, 16])
    losses = search_along(problem, ["proxy"], limits, loss, 3)
    merged = [np.array(row) for row in problem.scores["proxy"]]
    merged[2:4] = [merged[2] + merged[3]]
    found = align(problem, merged, losses, limits_of(problem), loss, 100)
    assert len(losses) > 8 and all(indices[2] == indices[3] for indices in losses)
    assert len(found.rows) == 11 and found.regret < 0.0801
