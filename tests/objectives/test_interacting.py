"""Objectives with interactions: what is measured is what is predicted, block by block and pair by pair."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle

import numpy as np
import pytest
import torch

from mpsearch.errors import ModelError, OptionError
from mpsearch.evaluate import FastEvaluator
from mpsearch.objectives import ScoringContext
from mpsearch.objectives._grads import Cotangents
from mpsearch.objectives.interacting import INTERACTING, Couplings, couple
from mpsearch.objectives.interacting._groups import raised
from mpsearch.objectives.interacting._projection import nearest_convex
from mpsearch.objectives.interacting.block_tuples import BlockTuples
from mpsearch.objectives.interacting.pairwise import Pairwise, project
from mpsearch.problem import Assignment, Budget, Candidate, Layer, Problem
from mpsearch.quant import install
from mpsearch.solvers import solve

TEXTS = ("W2A4", "W3A8", "W4A8", "float")
CANDIDATES = tuple(Candidate.parse(text) for text in TEXTS)
FLOAT = Candidate.parse("float")


def context_of(net, candidates=CANDIDATES, ties=None, **more) -> ScoringContext:
    """The net's units with their blocks, and a product that is not calibrated."""
    block = {unit: name for name, units in net.blocks for unit in units}

    def layer(unit: str) -> Layer:
        weight = net.calibration.weights[unit]
        return Layer(unit, "conv2d" if weight.ndim == 4 else "linear", tuple(weight.shape), ((1,),), (1,), weight.numel(), block[unit], (ties or {}).get(unit))

    product = Layer("blocks.0.matmul0", "matmul", (), ((1, 2, 3), (1, 3, 2)), (1, 2, 2), 12, "blocks.0")
    layers = (*(layer(unit) for unit in net.units), product)
    return ScoringContext(net.module, layers, (*((candidates,) * len(net.units)), (FLOAT,)), net.calibration, net.images, **more)


def problem_of(context, couplings) -> Problem:
    size = tuple(tuple(float(layer.weight_numel * (c.w_bits or 32)) for c in row) for layer, row in zip(context.layers, context.candidates, strict=True))
    return couplings.put_into(Problem(context.layers, context.candidates, costs={"size_bytes": size}), "coupled")


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
    evaluator = FastEvaluator(net.module, net.calibration, net.images.subset(range(min(images, len(net.images)))))
    return lambda chosen: evaluator.measure(Assignment(tuple((unit, chosen.get(unit, FLOAT)) for unit in net.units)))


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
        found = objective.measured(context, lambda a: calls.append(a) or 1.0 + sum(not c.is_float for c in a.values()))
        assert 8 * (len(calls) + 1) == objective.passes(context).forward
        blocks = {(context.layers[i].block, context.layers[j].block) for i, j in (t.layers for t in found.interactions)}
        assert all(a == b for a, b in blocks) == (objective.scope == "blocks")
        inside = [len(units) for _, units in net.blocks] if objective.scope == "blocks" else [len(net.units)]
        assert len(found.interactions) == (sum(n * (n - 1) // 2 for n in inside) if objective.most_bits == 8 else 0)


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


def test_projection_is_the_nearest_convex_form_and_says_what_it_changes():
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(9, 9))
    gram = (raw + raw.T) / 2
    found, values = nearest_convex(gram)
    assert np.linalg.eigvalsh(found)[0] > -1e-12 and values[0] < 0
    best = np.linalg.norm(found - gram)
    assert best == pytest.approx(np.linalg.norm(values[values < 0]))
    for _ in range(200):
        other = rng.normal(size=(9, 9)) * 0.1
        step = found + 0.05 * (other @ other.T)
        assert np.linalg.norm(step - gram) >= best
    assert nearest_convex(found @ found)[0] is not None and nearest_convex(np.eye(3))[0].tolist() == np.eye(3).tolist()


def test_projection_of_singles_and_pairs_by_hand():
    """G = [[2, 4], [4, 2]] has the eigenvalues 6 and -2; its nearest convex form is 3 everywhere."""
    singles = {0: np.array([1.0]), 1: np.array([1.0]), 2: np.array([5.0])}
    tables = {(0, 1): np.array([[4.0]])}
    found = project(singles, tables)
    assert singles[0][0] == pytest.approx(1.5) and singles[1][0] == pytest.approx(1.5) and singles[2][0] == 5
    assert tables[0, 1][0, 0] == pytest.approx(3.0)
    assert (found.clipped, found.least) == (1, pytest.approx(-2.0))
    assert found.most == pytest.approx(0.5) and found.change == pytest.approx(2 / np.sqrt(4 + 16 + 16 + 4 + 100))


def test_a_convex_table_reports_its_change(tiny):
    context = context_of(tiny("conv"))
    raw, convex = (couple(Pairwise(scope="full", convex=on), context) for on in (False, True))
    assert raw.projection is None
    p, q = problem_of(context, raw), problem_of(context, convex)
    measured = [x for x in itertools.product(range(4), repeat=4) if sum(c != 3 for c in x) in (1, 2)]
    change = max(abs(p.score("coupled", (*x, 0)) - q.score("coupled", (*x, 0))) for x in measured)
    assert convex.projection.most == pytest.approx(change, rel=1e-6, abs=1e-12)
    assert convex.projection.clipped > 0 and convex.projection.change > 0
    assert Couplings.from_json(json.loads(json.dumps(convex.to_json()))) == convex


def brute_errors(net, block, choices, images):
    """Squared error at the output of a block, only that block quantised, by a quantised copy of the whole network."""
    outputs = []
    states = {unit: net.calibration.state(unit, c) for unit, c in choices.items()}
    for module in (net.module, install(net.module, states)):
        handle = module.get_submodule(block).register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
        with torch.no_grad():
            module(images)
        handle.remove()
    return outputs[0], (outputs[1] - outputs[0]).double()


@pytest.mark.parametrize(("kind", "block"), [("conv", "residual"), ("vit", "blocks.1"), ("conv", "stem")])
def test_tuples_are_what_a_quantised_copy_of_the_network_does(tiny, kind, block):
    net = tiny(kind)
    context = context_of(net, CANDIDATES[1:])
    found = couple(BlockTuples(weight="none", batch_size=10), context)
    units = dict(net.blocks)[block]
    p, images = problem_of(context, found), net.images.inputs()
    for choices in itertools.islice(itertools.product(range(3), repeat=len(units)), 0, None, 4):
        taken = {unit: CANDIDATES[1 + c] for unit, c in zip(units, choices, strict=True)}
        output, error = brute_errors(net, block, taken, images)
        indices = [2] * len(net.units) + [0]
        for unit, c in zip(units, choices, strict=True):
            indices[net.units.index(unit)] = c
        expected = float(error.square().sum() / (output.double() - output.double().mean()).square().sum())
        if not found.violations:
            assert p.score("coupled", indices) == pytest.approx(expected, rel=1e-5, abs=1e-12)
        assert p.score("coupled", indices) >= expected * (1 - 1e-5)
    tables = {t.layers for t in found.interactions}
    at = tuple(net.units.index(unit) for unit in units)
    assert at in tables if len(units) > 1 else any(found.rows[at[0]])


def test_fisher_weights_by_hand_at_the_logits(tiny):
    """The last block gives the logits, whose gradient of log p(y) is e_y - p."""
    net = tiny("conv")
    context = context_of(net, CANDIDATES[2:], seed=5)
    found = couple(BlockTuples(draws=3, batch_size=7), context)
    output, error = brute_errors(net, "head", {"head": CANDIDATES[2]}, net.images.inputs())
    rows = Cotangents("model", net.images, 5, 3).of(output)
    expected = float((error.square() * rows.double().square().mean(0)).sum() / 2 / len(net.images))
    assert found.rows[3][0] == pytest.approx(expected, rel=1e-4)
    kl = measured_kl(net)({"head": CANDIDATES[2]})
    assert 0.1 * kl < found.rows[3][0] < 10 * kl, "an estimate of the divergence, in nats"


def test_the_sum_over_blocks_is_minimised_exactly(tiny):
    net = tiny("conv")
    context = context_of(net)
    p = problem_of(context, couple(BlockTuples(), context))
    every = [(*x, 0) for x in itertools.product(range(4), repeat=4)]
    sizes = sorted(p.cost(x).size_bytes for x in every)
    for limit in sizes[::25]:
        found = solve(p, "coupled", [Budget("size_bytes", limit, "")])
        assert found.status == "optimal" and found.found_by == "exact dynamic programme"
        assert found.score == pytest.approx(min(p.score("coupled", x) for x in every if p.cost(x).size_bytes <= limit), rel=1e-12)


def test_tuples_do_not_depend_on_the_batch_size_and_cost_what_is_stated(tiny):
    net = tiny("conv")
    context = context_of(net)
    one, other = (couple(BlockTuples(batch_size=size), context) for size in (24, 5))
    assert np.allclose(np.concatenate(one.rows), np.concatenate(other.rows), rtol=1e-5)
    for a, b in zip(one.interactions, other.interactions, strict=True):
        assert np.allclose(a.values, b.values, rtol=1e-5)
    count = len(net.images)
    assert one.passes == type(one.passes)(2 * count, 4 * count, count * (4 + 16 + 4))


def test_a_tie_across_blocks_is_added_up_by_the_solver(tiny):
    net = tiny("conv")
    context = context_of(net, ties={"stem": "t", "residual.conv2": "t"})
    p = problem_of(context, couple(BlockTuples(), context))
    free = problem_of(context_of(net), couple(BlockTuples(), context_of(net)))
    every = [(*x, 0) for x in itertools.product(range(4), repeat=4) if x[0] == x[2]]
    limit = sorted(p.cost(x).size_bytes for x in every)[20]
    found = solve(p, "coupled", [Budget("size_bytes", limit, "")])
    assert found.score == pytest.approx(min(free.score("coupled", x) for x in every if p.cost(x).size_bytes <= limit), rel=1e-12)


def test_what_cannot_be_measured_is_refused(tiny):
    net = tiny("vit")
    with pytest.raises(OptionError, match=r"'blocks\.0' has 4 units with 256 tuples of choices; at most 255"):
        couple(BlockTuples(most_tuples=255), context_of(net))
    context = context_of(net)
    odd = dataclasses.replace(context, layers=tuple(dataclasses.replace(layer, block="nowhere") for layer in context.layers))
    with pytest.raises(ModelError, match="'nowhere' is no module"):
        couple(BlockTuples(most_tuples=2 * 10**6), odd)
    for objective, options in (("pairwise", "images=0"), ("block_tuples", "draws=0"), ("pairwise", "scope=all")):
        with pytest.raises(OptionError):
            INTERACTING.create(f"{objective}:{options}")
