"""Objectives with interactions: what is measured is what is predicted, block by block and pair by pair."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle

import numpy as np
import pytest
import torch

from mpsearch.errors import OptionError
from mpsearch.evaluate import FastEvaluator
from mpsearch.objectives import ScoringContext
from mpsearch.objectives.interacting import INTERACTING, Couplings, couple
from mpsearch.objectives.interacting._groups import raised
from mpsearch.objectives.interacting.pairwise import Pairwise
from mpsearch.problem import Assignment, Candidate, Layer, Problem
from mpsearch.solvers import solve

TEXTS = ("W2A4", "W3A8", "W4A8", "float")
CANDIDATES = tuple(Candidate.parse(text) for text in TEXTS)
FLOAT = Candidate.parse("float")


def context_of(net, candidates=CANDIDATES, ties=None, **more) -> ScoringContext:
    """The net's units with their blocks, and a product that is not calibrated."""
    block = {unit: name for name, units in net.blocks for unit in units}

    def layer(unit: str) -> Layer:
        weight = net.calibration.weights[unit]
        return Layer(
            unit,
            "conv2d" if weight.ndim == 4 else "linear",
            tuple(weight.shape),
            ((1,),),
            (1,),
            weight.numel(),
            block[unit],
            (ties or {}).get(unit),
        )

    product = Layer("blocks.0.matmul0", "matmul", (), ((1, 2, 3), (1, 3, 2)), (1, 2, 2), 12, "blocks.0")
    layers = (*(layer(unit) for unit in net.units), product)
    return ScoringContext(
        net.module, layers, (*((candidates,) * len(net.units)), (FLOAT,)), net.calibration, net.images, **more
    )


def problem_of(context, couplings) -> Problem:
    size = tuple(
        tuple(float(layer.weight_numel * (c.w_bits or 32)) for c in row)
        for layer, row in zip(context.layers, context.candidates, strict=True)
    )
    return couplings.put_into(
        Problem(context.layers, context.candidates, costs={"size_bytes": size}), "coupled"
    )


@pytest.mark.parametrize("name", INTERACTING.names())
class TestEveryInteractingObjective:
    def test_leaves_all_as_found_and_is_deterministic(self, tiny, left_as_found, name):
        net = tiny("conv")
        check = left_as_found(net.module)
        kept = {unit: w.clone() for unit, w in net.calibration.weights.items()}
        found = couple(INTERACTING.create(name), context_of(net))
        check()
        assert all(torch.equal(net.calibration.weights[unit], kept[unit]) for unit in kept)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(99)
            again = couple(INTERACTING.create(name), context_of(net))
        assert (again.rows, again.interactions) == (found.rows, found.interactions)
        assert found.seconds > 0 and found.passes.forward > 0
        assert Couplings.from_json(json.loads(json.dumps(found.to_json()))) == found

    def test_float_is_zero_and_problem_takes_it(self, tiny, name):
        net = tiny("vit")
        context = context_of(net, CANDIDATES[1:])
        p = problem_of(context, couple(INTERACTING.create(name), context))
        everywhere = tuple(row.index(FLOAT) for row in context.candidates)
        assert p.score("coupled", everywhere) == 0
        assert p.score("coupled", (*((0,) * len(net.units)), 0)) > 0
        assert Problem.from_json(p.to_json()) == p
        assert solve(p, "coupled", []).score >= 0

    def test_progress_ends_and_it_pickles(self, tiny, name):
        steps = []
        objective = INTERACTING.create(name)
        couple(objective, context_of(tiny("conv"), on_step=lambda done, total: steps.append((done, total))))
        assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))
        again = pickle.loads(pickle.dumps(objective))  # noqa: S301
        assert again == objective and again.name == name and not again.additive and again.unit
        with pytest.raises(dataclasses.FrozenInstanceError):
            objective.images = 1


def measured_kl(net, images=32):
    evaluator = FastEvaluator(
        net.module, net.calibration, net.images.subset(range(min(images, len(net.images))))
    )
    return lambda chosen: evaluator.measure(
        Assignment(tuple((unit, chosen.get(unit, FLOAT)) for unit in net.units))
    )


def test_pairs_predict_what_one_and_two_choices_do(tiny):
    net = tiny("conv")
    context = context_of(net)
    found = couple(Pairwise(scope="full"), context)
    p, truth = problem_of(context, found), measured_kl(net)
    four = range(len(net.units))
    assert sorted(t.layers for t in found.interactions) == list(itertools.combinations(four, 2))
    moved = set()
    for i, j in itertools.combinations(four, 2):
        for k, m in itertools.product(range(4), repeat=2):
            indices = [3] * 4 + [0]
            indices[i], indices[j] = k, m
            expected = truth({net.units[i]: CANDIDATES[k], net.units[j]: CANDIDATES[m]})
            predicted = p.score("coupled", indices)
            if predicted > expected + 1e-9 * abs(expected) + 1e-15:
                moved.add(tuple(indices))
            assert predicted >= expected - 1e-12
    assert 0 < len(moved) <= found.violations
    assert any(abs(v) > 1e-6 for t in found.interactions for v in t.values), "the units do interact"


def test_pairs_stay_within_blocks_and_cost_what_is_stated(tiny):
    net = tiny("vit")
    context = context_of(net, CANDIDATES[2:])
    calls = []
    for objective in (Pairwise(images=8), Pairwise(images=8, scope="full"), Pairwise(images=8, most_bits=3)):
        calls.clear()
        found = objective.measured(
            context, lambda a: calls.append(a) or 1.0 + sum(not c.is_float for c in a.values())
        )
        assert 8 * (len(calls) + 1) == objective.passes(context).forward
        blocks = {
            (context.layers[i].block, context.layers[j].block)
            for i, j in (t.layers for t in found.interactions)
        }
        assert all(a == b for a, b in blocks) == (objective.scope == "blocks")
        inside = [len(units) for _, units in net.blocks] if objective.scope == "blocks" else [len(net.units)]
        assert len(found.interactions) == (
            sum(n * (n - 1) // 2 for n in inside) if objective.most_bits == 8 else 0
        )


def test_a_tie_is_measured_once_and_stands_in_its_first_layer(tiny):
    net = tiny("conv")
    context = context_of(net, ties={"residual.conv1": "t", "head": "t"})
    found = couple(Pairwise(scope="full"), context)
    assert not any(found.rows[3]) and sorted(t.layers for t in found.interactions) == [(0, 1), (0, 2), (1, 2)]
    alone = measured_kl(net)({"residual.conv1": CANDIDATES[2], "head": CANDIDATES[2]})
    assert found.rows[1][2] == pytest.approx(alone, rel=1e-9)
    assert problem_of(context, found).score("coupled", (3, 2, 3, 2, 0)) == found.rows[1][2]


def test_noise_that_favours_fewer_bits_is_raised_and_counted():
    pair = tuple(map(Candidate.parse, ("W2A8", "W4A8", "float")))
    table, moved = raised(np.array([1.0, 2.0, 0.5]), [pair])
    assert table.tolist() == [2.0, 2.0, 0.5] and moved == 1
    table, moved = raised(np.array([[1.0, 5.0], [3.0, 2.0]]), [pair[:2], pair[:2]])
    assert table.tolist() == [[5.0, 5.0], [3.0, 2.0]] and moved == 1
    apart = tuple(map(Candidate.parse, ("W2A8", "W8A2")))
    assert raised(np.array([1.0, 9.0]), [apart])[1] == 0, "neither has more bits than the other"


def test_a_fall_from_noise_cannot_win_without_a_budget(tiny):
    """Two choices together that seem to do less than either alone are taken to do as much."""
    net = tiny("conv")
    context = context_of(net, CANDIDATES[2:])
    worth = {0: 0.0, 1: 1.0, 2: 0.2, 3: 0.1, 4: 0.1}
    found = Pairwise(scope="full").measured(context, lambda a: worth[sum(not c.is_float for c in a.values())])
    assert found.violations == 6
    p = problem_of(context, found)
    for i, j in itertools.combinations(range(4), 2):
        indices = [1] * 4 + [0]
        indices[i] = indices[j] = 0
        assert p.score("coupled", indices) == pytest.approx(1.0)


def test_wrong_options_are_refused():
    for options in ("images=0", "scope=all"):
        with pytest.raises(OptionError):
            INTERACTING.create(f"pairwise:{options}")
