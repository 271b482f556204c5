"""The corrected table keeps to the proxy where nothing was measured, finds factors where it was, and never
calls harm useful.
"""

from __future__ import annotations

import numpy as np
import pytest
from search_problems import every_assignment, interacting, problem

from mpsearch.problem import Budget
from mpsearch.solvers import hypervolume, reachable
from mpsearch.solvers.ask.lagrangian_front import improvements, most_improving, supported
from mpsearch.solvers.constraints import Constraints
from mpsearch.study import explore
from mpsearch.study.model.correction import correct, positive
from mpsearch.study.optima import sums


def measured(count, width, number, seed, factor=0.7, slope=1.0, base=0.0):
    """Proxy rows, true rows that are off by a factor for each super-layer, choices, and losses."""
    rng = np.random.default_rng(seed)
    rows = [np.exp(rng.normal(0, 1)) * 4.0 ** -np.arange(width) for _ in range(count)]
    true = [row * np.exp(rng.normal(0, factor)) for row in rows]
    choices = rng.integers(0, width, (number, count))
    losses = base + 0.01 * sums(true, [tuple(c) for c in choices]) ** slope
    return rows, true, choices, losses


def ratios(rows, other):
    """Log ratios of two tables, their mean taken off: their unit is free."""
    found = np.log(np.array(rows) / np.array(other))
    return found - found.mean()


@pytest.mark.parametrize(("slope", "base"), [(1.0, 0.0), (0.8, 0.0), (1.0, 2.5)])
def test_factors_are_found_and_the_loss_is_predicted(slope, base):
    rows, true, choices, losses = measured(8, 4, 60, 0, slope=slope, base=base)
    table = correct(rows, choices, losses)
    if base == 0:  # a base that must be guessed takes some of it
        assert np.abs(ratios(table.mean(), true)).mean() < 0.15 * np.abs(ratios(rows, true)).mean()
    fresh = np.random.default_rng(9).integers(0, 4, (200, 8))
    expected = np.log(0.01 * sums(true, [tuple(c) for c in fresh]) ** slope)
    found = table.log_loss(sums(table.mean(), [tuple(c) for c in fresh]))
    assert np.sqrt(np.mean((found - expected) ** 2)) < (0.25 if base == 0 else 0.6) * expected.std()
    assert abs(table.base - base) < 0.1


def test_what_was_never_measured_keeps_to_the_proxy():
    rows, _, choices, losses = measured(6, 4, 30, 1)
    choices[:, 0] = 2
    mean = np.array(correct(rows, choices, losses).mean())
    assert np.allclose(mean[0] / mean[0, 2], rows[0] / rows[0][2], rtol=0.5)
    one = np.array(correct(rows, choices[:1], losses[:1]).mean())
    assert np.abs(ratios(one, rows)).max() < 0.1


def test_drawn_tables_are_positive_and_as_wide_as_what_is_not_known():
    rows, true, choices, _ = measured(6, 4, 40, 2)
    choices[:, 5] = 1
    losses = sums(true, [tuple(c) for c in choices])
    table = correct(rows, choices, losses)
    draws = np.array([table.draw(np.random.default_rng(k)) for k in range(200)])
    assert (draws > 0).all()
    spread = np.log(draws).std(0)
    assert spread[5, [0, 2, 3]].min() > 0.1  # never measured
    assert spread[:5, 1].mean() < spread[5, [0, 2, 3]].mean()
    assert np.allclose(np.log(draws).mean(0), np.log(table.mean()), atol=4 * spread.max() / np.sqrt(200))


def test_the_same_measurements_give_the_same_table_and_equal_losses_do_no_harm():
    rows, _, choices, losses = measured(5, 3, 20, 3)
    first, second = (np.array(correct(rows, choices, losses, focus=(0,) * 5).mean()) for _ in range(2))
    assert (first == second).all()
    for value in (0.0, 1.0, -3.0):
        assert np.isfinite(np.array(correct(rows, choices, np.full(20, value)).mean())).all()


def test_harmless_and_negative_entries_become_small_positive_ones():
    rows = positive([np.array([4.0, 1.0, 0.0]), np.array([-2.0, 1.0]), np.array([0.0, 0.0])])
    assert all((row > 0).all() for row in rows)
    assert rows[0].tolist() == [4.0, 1.0, 0.1] and rows[1].tolist() == pytest.approx([0.3, 3.0])


def test_proposals_for_the_budget_are_no_shots_in_the_dark(tmp_path):
    """On a loss over many orders of magnitude, as a KL divergence is, tables drawn with wide normal errors
    proposed hundreds of times the best loss.
    """
    p, shifted = interacting(20, 1)
    low, high = reachable(p)["size_bytes"]
    found = explore(
        p,
        "proxy",
        [Budget("size_bytes", low + 0.4 * (high - low), "")],
        lambda i: shifted(i) - 1.2,
        tmp_path / "journal.log",
        48,
        0,
    )
    best = min(t.loss for t in found)
    later = [t.loss for t in found if t.proposed_by in ("corrected table", "thompson", "neighbour")]
    assert len(later) > 10 and np.median(later) < 2 * best and max(later) < 8 * best


def test_supported_points_are_optima_at_their_own_costs():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        tables = {
            "size_bytes": rng.integers(1, 30, (4, 3)).tolist(),
            "latency_us": rng.integers(1, 30, (4, 3)).tolist(),
        }
        p = problem(rng.random((4, 3)).tolist(), tables)
        rows = [np.array(row) for row in p.scores["proxy"]]
        for budgets in (
            [Budget("size_bytes", 80, "")],
            [Budget("size_bytes", 80, ""), Budget("latency_us", 80, "")],
        ):
            found = supported(Constraints.of(p, budgets), rows, rng)
            assert found and len(set(found)) == len(found)
            for x in found:
                used = [getattr(p.cost(x), b.resource) for b in budgets]
                assert all(u <= b.limit for u, b in zip(used, budgets, strict=True))
                beaten = [
                    y
                    for y in every_assignment(p)
                    if all(getattr(p.cost(y), b.resource) <= u for b, u in zip(budgets, used, strict=True))
                ]
                assert p.score("proxy", x) == pytest.approx(min(p.score("proxy", y) for y in beaten))


def test_an_improvement_is_the_difference_of_two_hypervolumes():
    rng = np.random.default_rng(0)
    for _ in range(20):
        found, points = rng.random((rng.integers(0, 8), 2)), 1.2 * rng.random((10, 2))
        before = hypervolume([tuple(f) for f in found], (1.0, 0.9))
        expected = [hypervolume([tuple(f) for f in (*found, p)], (1.0, 0.9)) - before for p in points]
        assert improvements(points - 0.0, found, (1.0, 0.9)) == pytest.approx(expected, abs=1e-12)


def test_points_are_chosen_for_what_the_others_leave():
    points = np.array([[0.5, 0.5], [0.49, 0.51], [0.1, 0.9], [0.9, 0.1], [2.0, 2.0]])
    assert most_improving(points, np.empty((0, 2)), (1.0, 1.0), 3) == [0, 2, 3]
    assert most_improving(points[:1], points[:1], (1.0, 1.0), 3) == []


def test_a_fit_like_an_earlier_one_keeps_its_widths_and_learns_as_much():
    rows, true, choices, losses = measured(8, 4, 60, 3)
    earlier = correct(rows, choices[:56], losses[:56])
    quick, whole = correct(rows, choices, losses, like=earlier), correct(rows, choices, losses)
    assert quick.base == earlier.base and quick.width == earlier.width
    fresh = [tuple(c) for c in np.random.default_rng(9).integers(0, 4, (200, 8))]
    expected = np.log(0.01 * sums(true, fresh))
    errors = [np.sqrt(np.mean((t.log_loss(sums(t.mean(), fresh)) - expected) ** 2)) for t in (quick, whole)]
    assert errors[0] < 1.2 * errors[1]
    below = correct(
        rows, choices, np.append(losses[:-1], 0.5 * earlier.base + 0.5 * losses.min()) - 1.0, like=earlier
    )
    assert below.base < losses.min() - 1.0
