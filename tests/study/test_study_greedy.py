"""Greedy MP: the Lagrangian path where damages add up, the same however it is interrupted, and never above a
budget.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_problems import BITS, golden, interacting, problem

from mpsearch.errors import (
    BudgetError,
    InfeasibleError,
    MpsearchError,
    OptionError,
    StudyError,
    UnknownNameError,
)
from mpsearch.problem import Budget
from mpsearch.solvers import problem_front, reachable, solve
from mpsearch.solvers.tables.groups import SuperLayers
from mpsearch.study import GreedyMP, LossFile
from mpsearch.study.ladders import Ladders

MODES = ("fresh", "lazy", "static")


def convex(seed: int, count: int = 6, ties=None):
    """Damage falls ever more slowly as bytes grow: each layer is its own convex hull. Index 0 is the fewest
    bits.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(10, 90, (count, 1)) * np.array(BITS)
    slopes = -np.sort(-rng.random((count, len(BITS) - 1)), axis=1)
    drops = slopes * np.diff(sizes, axis=1)
    scores = np.concatenate([np.cumsum(drops[:, ::-1], axis=1)[:, ::-1], np.zeros((count, 1))], axis=1)
    p = problem(scores.tolist(), {"size_bytes": sizes.tolist()}, ties)
    return p, lambda x: p.score("proxy", x)


def lagrangian_path(p):
    """Every assignment that minimises damage + price x bytes for some price, ties left out, from the least
    price on.
    """
    layers = SuperLayers.of([len(c) for c in p.candidates], p.ties)
    scores, costs = layers.merge(p.scores["proxy"]), layers.merge(p.costs["size_bytes"])
    prices = sorted(
        {
            float(-(s[i] - s[i + 1]) / (c[i] - c[i + 1]))
            for s, c in zip(scores, costs, strict=True)
            for i in range(len(s) - 1)
        }
    )
    between = [0.0, *((low + high) / 2 for low, high in itertools.pairwise(prices)), prices[-1] * 2]
    return [
        layers.expand([int((s + price * c).argmin()) for s, c in zip(scores, costs, strict=True)])
        for price in between
    ]


@pytest.mark.parametrize("rescoring", MODES)
@pytest.mark.parametrize("ties", [None, ["a", None, "a", None, None, "b"]])
def test_equals_the_lagrangian_path_on_convex_additive_instances(rescoring, ties):
    for seed in range(12):
        p, loss = convex(seed, ties=ties)
        expected = lagrangian_path(p)
        down = GreedyMP(rescoring=rescoring, repairs=0).solve(p, [], loss)
        assert [step.indices for step in down.trajectory] == expected
        low, high = reachable(p)["size_bytes"]
        up = GreedyMP(rescoring=rescoring, direction="up", repairs=0).solve(
            p, [Budget("size_bytes", high, "")], loss
        )
        assert [step.indices for step in up.trajectory] == expected[::-1]
        assert down.front() == down.trajectory, "no point of a convex path dominates another"
        assert low == down.trajectory[-1].cost.size_bytes


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(MODES),
    st.sampled_from(["down", "up", "both"]),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_keeps_the_budget_monotone_in_bytes_and_deterministic(seed, rescoring, direction, share, power):
    p, loss = interacting(5, seed)
    low, high = reachable(p)["size_bytes"]
    budget = Budget("size_bytes", low + share * (high - low), "")
    options = GreedyMP(rescoring=rescoring, direction=direction, power=power)
    run = options.solve(p, [budget], loss)
    sizes = [step.cost.size_bytes for step in run.trajectory]
    rising = run.solution.found_by.startswith("greedy up")
    assert all((a < b) == rising and a != b for a, b in itertools.pairwise(sizes))
    assert not rising or sizes[-1] <= budget.limit
    assert run.solution.cost.size_bytes <= budget.limit
    assert run.solution.score == loss(run.solution.indices)
    assert run.solution.score <= min(
        step.loss for step in run.trajectory if step.cost.size_bytes <= budget.limit
    )
    assert run.solution.status == "feasible" and run.solution.bound is None
    assert options.solve(p, [budget], loss) == run


def test_the_repair_reaches_the_optimum_that_greedy_misses():
    p = problem([[4.0, 0.0], [6.0, 0.0], [3.0, 0.0]], {"size_bytes": [[0, 10], [0, 12], [0, 5]]})
    budget = [Budget("size_bytes", 12, "")]
    assert solve(p, "proxy", budget).indices == (0, 1, 0)
    plain, mended = (
        GreedyMP(repairs=repairs).solve(p, budget, lambda x: p.score("proxy", x)).solution
        for repairs in (0, 16)
    )
    assert (plain.indices, plain.score) == ((0, 0, 1), 10.0)
    assert (mended.indices, mended.score) == ((0, 1, 0), 7.0)


def test_recorded_resnet18_is_near_its_exact_optimum():
    """Measured: 2.7% at worst with the repair, 14% without."""
    layers = golden("solver_resnet18.json")["layers"]
    p = problem([layer["scores"] for layer in layers], {"size_bytes": [layer["costs"] for layer in layers]})
    front = problem_front(p, "proxy")
    for limit in np.linspace(*reachable(p)["size_bytes"], 8)[1:-1].tolist():
        run = GreedyMP(direction="both").solve(
            p, [Budget("size_bytes", limit, "")], lambda x: p.score("proxy", x)
        )
        least = front.scores[front.best_under(limit)]
        assert least <= run.solution.score * (1 + 1e-9) <= 1.04 * least


def test_measured_interactions_are_seen_where_the_table_is_blind():
    """Two layers that are each harmless alone and ruinous together: `static` lowers both, `fresh` and `lazy`
    do not.
    """
    sizes = {"size_bytes": [[1, 2], [1, 2], [1, 2]]}
    p = problem([[0.0, 0.0]] * 3, sizes)
    loss = lambda x: 0.1 * (x[0] == 0) + 0.1 * (x[1] == 0) + 0.5 * (x[2] == 0) + 9.0 * (x[0] == x[1] == 0)  # noqa: E731
    found = {
        mode: GreedyMP(rescoring=mode, repairs=0).solve(p, [Budget("size_bytes", 4, "")], loss).solution
        for mode in MODES
    }
    assert found["static"].indices == (0, 0, 1) and found["static"].score == pytest.approx(9.2)
    assert found["fresh"].score == found["lazy"].score == pytest.approx(0.6)


def test_lazy_measures_less_than_fresh_and_no_assignment_twice():
    p, loss = interacting(12, 1)
    calls = {}
    for mode in MODES:
        seen = []

        def counted(indices, seen=seen):
            seen.append(indices)
            return loss(indices)

        run = GreedyMP(rescoring=mode, repairs=0).solve(p, [], counted)
        assert len(set(seen)) == len(seen) == run.measured
        calls[mode] = run.measured
        assert len(run.trajectory) == 12 * 5 + 1
    assert calls["static"] <= 2 * 12 * 5 + 1
    assert calls["lazy"] < calls["fresh"] / 2


def test_ties_take_the_larger_saving_and_then_the_earlier_layer_and_noise_counts_as_epsilon():
    p = problem([[0.0, 0.0]] * 3, {"size_bytes": [[0, 1], [0, 2], [0, 2]]})
    path = GreedyMP(power=0, repairs=0).solve(p, [], lambda _: 1.0).trajectory
    assert [step.indices for step in path] == [(1, 1, 1), (1, 0, 1), (1, 0, 0), (0, 0, 0)]
    p = problem([[0.0, 0.0]] * 3, {"size_bytes": [[0, 2], [0, 4], [0, 3]]})
    noisy = {(1, 1, 1): 1.0, (0, 1, 1): 0.7, (1, 0, 1): 0.8, (1, 1, 0): 0.95}
    path = GreedyMP(repairs=0).solve(p, [], lambda x: noisy.get(x, 2.0)).trajectory
    assert path[1].indices == (1, 0, 1), (
        "of damages below zero the larger saving counts, neither the deepest fall nor the smallest"
    )


def test_static_looks_at_each_layer_alone():
    p, loss = interacting(6, 2)
    seen = []
    run = GreedyMP(rescoring="static", repairs=0).solve(p, [], lambda x: (seen.append(x), loss(x))[1])
    taken = {step.indices for step in run.trajectory}
    assert all(x in taken or sum(c != 5 for c in x) == 1 for x in seen)
    assert {x for x in seen if sum(c != 5 for c in x) == 1} == {
        (5,) * i + (c,) + (5,) * (5 - i) for i in range(6) for c in range(5)
    }


def test_an_interrupted_walk_continues_from_its_file(tmp_path):
    p, loss = interacting(8, 3)
    low, high = reachable(p)["size_bytes"]
    budget = [Budget("size_bytes", low + 0.4 * (high - low), "")]
    whole = GreedyMP(direction="both").solve(p, budget, loss)
    calls = []

    def failing(indices):
        calls.append(indices)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return loss(indices)

    path = tmp_path / "losses.jsonl"
    with pytest.raises(KeyboardInterrupt):
        GreedyMP(direction="both").solve(p, budget, failing, losses=LossFile(path, ["model"]))
    with path.open("ab") as file:
        file.write(b'{"indices":[0,')
    resumed = GreedyMP(direction="both").solve(p, budget, failing, losses=LossFile(path, ["model"]))
    assert resumed.solution == whole.solution and resumed.trajectory == whole.trajectory
    assert resumed.measured == whole.measured - 39 and len(calls) == whole.measured + 1
    again = GreedyMP(direction="both").solve(
        p, budget, lambda _: pytest.fail("measured again"), losses=LossFile(path, ["model"])
    )
    assert again.measured == 0 and again.solution == whole.solution
    with pytest.raises(StudyError, match="another model, data or quantisers"):
        LossFile(path, ["other"])
    path.write_text("not json\n")
    with pytest.raises(StudyError, match="not a file of measured losses"):
        LossFile(path, ["model"])


def test_what_is_not_finite_is_never_taken(tmp_path):
    p = problem([[0.0, 0.0]] * 2, {"size_bytes": [[1, 2], [1, 2]]})
    loss = lambda x: math.nan if x[0] == 0 else float(x[1] == 0)  # noqa: E731
    file = LossFile(tmp_path / "losses.jsonl", 0)
    run = GreedyMP().solve(p, [Budget("size_bytes", 3, "")], loss, losses=file)
    assert run.solution.indices == (1, 0)
    assert math.isinf(LossFile(tmp_path / "losses.jsonl", 0).get((0, 1)))
    with pytest.raises(MpsearchError, match="without keeping all budgets"):
        GreedyMP().solve(p, [Budget("size_bytes", 2, "")], loss)
    with pytest.raises(MpsearchError, match=r"not finite where Greedy MP starts, at l0 W3A8, l1 W3A8\."):
        GreedyMP().solve(p, [], lambda _: math.nan)


def test_a_notch_is_one_step_in_weight_or_input_bits_that_saves():
    """Candidates 0 to 7 are W2, W3, W4, W5, W6, W8 at A8 and W2, W3 at A6."""
    bops = [[16, 24, 32, 40, 48, 64, 12, 18]]
    p = problem(
        [[0.0] * 8],
        {"bops": bops, "size_bytes": [[2, 3, 4, 5, 6, 8, 2, 3]], "latency_us": [[5, 4, 3, 9, 9, 3, 1, 9]]},
    )
    layers = SuperLayers.of([8])
    by_bops = Ladders.of(p, layers, "bops")
    assert by_bops.down[0][1] == [0, 7] and by_bops.down[0][0] == [6] and by_bops.down[0][7] == [6]
    assert by_bops.up[0][6] == [0, 7] and by_bops.end(1) == (5,) and by_bops.end(-1) == (6,)
    by_size = Ladders.of(p, layers, "size_bytes")
    assert by_size.down[0][0] == [] and by_size.qualities[0][6] is None, "A6 saves no bytes"
    by_time = Ladders.of(p, layers, "latency_us")
    assert [c for c, q in enumerate(by_time.qualities[0]) if q] == [5, 6], "slower than W8 and worse"
    together = Ladders.of(p, layers, "bops", "size_bytes")
    assert together.costs[0][7] == 18 / 64 + 3 / 8 and together.down[0][1] == [0, 7]


def test_two_budgets_and_progress():
    p, loss = convex(4)
    p = problem(
        p.scores["proxy"], {"size_bytes": p.costs["size_bytes"], "latency_us": [[1, 2, 3, 4, 5, 6]] * 6}
    )
    budgets = [Budget("size_bytes", 0.8 * reachable(p)["size_bytes"][1], ""), Budget("latency_us", 20, "")]
    steps = []
    run = GreedyMP().solve(p, budgets, loss, on_step=lambda *at: steps.append(at))
    assert run.solution.cost.latency_us <= 20 and run.solution.cost.size_bytes <= budgets[0].limit
    assert steps == [(k, 30) for k in range(1, len(run.trajectory))]
    assert run.solution.score >= solve(p, "proxy", budgets).score - 1e-12


def test_what_is_wrong_is_said():
    p, loss = convex(0)
    with pytest.raises(OptionError, match="fresh, lazy or static"):
        GreedyMP(rescoring="sometimes")
    with pytest.raises(OptionError, match="epsilon above 0"):
        GreedyMP(epsilon=0.0)
    with pytest.raises(UnknownNameError, match="latency_us"):
        GreedyMP(resource="latency_us").solve(p, [], loss)
    with pytest.raises(InfeasibleError, match="least reachable"):
        GreedyMP().solve(p, [Budget("size_bytes", 1, "1B")], loss)
    with pytest.raises(BudgetError, match="nothing to save"):
        GreedyMP().solve(problem([[0, 1]], {}), [], loss)
