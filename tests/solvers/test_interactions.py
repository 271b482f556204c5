"""`solve` with interactions against brute force; joined blocks, linearised pairs, tabu search and its
bound.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from search_problems import every_assignment, problem, random_problem

from mpsearch.errors import InfeasibleError, StudyError, UserError
from mpsearch.problem import Budget, Interaction, Problem
from mpsearch.solvers import problem_front, reachable, solve
from mpsearch.solvers.budgeted import milp as milp_module
from mpsearch.solvers.budgeted.quadratic import solve_pairs
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.coupled import Coupled
from mpsearch.solvers.exact import highs as highs_module
from mpsearch.study import explore


def with_interactions(p: Problem, rng: np.random.Generator, most: int = 2, chance: float = 0.7) -> Problem:
    """Random tables between 2 to `most` layers, of either sign, tied layers among them."""
    scale = max(max(row) for row in p.scores["proxy"])
    terms = []
    for count in range(2, most + 1):
        for layers in itertools.permutations(range(len(p.layers)), count):
            if rng.random() < (chance if layers == tuple(sorted(layers)) else 0.1):
                shape = tuple(len(p.candidates[i]) for i in layers)
                terms.append(
                    Interaction(
                        layers, shape, tuple((scale * rng.normal(0, 0.5, int(np.prod(shape)))).tolist())
                    )
                )
    return replace(p, interactions={"proxy": tuple(terms)})


def budgets_of(p, rng):
    costs = [p.cost(x) for x in every_assignment(p)]
    return [
        Budget(r, float(rng.choice([getattr(c, r) for c in costs])), r) for r in ("size_bytes", "latency_us")
    ]


def best(p, budgets):
    return min(
        (
            p.score("proxy", x)
            for x in every_assignment(p)
            if all(getattr(p.cost(x), b.resource) <= b.limit for b in budgets)
        ),
        default=None,
    )


@pytest.mark.parametrize("most", [2, 3])
def test_small_problems_are_brute_force_under_one_and_two_budgets(most):
    solved = refused = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        p = with_interactions(random_problem(rng), rng, most)
        both = budgets_of(p, rng)
        for budgets in ([], both[:1], both[1:], both):
            expected = best(p, budgets)
            if expected is None:
                refused += 1
                with pytest.raises(InfeasibleError):
                    solve(p, "proxy", budgets)
                continue
            found = solve(p, "proxy", budgets)
            assert found.status == "optimal"
            assert all(getattr(found.cost, b.resource) <= b.limit for b in budgets)
            assert found.score == p.score("proxy", found.indices) == found.bound
            assert found.score == pytest.approx(expected, rel=1e-9, abs=1e-9 * abs(p.scores["proxy"][0][0]))
            solved += 1
    assert solved > 500 and refused > 5


def test_linearised_pairs_are_brute_force_under_one_and_two_budgets():
    """Nothing is joined here, so that every table is a pair of HiGHS's problem."""
    solved = 0
    for seed in range(120):
        rng = np.random.default_rng(1000 + seed)
        p = with_interactions(random_problem(rng), rng)
        coupled = Coupled.of(p, "proxy", most_tuples=1)
        if not coupled.pairs:
            continue
        both = budgets_of(p, rng)
        for budgets in (both[:1], both):
            expected = best(p, budgets)
            constraints = (
                Constraints.of(p, [], coupled.layers)
                if expected is None
                else Constraints.of(p, budgets, coupled.layers)
            )
            if expected is None:
                continue
            found, _ = solve_pairs(constraints, coupled)
            indices = coupled.layers.expand(found.choices)
            tolerance = 1e-9 * max(max(map(abs, row)) for row in p.scores["proxy"])
            assert found.proven
            assert found.bound == pytest.approx(expected, rel=1e-6, abs=1e3 * tolerance)
            assert constraints.fits(indices)
            assert p.score("proxy", indices) == pytest.approx(coupled.score(found.choices), abs=tolerance)
            assert p.score("proxy", indices) == pytest.approx(expected, rel=1e-9, abs=tolerance)
            searched, by = solve_pairs(constraints, coupled, most_entries=0)
            assert by == "tabu search" and not searched.proven
            assert searched.bound <= expected + tolerance
            assert coupled.score(searched.choices) == pytest.approx(expected, rel=1e-9, abs=tolerance), (
                "so small that two changes reach everything"
            )
            solved += 1
    assert solved > 100


def chain(count: int, reach: int, seed: int = 0) -> Problem:
    """Layers of 4 choices, each with couplings to the next `reach`, as of a positive semidefinite matrix."""
    rng = np.random.default_rng(seed)
    damage = np.exp(rng.normal(-1, 1, (count, 1))) * 4.0 ** -np.arange(4)
    factors = rng.normal(size=(4 * count, 4 * count)) / np.sqrt(4 * count) * np.sqrt(damage).reshape(-1, 1)
    gram = (factors @ factors.T).reshape(count, 4, count, 4)
    p = problem(
        damage.tolist(), {"size_bytes": (rng.integers(5, 80, (count, 1)) * np.array([2, 3, 4, 8])).tolist()}
    )
    pairs = [(i, j) for i in range(count) for j in range(i + 1, min(count, i + 1 + reach))]
    return replace(
        p,
        interactions={
            "proxy": tuple(
                Interaction(pair, (4, 4), tuple(gram[pair[0], :, pair[1]].ravel().tolist())) for pair in pairs
            )
        },
    )


def along(p, share=0.5):
    """A second resource, whose budget hardly binds: with it the line's dynamic programme leaves the problem
    to HiGHS.
    """
    costs = tuple(
        tuple(float((7 * i + 3 * c) % 11) for c in range(len(row))) for i, row in enumerate(p.candidates)
    )
    p = replace(p, costs={**p.costs, "latency_us": costs})
    low, high = reachable(p)["latency_us"]
    return p, [*budget(p), Budget("latency_us", low + share * (high - low), "")]


def budget(p, share=0.35):
    low, high = (sum(pick(row) for row in p.costs["size_bytes"]) for pick in (min, max))
    return [Budget("size_bytes", low + share * (high - low), "")]


def test_blocks_are_joined_and_solved_without_pairs():
    p = chain(12, 1)
    within = tuple(t for t in p.interactions["proxy"] if t.layers[0] // 3 == t.layers[1] // 3)
    p = replace(p, interactions={"proxy": within})
    coupled = Coupled.of(p, "proxy")
    assert (
        [len(g) for g in coupled.layers.groups] == [3, 3, 3, 3]
        and coupled.layers.widths == (64,) * 4
        and not coupled.pairs
    )
    found = solve(p, "proxy", budget(p))
    linear, _ = solve_pairs(Constraints.of(p, budget(p), (pairs := Coupled.of(p, "proxy", 1)).layers), pairs)
    assert found.status == "optimal" and found.found_by == "exact dynamic programme"
    assert found.score == pytest.approx(pairs.score(linear.choices), rel=1e-9)
    front = problem_front(p, "proxy")
    at = front.best_under(budget(p)[0].limit)
    assert front.exact and front.scores[at] == pytest.approx(found.score, rel=1e-12)
    assert p.cost(front.indices(at)).size_bytes == front.costs[at]


def test_a_long_chain_is_proven_and_better_than_without_its_pairs():
    p = chain(14, 2)
    found = solve(p, "proxy", budget(p))
    assert found.status == "optimal" and found.found_by == "exact dynamic programme"
    by_highs, _ = solve_pairs(Constraints.of(p, budget(p)), (coupled := Coupled.of(p, "proxy")))
    assert by_highs.proven and coupled.score(by_highs.choices) == pytest.approx(found.score, rel=1e-9)
    alone = solve(replace(p, interactions={}), "proxy", budget(p))
    assert found.score < p.score("proxy", alone.indices)
    p, two = along(p)
    found = solve(p, "proxy", two)
    assert found.status == "optimal" and "HiGHS" in found.found_by


def test_out_of_time_or_out_of_size_is_not_called_optimal(monkeypatch):
    p, two = along(chain(14, 2))
    optimum = solve(p, "proxy", two).score

    def stopped(*args):
        outcome = highs_module.minimise(*args)
        return highs_module.Outcome(None, outcome.bound / 2, proven=False) if args[-1] else outcome

    monkeypatch.setattr(milp_module, "minimise", stopped)
    found = solve(p, "proxy", two)
    assert found.status == "feasible" and found.found_by == "tabu search"
    assert found.bound <= optimum <= found.score <= 1.02 * optimum
    wide = chain(44, 44)
    assert sum(len(t.values) for t in wide.interactions["proxy"]) < 20_000
    coupled = Coupled.of(wide, "proxy")
    searched, by = solve_pairs(Constraints.of(wide, budget(wide), coupled.layers), coupled, most_entries=1000)
    assert by == "tabu search" and not searched.proven and searched.bound < coupled.score(searched.choices)
    assert coupled.score(searched.choices) <= wide.score(
        "proxy", solve(replace(wide, interactions={}), "proxy", budget(wide)).indices
    )
    again, _ = solve_pairs(Constraints.of(wide, budget(wide), coupled.layers), coupled, most_entries=1000)
    assert again == searched


def test_a_proof_of_something_worse_than_is_known_is_none(monkeypatch):
    p = chain(14, 2)

    def wrong(*args):
        return highs_module.Outcome((3,) * 14, 0.0, proven=True) if args[-1] else highs_module.minimise(*args)

    p = replace(
        p, scores={"proxy": tuple(tuple(row[::-1]) for row in p.scores["proxy"])}
    )  # now the cheapest is the best, and choice 3 the worst
    limit = [Budget("size_bytes", sum(max(row) for row in p.costs["size_bytes"]), "")]
    monkeypatch.setattr(milp_module, "minimise", wrong)
    coupled = Coupled.of(p, "proxy")
    found, _ = solve_pairs(Constraints.of(p, limit, coupled.layers), coupled)
    assert not found.proven and coupled.score(found.choices) < p.score("proxy", (3,) * 14)


def test_tables_of_three_stay_whole_where_all_together_is_too_much():
    """Blocks of three as one table each, and pairs between neighbouring blocks: 12 layers that all hang
    together.
    """
    p = chain(12, 1, seed=5)
    rng = np.random.default_rng(5)
    blocks = tuple(
        Interaction((i, i + 1, i + 2), (4, 4, 4), tuple(rng.normal(0, 0.05, 64).tolist()))
        for i in range(0, 12, 3)
    )
    p = replace(p, interactions={"proxy": (*p.interactions["proxy"], *blocks)})
    coupled = Coupled.of(p, "proxy")
    assert coupled.layers.widths == (64,) * 4 and [(q.first, q.second) for q in coupled.pairs] == [
        (0, 1),
        (1, 2),
        (2, 3),
    ]
    for seed in range(20):
        choices = tuple(int(c) for c in np.random.default_rng(seed).integers(0, 64, 4))
        assert coupled.score(choices) == pytest.approx(
            p.score("proxy", coupled.layers.expand(choices)), rel=1e-12
        )
        assert coupled.layers.contract(coupled.layers.expand(choices)) == choices
    with pytest.raises(UserError, match=r"\[0, 1, 2\] together, which have 64 tuples of choices; at most 63"):
        Coupled.of(p, "proxy", most_tuples=63)
    front = problem_front(p, "proxy")
    assert front.exact and p.score("proxy", front.indices(0)) == pytest.approx(front.scores[0], rel=1e-12)
    wide = chain(30, 30)
    with pytest.raises(UserError, match="too many layers for an exact front"):
        problem_front(wide, "proxy")


def test_a_study_refuses_what_its_table_cannot_hold(tmp_path):
    p = chain(4, 1)
    with pytest.raises(UserError, match=r"has interactions beside it.*`warm`"):
        explore(p, "proxy", [], lambda _: 0.0, tmp_path / "journal.log", 4, 0)


def test_interactions_are_written_and_read_and_older_files_still_are(tmp_path):
    p = chain(3, 1)
    data = json.loads(json.dumps(p.to_json()))
    assert data["schema"] == 2 and Problem.from_json(data) == p
    plain = replace(p, interactions={}).to_json()
    assert (
        plain["schema"] == 1
        and "interactions" not in plain
        and Problem.from_json(plain) == replace(p, interactions={})
    )
    path = tmp_path / "problem.json"
    path.write_text(json.dumps({**data, "interactions": {"proxy": [{"layers": [0]}]}}))
    with pytest.raises(StudyError, match="not a problem that mpsearch wrote"):
        Problem.load(path)


@pytest.mark.parametrize(
    ("layers", "shape", "values", "message"),
    [
        ((0, 0), (2, 2), (0.0,) * 4, "two or more different layers"),
        ((0,), (2,), (0.0,) * 2, "two or more different layers"),
        ((0, 1), (2, 2), (0.0,) * 3, "3 values; its shape .* needs 4"),
        ((0, 1), (2, 2), (0.0, 0.0, 0.0, float("nan")), "NaN or infinite"),
        ((0, 7), (2, 2), (0.0,) * 4, "has the layers 0 to 1"),
        ((0, 1), (2, 3), (0.0,) * 6, "not their numbers of candidates"),
    ],
)
def test_an_interaction_that_cannot_be_is_refused(layers, shape, values, message):
    with pytest.raises(UserError, match=message):
        replace(problem([[1, 0], [1, 0]], {}), interactions={"proxy": (Interaction(layers, shape, values),)})
    with pytest.raises(UserError, match="no score table"):
        replace(problem([[1, 0], [1, 0]], {}), interactions={"other": ()})


def test_score_by_hand_and_the_order_of_layers_within_a_table():
    p = replace(
        problem([[1, 2], [3, 4]], {}),
        interactions={"proxy": (Interaction((1, 0), (2, 2), (0.0, 10.0, 20.0, 30.0)),)},
    )
    assert p.score("proxy", (1, 0)) == 2 + 3 + 10
    assert p.score("proxy", (0, 1)) == 1 + 4 + 20
    coupled = Coupled.of(p, "proxy", most_tuples=1)
    assert coupled.pairs[0].table.tolist() == [[0, 20], [10, 30]]
