"""Polish: exchanges that keep the budget, taken only where the measured loss falls."""

from __future__ import annotations

import math

import pytest
from search_problems import every_assignment, problem
from trial_studies import setting

from mpsearch.errors import MpsearchError, OptionError
from mpsearch.problem import Budget
from mpsearch.study import LossFile, Trial, explore, polish


def trial(p, number, indices, loss):
    return Trial(number, indices, loss, p.cost(indices), True, "warm")


def test_a_bad_assignment_becomes_the_best_by_exchanges_of_two(tmp_path):
    """Damage is 4, 1, 0 for each layer but the first, whose first bit is worth ten; any two of the four units
    of room may be spent.
    """
    p = problem([[4, 1, 0]] * 4, {"size_bytes": [[1, 2, 3]] * 4})

    def loss(x):
        return float(sum((40 if m == 0 else 4, 1, 0)[c] for m, c in enumerate(x)))

    budgets = [Budget("size_bytes", 7, "")]
    start = trial(p, 0, (0, 1, 1, 1), loss((0, 1, 1, 1)))
    found = polish(p, "proxy", budgets, loss, [start], 60)
    fitting = [x for x in every_assignment(p) if p.cost(x).size_bytes <= 7]
    assert min(t.loss for t in found) == min(map(loss, fitting))
    assert len({t.indices for t in found} | {start.indices}) == len(found) + 1
    assert all(
        t.cost.size_bytes <= 7 and t.loss == loss(t.indices) and t.proposed_by == "polish" for t in found
    )


def test_a_study_is_polished_resumes_and_never_gets_worse(tmp_path):
    p, loss, budgets = setting()
    trials = explore(p, "proxy", budgets, loss, tmp_path / "journal.log", 16, 0)
    calls = []

    def failing(indices):
        calls.append(indices)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(indices)

    expected = polish(p, "proxy", budgets, loss, trials, 12)
    with pytest.raises(KeyboardInterrupt):
        polish(p, "proxy", budgets, failing, trials, 12, LossFile(tmp_path / "polish.jsonl", 0))
    progress = []
    again = polish(
        p,
        "proxy",
        budgets,
        failing,
        trials,
        12,
        LossFile(tmp_path / "polish.jsonl", 0),
        lambda *at: progress.append(at),
    )
    assert again == expected and len(calls) == 13 and progress == [(k, 12) for k in range(1, 13)]
    assert [t.number for t in expected] == list(range(16, 28))
    assert not {t.indices for t in expected} & {t.indices for t in trials}
    assert polish(p, "proxy", budgets, loss, trials, 0) == []


def test_losses_that_are_not_finite_are_passed_over_and_what_is_wrong_is_said():
    p = problem([[4, 1, 0]] * 3, {"size_bytes": [[1, 2, 3]] * 3})
    start = trial(p, 0, (1, 1, 1), 3.0)
    found = polish(
        p,
        "proxy",
        [Budget("size_bytes", 6, "")],
        lambda x: math.nan if x[0] == 2 else float(x[0]),
        [start],
        20,
    )
    assert found and all(t.indices[0] != 2 for t in found) and min(t.loss for t in found) == 0
    with pytest.raises(OptionError, match="-1"):
        polish(p, "proxy", [], lambda x: 0.0, [start], -1)
    with pytest.raises(MpsearchError, match="None of 1 trials keeps the budgets"):
        polish(p, "proxy", [Budget("size_bytes", 4, "")], lambda x: 0.0, [start], 2)
