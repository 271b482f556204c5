"""The local model: what the table cannot say is learned from neighbours, and its improvements are those of
its normal distribution.
"""

from __future__ import annotations

import numpy as np
from search_problems import problem

from mpsearch.problem import Budget
from mpsearch.study import Trial, polish
from mpsearch.study.model.correction import correct
from mpsearch.study.model.gaussian_process import LocalModel
from mpsearch.study.optima import sums


def lucky(seed, number, luck, count=8, width=4):
    """Proxy rows, a loss with the luck of pairs of choices that no sum over layers has, choices around one,
    and that one.
    """
    rng = np.random.default_rng(seed)
    rows = [np.exp(rng.normal(0, 1)) * 4.0 ** -np.arange(width) for _ in range(count)]
    pairs = rng.normal(0, luck, (count, count, width, width))
    centre = tuple(int(c) for c in rng.integers(0, width, count))

    def loss(choices):
        error = sum(pairs[m, n, choices[m], choices[n]] for m in range(count) for n in range(m))
        return float(0.01 * sums(rows, [choices])[0] * np.exp(error))

    around = {centre}
    while len(around) < number:
        changed = list(centre)
        for m in rng.choice(count, int(rng.integers(1, 4)), replace=False):
            changed[m] = int(rng.integers(width))
        around.add(tuple(changed))
    return rows, loss, sorted(around), centre


def test_neighbours_tell_what_the_table_cannot():
    """Of assignments that were not measured, the local model explains most of what the corrected table
    leaves.
    """
    better, covered = [], []
    for seed in range(4):
        rows, loss, around, centre = lucky(seed, 160, 0.1)
        losses = np.array([loss(c) for c in around])
        rng = np.random.default_rng(seed)
        held = np.zeros(len(around), dtype=bool)
        held[rng.choice(len(around), 40, replace=False)] = True
        table = correct(rows, np.array(around)[~held], losses[~held], centre)
        model = LocalModel.of(table)
        fresh, truth = [c for c, h in zip(around, held, strict=True) if h], np.log(losses[held] - table.base)
        mean, sd = model.log_loss(fresh)
        of_table = table.log_loss(sums(table.mean(), fresh))
        better.append(float(np.mean((mean - truth) ** 2) / np.mean((of_table - truth) ** 2)))
        covered.append(float(np.mean(np.abs(mean - truth) < 2 * sd)))
        assert model.likeness > 0
    assert np.mean(better) < 0.6
    assert np.mean(covered) > 0.8


def test_what_was_measured_is_known_and_what_is_far_is_not():
    rows, loss, around, centre = lucky(5, 60, 0.1)
    losses = np.array([loss(c) for c in around])
    table = correct(rows, np.array(around), losses, centre)
    model = LocalModel.of(table)
    mean, sd = model.log_loss([centre, tuple(3 - c for c in centre)])
    assert abs(mean[0] - np.log(loss(centre) - table.base)) < 0.05
    assert sd[1] > 3 * sd[0]


def test_the_expected_improvement_is_the_mean_of_what_is_drawn():
    rows, loss, around, centre = lucky(6, 60, 0.1)
    table = correct(rows, np.array(around), np.array([loss(c) for c in around]), centre)
    model = LocalModel.of(table)
    fresh = [c for c in lucky(6, 120, 0.1)[2] if c not in around][:20]
    mean, sd = model.log_loss(fresh)
    drawn = np.random.default_rng(0).normal(mean, sd, (20000, len(fresh)))
    best = loss(centre)
    expected = np.maximum(np.log(best - table.base) - drawn, 0).mean(axis=0)
    np.testing.assert_allclose(model.expected_improvement(fresh, best), expected, rtol=0.1, atol=1e-3)


def test_a_table_that_is_right_has_no_luck_to_learn():
    rows, loss, around, centre = lucky(7, 80, 0.0)
    model = LocalModel.of(correct(rows, np.array(around), np.array([loss(c) for c in around]), centre))
    assert model.deviation <= 0.02


def test_a_polish_leaves_an_optimum_that_no_exchange_improves():
    """Two bits that help only together with a third: within two changes of the start nothing is better, and
    another start is near what is.
    """
    p = problem([[4.0, 1.0]] * 6, {"size_bytes": [[1, 2]] * 6})

    def loss(x):
        return (
            10.0
            - 6.0 * (x == (0, 0, 0, 1, 1, 1))
            - 1.0 * (x == (1, 1, 1, 0, 0, 0))
            + 0.1 * sum(1 - c for c in x)
        )

    def trial(number, x):
        return Trial(number, x, loss(x), p.cost(x), True, "warm")

    found = polish(
        p,
        "proxy",
        [Budget("size_bytes", 9, "")],
        loss,
        [trial(0, (1, 1, 1, 0, 0, 0)), trial(1, (0, 0, 1, 0, 1, 1))],
        30,
    )
    assert min(t.loss for t in found) == loss((0, 0, 0, 1, 1, 1))
