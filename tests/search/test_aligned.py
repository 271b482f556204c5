"""Tables fitted to what was measured at their optima."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mpsearch.problem import Budget, Candidate, Layer, Problem
from mpsearch.search import solve
from mpsearch.search.aligned import _FACTOR_SD, _NOISE_SD, LAST, align, damages, search_along, shortlist
from mpsearch.search.superlayers import SuperLayers

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
def test_optima_come_close_to_the_best_known_at_every_limit_and_are_better_between(seed):
    problem = problem_of(seed)
    loss, limits = loss_of(problem, seed), limits_of(problem)
    losses = search_along(problem, ["proxy"], limits[1::3], loss, 8)
    rows, steps, known = [np.array(row) for row in problem.scores["proxy"]], [], len(losses)
    found = align(problem, rows, losses, limits, loss, 100, order=ORDER, on_step=lambda: steps.append(1))
    assert len(losses) - known == len(steps) <= 100 + LAST * len(limits)
    others = [limit + (limits[1] - limits[0]) * shift for limit in limits[:-1] for shift in (0.21, 0.5, 0.83)]
    before, after = (np.array(regrets(problem, table, losses, loss, others)) for table in (rows, found))
    assert np.sqrt((after**2).mean()) < 0.6 * np.sqrt((before**2).mean()) and after.max() < before.max()
    before, after = (np.array(regrets(problem, table, losses, loss, limits)) for table in (rows, found))
    assert after.max() < 0.0801 < 0.25 < before.max() and after.mean() < 0.02
    assert all((np.diff(row) >= -1e-12).all() for row in found), "fewer bits may not do less damage"


def test_a_table_that_is_right_up_to_a_factor_stays():
    problem = problem_of(0)
    rows = [np.array(row) for row in problem.scores["proxy"]]

    def loss(choices) -> float:
        return 3 * math.fsum(row[c] for row, c in zip(rows, choices, strict=True))

    losses = search_along(problem, ["proxy"], limits_of(problem, [8, 16]), loss, 4)
    found = align(problem, rows, losses, limits_of(problem), loss, 100)
    assert all(np.allclose(a, b, rtol=1e-6) for a, b in zip(found, rows, strict=True))


def test_the_factors_are_the_most_likely():
    """Two units of two choices, so little is measured that no offset bends: the closed form of a linear regression, as factors are near 1."""
    layers = tuple(Layer(f"u{m}", "linear", (100, 1), ((1,),), (1,), 1, f"u{m}") for m in range(2))
    candidates = ((Candidate(8, 8), Candidate(4, 8)),) * 2
    problem = Problem(layers, candidates, {}, {"size_bytes": ((100.0, 100.0),) * 2})
    rows, off = [np.array([1.0, 2.0]), np.array([1.0, 2.0])], 1e-3
    losses = {(0, 1): 3.0 * math.exp(off), (1, 0): 3.0 * math.exp(-off)}
    found = align(problem, rows, losses, [200.0], lambda _: pytest.fail("measured"), 0)
    shares = np.array([[1, 0, 0, 2], [0, 2, 1, 0]]) / 3
    wanted = _FACTOR_SD**2 * shares.T @ np.linalg.solve(_FACTOR_SD**2 * shares @ shares.T + _NOISE_SD**2 * np.eye(2), [off, -off])
    assert np.allclose(np.log(np.concatenate(found) / np.concatenate(rows)), wanted, atol=2e-6)


def test_a_coarser_measure_counts_up_to_its_mean_ratio():
    problem = problem_of(1)
    loss, limits = loss_of(problem, 1), limits_of(problem)
    coarse = search_along(problem, ["proxy"], limits[1::3], loss, 8)
    rows, fine = [np.array(row) for row in problem.scores["proxy"]], dict(list(coarse.items())[::4])
    one, two = (align(problem, rows, dict(known), limits, loss, 0, before) for known, before in ((coarse, {}), (fine, {i: 2 * x for i, x in coarse.items()})))
    assert all(np.allclose(a, b, rtol=1e-4) for a, b in zip(one, two, strict=True))


def test_where_nothing_is_known_the_table_is_as_it_was():
    problem = problem_of(1)
    rows = [np.array(row) for row in problem.scores["proxy"]]
    found = align(problem, rows, {}, limits_of(problem), lambda _: pytest.fail("measured"), 0)
    assert all(np.array_equal(a, b) for a, b in zip(found, rows, strict=True))


def test_losses_that_are_not_finite_are_avoided():
    problem = problem_of(2)
    loss, limits, rows = loss_of(problem, 2), limits_of(problem, range(8, 23)), [np.array(row) for row in problem.scores["proxy"]]

    def optima(table) -> list[tuple[int, ...]]:
        scored = Problem(problem.layers, problem.candidates, {"table": tuple(map(tuple, table))}, problem.costs)
        return [solve(scored, "table", [Budget("size_bytes", limit, "")]).indices for limit in limits]

    unit, worst = max(enumerate(optima(rows)[0]), key=lambda choice: choice[1])

    def measure(choices) -> float:
        return math.nan if choices[unit] == worst else loss(choices)

    found = align(problem, rows, search_along(problem, ["proxy"], limits[::3], measure, 8), limits, measure, 100)
    assert any(choices[unit] == worst for choices in optima(rows)) and not any(choices[unit] == worst for choices in optima(found))


def test_a_loss_of_zero_counts_as_a_tenth_of_the_least():
    problem = problem_of(0)
    rows, limits = [np.array(row) for row in problem.scores["proxy"]], limits_of(problem)
    losses = search_along(problem, ["proxy"], limits[1::3], loss_of(problem, 0), 8)
    least = min(losses, key=losses.__getitem__)
    rest = min(loss for choices, loss in losses.items() if choices != least)
    none, tenth = (align(problem, rows, losses | {least: value}, limits, lambda _: 0.0, 0) for value in (0.0, rest / 10))
    assert all(np.array_equal(a, b) for a, b in zip(none, tenth, strict=True))
    assert all(np.isfinite(row).all() for row in align(problem, rows, dict.fromkeys(losses, 0.0), limits, lambda _: 0.0, 9))


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
    assert len(found) == 11
    apart = [*found[:2], found[2] / 2, found[2] / 2, *found[3:]]
    assert max(regrets(problem, apart, losses, loss, limits_of(problem))) < 0.0801


def test_what_was_measured_is_ordered_by_its_loss_and_near_its_sum():
    """Losses are a power of the sums, in other units, with errors; on average damages are below the sums by the standard deviation of the errors."""
    problem, rng = problem_of(3), np.random.default_rng(3)
    rows = [np.array(row) for row in problem.scores["proxy"]]
    drawn = [tuple(int(c) for c in rng.integers(0, len(WIDTHS), len(rows))) for _ in range(200)]
    sums = {choices: sum(float(row[c]) for row, c in zip(rows, choices, strict=True)) for choices in drawn}
    losses = {choices: 7 * value**1.4 * math.exp(rng.normal(0, 0.1)) for choices, value in sums.items()}
    found = damages(problem, rows, losses)
    assert sorted(found, key=found.get) == sorted(losses, key=losses.get)
    off = np.log([found[choices] / sums[choices] for choices in found])
    assert off.std() == pytest.approx(0.1 / 1.4, rel=0.2) and off.mean() == pytest.approx(-off.std(), abs=0.02)


def test_a_few_measurements_and_none_have_damages_too():
    problem = problem_of(4)
    rows = [np.array(row) for row in problem.scores["proxy"]]
    assert damages(problem, rows, {}) == {}
    losses = {(c,) * len(rows): 3.0 * sum(float(row[c]) for row in rows) for c in range(3)}
    found = damages(problem, rows, losses | {(5,) * len(rows): math.nan})
    assert [found[choices] for choices in losses] == pytest.approx([value / 3 for value in losses.values()], rel=1e-6)
    assert found[(5,) * len(rows)] == pytest.approx(10 * max(found[choices] for choices in losses), rel=1e-6)


def test_of_layers_that_share_a_choice_the_sum_is_taken_once():
    problem = problem_of(5, units=4, ties={0: "t", 2: "t"})
    rows = [np.array(row) for row in SuperLayers.of([len(WIDTHS)] * 4, problem.ties).merge(problem.scores["proxy"])]
    found = damages(problem, rows, {(c, 0, c, 1): problem.score("proxy", (c, 0, c, 1)) for c in range(3)})
    assert found == pytest.approx({choices: problem.score("proxy", choices) for choices in found}, rel=1e-9)
