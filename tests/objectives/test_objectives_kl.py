"""`kl` and `sqnr`: the measured damage of one unit."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mpsearch.errors import MpsearchError, OptionError
from mpsearch.evaluate import TASKS, FastEvaluator
from mpsearch.evaluate.metrics import kl_by_image
from mpsearch.evaluate.prefixes import MOST_PROBES
from mpsearch.objectives import OBJECTIVES, ScoringContext, score
from mpsearch.objectives.output_mse import Sqnr
from mpsearch.problem import Candidate, Layer
from mpsearch.quant import install

CANDIDATES = tuple(Candidate.parse(text) for text in ("W2A4", "W4A8", "float"))


def context_of(net: SimpleNamespace) -> ScoringContext:
    layers = tuple(
        Layer(u, "conv2d", tuple(net.calibration.weights[u].shape), ((1,),), (1,), 1, u) for u in net.units
    )
    return ScoringContext(net.module, layers, (CANDIDATES,) * len(layers), net.calibration, net.images)


def rows_of(text: str, context: ScoringContext) -> np.ndarray:
    with torch.no_grad():
        return np.array(OBJECTIVES.create(text).score(context))


@pytest.mark.parametrize("text", ["kl", "kl:memory_mb=1", "kl:images=10", "kl:images=10,memory_mb=1"])
def test_is_the_divergence_with_one_unit_installed(tiny, text):
    context = context_of(tiny("conv"))
    rows = rows_of(text, context)
    images = context.images.subset(range(10)) if "images=10" in text else context.images
    inputs = images.inputs(slice(len(images)))
    with torch.no_grad():
        reference = context.module(inputs)
        for layer, row in zip(context.layers, rows, strict=True):
            for value, candidate in zip(row, CANDIDATES, strict=True):
                quantized = install(
                    context.module, {layer.name: context.calibration.state(layer.name, candidate)}
                )
                expected = float(kl_by_image(quantized(inputs), reference).mean())
                assert value == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert (rows[:, 0] > rows[:, 1]).all() and (rows[:, 1] > 0).all() and not rows[:, 2].any()


def test_units_that_are_not_asked_for_stay_float(tiny):
    context = context_of(tiny("conv"))
    one = ScoringContext(
        context.module, context.layers[1:2], context.candidates[1:2], context.calibration, context.images
    )
    assert np.array_equal(rows_of("kl", one)[0], rows_of("kl", context)[1])


@pytest.mark.parametrize(("macs", "images"), [(1, 1024), (10**15, 32), (int(8e12 / 100 / 6), 100)])
def test_the_images_are_as_many_as_the_work_allows(macs, images):
    units = ("a", "b", "c")
    layers = tuple(Layer(u, "conv2d", (1, 1), ((1,),), (1,), macs // 3, u) for u in units)
    quantizers = SimpleNamespace(weights=dict.fromkeys(units), products={})
    context = SimpleNamespace(
        layers=layers,
        candidates=(CANDIDATES,) * 3,
        images=range(10_000),
        calibration=quantizers,
        task=TASKS.create("classification"),
    )
    assert OBJECTIVES.create("kl").passes(context).forward == pytest.approx(
        2 * MOST_PROBES + images * (1 + 3 * 2), abs=2 * 7
    )
    assert OBJECTIVES.create("kl:images=5").passes(context).forward == 2 * MOST_PROBES + 5 * 7
    context.images = range(20)
    assert OBJECTIVES.create("kl").passes(context).forward == 2 * MOST_PROBES + 20 * 7


def test_a_unit_whose_damage_is_not_finite_is_named(tiny, monkeypatch):
    monkeypatch.setattr(FastEvaluator, "measure", lambda self, assignment: math.nan)
    context = context_of(tiny("conv"))
    with pytest.raises(MpsearchError, match=f"gives nan for '{context.layers[0].name}'"):
        score(OBJECTIVES.create("kl:images=8"), context)


def test_where_the_damage_is_small_it_is_half_the_fisher_information(tiny):
    """The second order is then all there is."""
    context = context_of(tiny("conv"))
    widths = (Candidate.parse("W8A8"), Candidate.parse("W7A8"))
    plain = replace(
        context.calibration, means={}
    )  # a corrected bias lowers the damage by what fisher does not know of
    context = replace(context, candidates=(widths,) * len(context.layers), calibration=plain)
    kl, fisher = rows_of("kl:images=512", context), rows_of("fisher:images=512,samples=8", context) / 2
    assert 0.5 < float(np.median(kl / fisher)) < 2


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

    @pytest.mark.parametrize(
        "text", ["sqnr:images=0", "sqnr:batch_size=0", "sqnr:cap_db=0", "sqnr:cap_db=nan", "sqnr:cap_db=1000"]
    )
    def test_bad_options_are_refused(self, text):
        with pytest.raises(OptionError, match="sqnr needs"):
            OBJECTIVES.create(text)
