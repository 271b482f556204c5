"""The exact front against brute force, and what may never hold of a front."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_problems import BITS, chain, every_assignment, everything, problem, random_problem

from mpsearch.errors import InfeasibleError, UnknownNameError, UserError
from mpsearch.solvers import non_dominated, problem_front, swept_front
from mpsearch.solvers.tables.groups import SuperLayers
from mpsearch.solvers.tables.integer_costs import WholeCosts


def front_of(scores, costs, ties=None, **options):
    """Of an additive problem over its size."""
    return problem_front(problem(scores, {"size_bytes": costs}, ties), "proxy", **options)


ROWS = st.lists(
    st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 30)), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("resource", ["size_bytes", "latency_us"])
def test_front_is_brute_force(resource):
    for seed in range(150):
        p = random_problem(np.random.default_rng(seed))
        points = [(getattr(p.cost(x), resource), p.score("proxy", x)) for x in every_assignment(p)]
        expected = sorted(points[i] for i in non_dominated(points))
        front = problem_front(p, "proxy", resource)
        kept = [
            (c, s)
            for (c, s), before in zip(expected, [(-1, math.inf), *expected], strict=False)
            if s < before[1] * (1 - 1e-12)
        ]
        mine = [
            (c, s)
            for (c, s), before in zip(
                zip(front.costs, front.scores, strict=True), [math.inf, *front.scores], strict=False
            )
            if s < before * (1 - 1e-12)
        ]
        np.testing.assert_allclose(mine, kept, rtol=1e-12)
        for k in range(len(front)):
            assert getattr(p.cost(front.indices(k)), resource) == pytest.approx(front.costs[k], rel=1e-15)
            assert p.score("proxy", front.indices(k)) == pytest.approx(front.scores[k], rel=1e-12)
            assert p.assignment(front.indices(k))
            assert all(len({front.indices(k)[i] for i in group}) == 1 for group in p.ties)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 120))
def test_no_point_dominates_another_and_a_limit_only_cuts(rows, limit):
    scores, costs = ([[v[k] for v in row] for row in rows] for k in (0, 1))
    front = front_of(scores, costs)
    assert (np.diff(front.costs) > 0).all()
    assert (np.diff(front.scores) < 0).all()
    if limit < front.costs[0]:
        with pytest.raises(InfeasibleError):
            front_of(scores, costs, limit=limit)
        with pytest.raises(InfeasibleError):
            front.best_under(limit)
    else:
        cut = front_of(scores, costs, limit=limit)
        assert cut.costs.tolist() == [c for c in front.costs if c <= limit]
        assert front.costs[front.best_under(limit)] == cut.costs[-1]


def test_whole_costs_are_added_in_integers():
    big = 2**53
    front = front_of([[1.0, 0.0], [1.0, 0.0]], [[big, big + 2], [1, 3]])
    assert front.costs.dtype == np.int64
    assert front.costs.tolist() == [big + 1, big + 3, big + 5]


def test_buckets_say_that_they_are_inexact():
    rng = np.random.default_rng(1)
    scores, costs = (
        rng.random((12, 6)).cumsum(1)[:, ::-1].tolist(),
        rng.integers(1, 10**6, (12, 6)).cumsum(1).tolist(),
    )
    exact, bucketed = front_of(scores, costs), front_of(scores, costs, epsilon=1e-2)
    assert exact.exact and not bucketed.exact
    assert bucketed.costs[0] == exact.costs[0]
    assert len(bucketed) < len(exact) / 3
    assert (bucketed.scores >= exact.scores[[exact.best_under(c) for c in bucketed.costs]]).all()


def test_fifty_four_layers_take_under_a_second():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(11, 1.2, 54)).astype(int)
    scores, costs = (
        (rng.random((54, 1)) * 4.0 ** -np.array(BITS)).tolist(),
        (sizes[:, None] * np.array(BITS) // 8).tolist(),
    )
    seconds = []
    for _ in range(3):  # of the processor, and the best: other processes may be busy
        start = time.process_time()
        front = front_of(scores, costs)
        seconds.append(time.process_time() - start)
        assert len(front) > 1000
    assert min(seconds) < 1


def test_buckets_are_kept_apart_for_every_state_of_linked_layers():
    """With conversions between neighbours: fewer points, none better than the exact front, the cheapest still
    there.
    """
    p = chain(8, 4)
    exact, bucketed = (problem_front(p, "proxy", "latency_us", epsilon=epsilon) for epsilon in (0.0, 0.05))
    assert exact.exact and not bucketed.exact and len(bucketed) < len(exact) / 2
    assert bucketed.costs[0] == exact.costs[0]
    assert (bucketed.scores >= exact.scores[[exact.best_under(c) for c in bucketed.costs]] - 1e-12).all()
    for k in range(len(bucketed)):
        assert p.score("proxy", bucketed.indices(k)) == pytest.approx(bucketed.scores[k], rel=1e-12)
        assert p.cost(bucketed.indices(k)).latency_us == pytest.approx(bucketed.costs[k], rel=1e-12)


@pytest.mark.parametrize(
    ("scores", "costs", "ties", "words"),
    [
        ([[0, 1]], [[1]], None, "one entry for each layer and candidate"),
        ([[0, 1], [0]], [[1, 2], [1]], ["a", "a"], "must have equally many"),
        ([[]], [[]], None, "no candidates"),
        ([[math.nan]], [[1]], None, "not finite"),
        ([[0]], [[math.inf]], None, "not finite"),
        ([[0]], [[2.0**61]], None, "below 2\\^61"),
    ],
)
def test_what_is_wrong_is_said(scores, costs, ties, words):
    with pytest.raises(UserError, match=words):
        front_of(scores, costs, ties)


def test_tables_that_are_no_problem_s_are_checked_too():
    with pytest.raises(UserError, match="exactly one group"):
        SuperLayers.of([1, 1], [[0], [0, 1]])
    with pytest.raises(UserError, match="cost is NaN or infinite"):
        WholeCosts.of(SuperLayers.of([1]), [[math.inf]])


def test_wrong_options_and_names_are_said():
    p = random_problem(np.random.default_rng(0))
    with pytest.raises(UserError, match=r"epsilon is 1\.5"):
        problem_front(p, "proxy", epsilon=1.5)
    with pytest.raises(UnknownNameError, match="proxy"):
        problem_front(p, "proxi")
    with pytest.raises(UnknownNameError, match="latency_us"):
        problem_front(p, "proxy", "energy_mj")


@pytest.mark.parametrize("seed", range(12))
def test_a_swept_front_lies_on_the_exact_one_and_has_its_ends(seed):
    p = everything(np.random.default_rng(seed))
    every = {x: (p.cost(x).latency_us, p.score("proxy", x)) for x in every_assignment(p)}
    exact = [pair for x, pair in every.items() if not any(_beats(other, pair) for other in every.values())]
    found = swept_front(p, "proxy", "latency_us", steps=8)
    for cost, score, indices in found:
        assert (cost, score) == pytest.approx(every[indices])
        assert any(pair == pytest.approx((cost, score), rel=1e-7, abs=1e-9) for pair in exact)
    assert found[0][0] == pytest.approx(min(exact)[0], rel=1e-7)
    assert found[-1][1] == pytest.approx(max(exact)[1], rel=1e-7, abs=1e-9)
    costs, scores = [c for c, *_ in found], [s for _, s, _ in found]
    assert costs == sorted(costs) and scores == sorted(scores, reverse=True)


def _beats(a, b):
    return a != b and a[0] <= b[0] and a[1] <= b[1]
