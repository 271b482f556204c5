"""`kl` and `sqnr`: the measured damage of one unit."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mpsearch.errors import OptionError
from mpsearch.evaluate import TASKS
from mpsearch.evaluate.metrics import kl_divergence
from mpsearch.objectives import OBJECTIVES, ScoringContext
from mpsearch.objectives.output_mse import Sqnr
from mpsearch.problem import Candidate, Layer
from mpsearch.quant import install

CANDIDATES = tuple(Candidate.parse(text) for text in ("W2A4", "W4A8", "float"))


def context_of(net: SimpleNamespace) -> ScoringContext:
    layers = tuple(Layer(u, "conv2d", tuple(net.calibration.weights[u].shape), ((1,),), (1,), 1, u) for u in net.units)
    return ScoringContext(net.module, layers, (CANDIDATES,) * len(layers), net.calibration, net.images)


def rows_of(text: str, context: ScoringContext) -> np.ndarray:
    with torch.no_grad():
        return np.array(OBJECTIVES.create(text).score(context))


@pytest.mark.parametrize("text", ["kl:images=10", "kl:images=10,memory_mb=1"])
def test_is_the_divergence_with_one_unit_installed(tiny, text):
    context = context_of(tiny("conv"))
    rows = rows_of(text, context)
    inputs = context.images.inputs(slice(10))
    with torch.no_grad():
        reference = context.module(inputs)
        for layer, row in zip(context.layers, rows, strict=True):
            for value, candidate in zip(row, CANDIDATES, strict=True):
                quantized = install(context.module, {layer.name: context.calibration.state(layer.name, candidate)})
                assert value == pytest.approx(kl_divergence(quantized(inputs), reference), rel=1e-4, abs=1e-12)
    assert (rows[:, 0] > rows[:, 1]).all() and (rows[:, 1] > 0).all() and not rows[:, 2].any()


def test_units_that_are_not_asked_for_stay_float(tiny):
    context = context_of(tiny("conv"))
    one = ScoringContext(context.module, context.layers[1:2], context.candidates[1:2], context.calibration, context.images)
    assert np.array_equal(rows_of("kl", one)[0], rows_of("kl", context)[1])


@pytest.mark.parametrize(("macs", "images"), [(1, 512), (10**15, 32), (int(8e12 / 100 / 6), 100)])
def test_the_images_are_as_many_as_the_work_allows(macs, images):
    units = ("a", "b", "c")
    layers = tuple(Layer(u, "conv2d", (1, 1), ((1,),), (1,), macs // 3, u) for u in units)
    quantizers = SimpleNamespace(weights=dict.fromkeys(units), products={})
    context = SimpleNamespace(layers=layers, candidates=(CANDIDATES,) * 3, images=range(10_000), calibration=quantizers)
    assert OBJECTIVES.create("kl").passes(context).forward == pytest.approx(2 + images * (1 + 3 * 2), abs=2 * 7)
    assert OBJECTIVES.create("kl:images=5").passes(context).forward == 2 + 5 * 7
    context.images = range(20)
    assert OBJECTIVES.create("kl").passes(context).forward == 2 + 20 * 7


class TestKlFisher:
    def test_is_the_mean_of_both(self, tiny):
        context = context_of(tiny("conv"))
        both, kl, fisher = (rows_of(f"{name}:images=12", context) for name in ("kl_fisher", "kl", "fisher"))
        assert np.allclose(both, (kl + fisher / 2) / 2, rtol=1e-12) and not np.allclose(kl, fisher / 2, rtol=0.01)
        passes = [OBJECTIVES.create(f"{name}:images=12").passes(context) for name in ("kl_fisher", "kl", "fisher")]
        assert passes[0].forward == passes[1].forward + passes[2].forward and passes[0].backward == passes[2].backward > 0

    def test_weights_and_inputs_share_it_as_in_the_fisher_information(self, tiny):
        context = context_of(tiny("conv"))
        parts, fisher = (OBJECTIVES.create(f"{name}:images=12").parts(context) for name in ("kl_fisher", "fisher"))
        total, weights, inputs = (np.array(rows) for rows in (parts.total, parts.weights, parts.activations))
        assert np.allclose(weights + inputs, total, rtol=1e-9)
        assert np.allclose(weights[:, :2] / total[:, :2], np.array(fisher.weights)[:, :2] / np.array(fisher.total)[:, :2], rtol=1e-9)

    def test_both_are_estimates_of_one_quantity(self, tiny):
        """Where the damage is small the second order is all there is."""
        context = context_of(tiny("conv"))
        context = ScoringContext(
            context.module, context.layers, ((Candidate.parse("W8A8"), Candidate.parse("W7A8")),) * len(context.layers), context.calibration, context.images
        )
        kl, fisher = rows_of("kl:images=512", context), rows_of("fisher:images=512,samples=8", context) / 2
        assert 0.5 < float(np.median(kl / fisher)) < 2

    def test_a_task_without_classes_is_measured_alone(self, tiny):
        context = context_of(tiny("conv"))
        context = ScoringContext(context.module, context.layers, context.candidates, context.calibration, context.images, task=TASKS.create("embedding"))
        assert np.array_equal(rows_of("kl_fisher:images=8", context), rows_of("kl:images=8", context))


class TestSqnr:
    def test_is_the_ratio_in_decibels_below_the_cap(self, tiny):
        context = context_of(tiny("conv"))
        ratios, lost = rows_of("output_mse", context), rows_of("sqnr:cap_db=50", context)
        assert np.allclose(lost[:, :2], 50 + 10 * np.log10(ratios[:, :2] + 1e-5), rtol=1e-9)
        assert not lost[:, 2].any()

    def test_by_hand(self):
        assert Sqnr(cap_db=60).lost(1.0) == pytest.approx(60, abs=1e-4), "noise as strong as the signal: 0 dB"
        assert Sqnr(cap_db=60).lost(0.01) == pytest.approx(40, abs=1e-3)
        assert Sqnr(cap_db=20).lost(0.01) == pytest.approx(10 * math.log10(2)), "noise at the cap"
        assert Sqnr().lost(0.0) == 0.0

    @pytest.mark.parametrize("text", ["sqnr:images=0", "sqnr:batch_size=0", "sqnr:cap_db=0", "sqnr:cap_db=nan", "sqnr:cap_db=1000"])
    def test_bad_options_are_refused(self, text):
        with pytest.raises(OptionError, match="sqnr needs"):
            OBJECTIVES.create(text)
