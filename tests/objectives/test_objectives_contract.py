"""What holds of every registered objective."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
import torch

from mpsearch.objectives import OBJECTIVES, ScoringContext, score
from mpsearch.problem import Candidate, Layer

TEXTS = ("W2A8", "W3A8", "W4A8", "W8A8", "W2A4", "W4A4", "W8A4", "W4A8/tensor", "float")
CANDIDATES = tuple(Candidate.parse(text) for text in TEXTS)


def context_of(net, **more) -> ScoringContext:
    def layer(unit: str) -> Layer:
        weight = net.calibration.weights[unit]
        return Layer(unit, "conv2d" if weight.ndim == 4 else "linear", tuple(weight.shape), ((1,),), (1,), weight.numel(), unit)

    product = Layer("product.matmul0", "matmul", (), ((1, 2, 3), (1, 3, 2)), (1, 2, 2), 12, "product")
    layers = (*(layer(unit) for unit in net.units), product)
    return ScoringContext(net.module, layers, (CANDIDATES,) * len(layers), net.calibration, net.images, **more)


@torch.no_grad()
def rows_of(objective, context):
    return objective.score(context)


class Untouchable:
    """Stands for the model or the images where an objective says that it looks at neither."""

    def __getattribute__(self, name):
        raise AssertionError("looked at")


@pytest.mark.parametrize("net", ["conv", "vit"])
@pytest.mark.parametrize("name", OBJECTIVES.names())
class TestEveryObjective:
    def test_finite_not_negative_float_is_zero(self, tiny, name, net):
        context = context_of(tiny(net))
        rows = rows_of(OBJECTIVES.create(name), context)
        assert [len(row) for row in rows] == [len(c) for c in context.candidates]
        assert all(isinstance(v, float) and math.isfinite(v) and v >= 0 for row in rows for v in row)
        assert all(row[TEXTS.index("float")] == 0 for row in rows)
        assert not any(rows[-1]), "a unit without a weight"
        assert all(row[TEXTS.index("W2A8")] > 0 for row in rows[:-1])

    def test_monotone_in_weight_bits_after_the_repair(self, tiny, name, net):
        report = score(OBJECTIVES.create(name), context_of(tiny(net)))
        for row in report.rows:
            at = dict(zip(TEXTS, row, strict=True))
            assert at["W2A8"] >= at["W3A8"] >= at["W4A8"] >= at["W8A8"]
            assert at["W2A4"] >= at["W4A4"] >= at["W8A4"]
        assert report.seconds > 0
        assert report.violations >= 0

    def test_deterministic_whatever_the_global_random_state(self, tiny, name, net):
        found = tiny(net)
        first = score(OBJECTIVES.create(name), context_of(found)).rows
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1234)
            assert score(OBJECTIVES.create(name), context_of(found)).rows == first

    def test_weights_hooks_modes_and_random_states_are_as_found(self, tiny, left_as_found, name, net):
        found = tiny(net)
        kept, pixels = {unit: w.clone() for unit, w in found.calibration.weights.items()}, found.images.images.clone()
        check = left_as_found(found.module)
        score(OBJECTIVES.create(name), context_of(found))
        check()
        assert all(torch.equal(found.calibration.weights[unit], kept[unit]) for unit in kept)
        assert torch.equal(found.images.images, pixels)

    def test_looks_at_images_only_where_it_says_so(self, tiny, name, net):
        objective, context = OBJECTIVES.create(name), context_of(tiny(net))
        blind = dataclasses.replace(context, images=Untouchable())
        if objective.needs_data:
            with pytest.raises(AssertionError, match="looked at"):
                rows_of(objective, blind)
        else:
            assert rows_of(objective, blind) == rows_of(objective, context)

    def test_pickles_and_says_what_it_is(self, tiny, name, net):
        objective = OBJECTIVES.create(name)
        again = pickle.loads(pickle.dumps(objective))  # noqa: S301
        assert again == objective and hash(again) == hash(objective)
        assert again.name == name and isinstance(again.additive, bool) and isinstance(again.needs_data, bool)
        assert objective.unit
        assert rows_of(again, context_of(tiny(net))) == rows_of(objective, context_of(tiny(net)))
        with pytest.raises(dataclasses.FrozenInstanceError):
            objective.option = 1

    def test_progress_ends_with_everything_done(self, tiny, name, net):
        steps = []
        rows_of(OBJECTIVES.create(name), context_of(tiny(net), on_step=lambda done, total: steps.append((done, total))))
        assert steps[-1][0] == steps[-1][1] > 0
        assert [done for done, _ in steps] == list(range(1, len(steps) + 1))

    def test_the_order_of_layers_does_not_matter(self, tiny, name, net):
        context = context_of(tiny(net))
        turned = dataclasses.replace(context, layers=context.layers[::-1], candidates=context.candidates[::-1])
        assert rows_of(OBJECTIVES.create(name), turned) == rows_of(OBJECTIVES.create(name), context)[::-1]
