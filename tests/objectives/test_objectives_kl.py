"""`kl` and `sqnr`: the measured damage of one unit."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mpsearch.errors import MpsearchError, OptionError
from mpsearch.evaluate import TASKS
from mpsearch.evaluate.metrics import kl_by_image
from mpsearch.evaluate.prefixes import MOST_PROBES
from mpsearch.objectives import OBJECTIVES, ScoringContext, score
from mpsearch.objectives._sampling import SampledEvaluator, sample
from mpsearch.objectives.kl_mixed import Unit, _fit, _next
from mpsearch.objectives.output_mse import Sqnr
from mpsearch.problem import Budget, Candidate, Layer, Problem
from mpsearch.quant import install
from mpsearch.search import solve
from mpsearch.search.aligned import LAST
from mpsearch.search.correction import straightened

CANDIDATES = tuple(Candidate.parse(text) for text in ("W2A4", "W4A8", "float"))


def context_of(net: SimpleNamespace) -> ScoringContext:
    layers = tuple(Layer(u, "conv2d", tuple(net.calibration.weights[u].shape), ((1,),), (1,), 1, u) for u in net.units)
    return ScoringContext(net.module, layers, (CANDIDATES,) * len(layers), net.calibration, net.images)


def rows_of(text: str, context: ScoringContext) -> np.ndarray:
    with torch.no_grad():
        return np.array(OBJECTIVES.create(text).score(context))


@pytest.mark.parametrize("text", ["kl", "kl:memory_mb=1", "kl:images=10", "kl:images=10,memory_mb=1"])
def test_is_the_divergence_with_one_unit_installed(tiny, text):
    """Of all images, or of a sample with weights."""
    context = context_of(tiny("conv"))
    rows = rows_of(text, context)
    images, weights = sample(context, 10) if "images=10" in text else (context.images, None)
    inputs = images.inputs(slice(len(images)))
    with torch.no_grad():
        reference = context.module(inputs)
        for layer, row in zip(context.layers, rows, strict=True):
            for value, candidate in zip(row, CANDIDATES, strict=True):
                quantized = install(context.module, {layer.name: context.calibration.state(layer.name, candidate)})
                divergences = kl_by_image(quantized(inputs), reference)
                expected = float(divergences.mean() if weights is None else (weights * divergences).mean())
                assert value == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert (rows[:, 0] > rows[:, 1]).all() and (rows[:, 1] > 0).all() and not rows[:, 2].any()


def test_units_that_are_not_asked_for_stay_float(tiny):
    context = context_of(tiny("conv"))
    one = ScoringContext(context.module, context.layers[1:2], context.candidates[1:2], context.calibration, context.images)
    assert np.array_equal(rows_of("kl", one)[0], rows_of("kl", context)[1])


@pytest.mark.parametrize(("macs", "images"), [(1, 1024), (10**15, 32), (int(8e12 / 100 / 6), 100)])
def test_the_images_are_as_many_as_the_work_allows(macs, images):
    units = ("a", "b", "c")
    layers = tuple(Layer(u, "conv2d", (1, 1), ((1,),), (1,), macs // 3, u) for u in units)
    quantizers = SimpleNamespace(weights=dict.fromkeys(units), products={})
    context = SimpleNamespace(layers=layers, candidates=(CANDIDATES,) * 3, images=range(10_000), calibration=quantizers, task=TASKS.create("classification"))
    assert OBJECTIVES.create("kl").passes(context).forward == pytest.approx(2 * MOST_PROBES + images * (4 + 1 + 3 * 2), abs=2 * 11)
    assert OBJECTIVES.create("kl:images=5").passes(context).forward == 2 * MOST_PROBES + 5 * (4 + 7)
    context.task = TASKS.create("embedding")
    assert OBJECTIVES.create("kl:images=5").passes(context).forward == 2 * MOST_PROBES + 5 * 7, "it draws no sample"
    context.images = range(20)
    assert OBJECTIVES.create("kl").passes(context).forward == 2 * MOST_PROBES + 20 * 7


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


class TestKlMixed:
    TEXT = "kl_mixed:images=32,assignments=48"

    def context(self, tiny) -> ScoringContext:
        context = context_of(tiny("conv"))
        widths = tuple(Candidate.parse(f"W{bits}A8") for bits in (8, 6, 5, 4, 3, 2))
        return replace(context, candidates=((*widths, Candidate.parse("float")),) * len(context.layers))

    def test_it_learns_what_units_do_beside_others(self, tiny, monkeypatch):
        """The loss is made up: beside other quantised units, every second unit does eight times what it does alone."""
        context = self.context(tiny)
        names = sorted(layer.name for layer in context.layers)

        def measure(self, assignment):
            done = {n: 4.0 ** -assignment[n].w_bits * (1 + names.index(n)) for n in names if not assignment[n].is_float}
            return sum(v * (8 if len(done) > 1 and names.index(n) % 2 else 1) for n, v in done.items())

        monkeypatch.setattr(SampledEvaluator, "measure", measure)
        alone, mixed = rows_of("kl:images=32", context), rows_of(self.TEXT, context)
        beside = np.array([[8 if names.index(layer.name) % 2 else 1] for layer in context.layers])
        true = np.log(alone[:, :-1] * beside)

        def off(table: np.ndarray) -> float:
            return float(np.std(np.log(table[:, :-1]) - true))

        assert off(mixed) < 0.4 * off(alone)

    def test_a_loss_that_bends_and_saturates_is_not_explained_by_factors_of_units(self, monkeypatch):
        """As that of MobileNets does: the table behind it is found, where `correct` alone bends rows to the curve."""
        rng = np.random.default_rng(0)
        units = [Unit(i, tuple(range(6)), 4.0 ** -np.arange(7, 1, -1) * rng.lognormal(), np.array([8.0, 7, 6, 5, 4, 3]) / 24) for i in range(24)]
        true = [unit.damage * rng.lognormal(0, 0.4) for unit in units]
        drawn = [_next(units, None, number, (), rng) for number in range(128)]
        damage = [sum(row[c] for row, c in zip(true, choices, strict=True)) for choices in drawn]
        losses = {choices: 7 * (1 - math.exp(-5 * d * (1 + 10 * d) / 7)) for choices, d in zip(drawn, damage, strict=True)}

        def off() -> float:
            fitted = _fit(units, losses)
            return float(np.std([np.log(row / t) for row, t in zip(fitted.mean(), true, strict=True)]))

        straight = off()
        monkeypatch.setattr("mpsearch.objectives.kl_mixed.straightened", lambda damage, losses: losses)
        assert straight < 0.6 * off()

    def test_losses_are_straightened_without_another_order(self):
        rng = np.random.default_rng(0)
        damage = np.sort(rng.normal(0, 2, 64))
        losses = np.tanh(damage / 3)
        found = straightened(damage, losses)
        assert np.all(np.diff(found) > 0) and np.abs(found - damage).std() < 0.3
        assert np.array_equal(straightened(damage[:5], losses[:5]), losses[:5]), "too few to tell"

    def test_float_and_units_that_are_not_calibrated_have_no_damage(self, tiny):
        context = self.context(tiny)
        unknown = replace(context.layers[0], name="elsewhere")
        context = replace(context, layers=(*context.layers, unknown), candidates=(*context.candidates, context.candidates[0]))
        table = rows_of(self.TEXT, context)
        assert not table[:, -1].any() and not table[-1].any() and (table[:-1, :-1] > 0).all()

    def test_the_measured_assignments_cover_the_range_of_bits(self, tiny, monkeypatch):
        """Of a net of 20 units whose loss is the sum of the table, with every fit in between."""
        units = [Unit(i, (0, 1, 2), np.array([0.1, 1.0, 5.0]) * (i + 1), np.array([8.0, 4.0, 2.0])) for i in range(20)]

        def drawn(seed: int) -> list[tuple[int, ...]]:
            rng, losses = np.random.default_rng(seed), {}
            for number in range(50):
                fitted = _fit(units, losses) if number >= 10 else None
                choices = _next(units, fitted, number, losses, rng)
                losses[choices] = sum(unit.damage[c] for unit, c in zip(units, choices, strict=True))
            return list(losses)

        found = drawn(0)
        mean = [np.mean([(8, 4, 2)[c] for c in choices]) for choices in found]
        assert len(found) > 40 and found == drawn(0) != drawn(1)
        assert min(mean) < 3.2 and max(mean) > 7.2 and np.histogram(mean, 5, (2.7, 7.7))[0].min() >= 5

    def test_nothing_to_correct_by_leaves_the_table_of_single_units(self, tiny):
        context = context_of(tiny("conv"))
        only = ((Candidate.parse("W4A8"),),) * len(context.layers)
        context = replace(context, candidates=only)
        assert np.array_equal(rows_of("kl_mixed:images=8", context), rows_of("kl:images=8", context))

    def test_passes_are_those_of_kl_and_of_the_assignments(self, tiny):
        context = self.context(tiny)
        kl, mixed = (OBJECTIVES.create(text).passes(context) for text in ("kl:images=32", self.TEXT))
        assert mixed.forward == kl.forward + 48 * len(context.images)

    def test_bad_options_are_refused(self):
        with pytest.raises(OptionError, match="'assignments' of kl_mixed is 0"):
            OBJECTIVES.create("kl_mixed:assignments=0")


class TestKlFront:
    TEXT = "kl_front:images=32,exchanges=6,optima=60"

    def context(self, tiny) -> ScoringContext:
        return TestKlMixed().context(tiny)

    def test_its_optima_are_close_to_the_best_there_are_at_any_size(self, tiny, monkeypatch):
        """The loss is made up: units reinforce or cancel each other, which no sum says; the best at each size is found among all assignments."""
        context = self.context(tiny)
        names = sorted(layer.name for layer in context.layers)
        weights, widths = {layer.name: layer.weight_numel for layer in context.layers}, np.array([8, 6, 5, 4, 3, 2])

        def losses(damage):
            beside = [2 * (0.7 if i % 2 else -0.5) * np.sqrt(a * b) for i, (a, b) in enumerate(itertools.pairwise(damage))]
            return sum(damage) + sum(beside)

        def measure(self, assignment):
            return float(losses([0.0 if assignment[n].is_float else 4.0 ** -assignment[n].w_bits * (1 + i) for i, n in enumerate(names)]))

        monkeypatch.setattr(SampledEvaluator, "measure", measure)
        choices = np.array(list(itertools.product(range(len(widths)), repeat=len(names)))).T
        sizes = sum(widths[row] * weights[n] for n, row in zip(names, choices, strict=True))
        true = losses([4.0 ** -widths[row] * (1 + i) for i, row in enumerate(choices)])
        limits = sizes.min() + np.linspace(3, 22, 77) / 24 * np.ptp(sizes)

        def regret(text) -> float:
            """Root mean square over the sizes."""
            table = dict(zip([layer.name for layer in context.layers], rows_of(text, context)[:, :-1], strict=True))
            assert all((np.diff(row) >= -1e-15).all() and (row > 0).all() for row in table.values())
            sums = sum(table[n][row] for n, row in zip(names, choices, strict=True))
            found = [true[fits][np.argmin(sums[fits])] / true[fits].min() - 1 for fits in (sizes <= limit for limit in limits)]
            return float(np.sqrt(np.mean(np.square(found))))

        assert regret(self.TEXT) < 0.25 * regret("kl:images=32")

    def test_what_it_measured_stands_beside_the_table(self, tiny, monkeypatch):
        """In the order of the losses, of any size; so no optimum at a searched size is worse than the best that was measured there."""
        context = self.context(tiny)
        names, measured = [layer.name for layer in context.layers], {}

        def measure(self, assignment):
            bits = [99 if assignment[n].is_float else assignment[n].w_bits for n in names]
            damage = [4.0**-b * (1 + i) for i, b in enumerate(bits)]
            lucky = 0.5 if sum(bits) % 3 == 0 else 1.0  # no sum over units says so
            measured[tuple(bits)] = lucky * sum(damage)
            return measured[tuple(bits)]

        monkeypatch.setattr(SampledEvaluator, "measure", measure)
        report = score(OBJECTIVES.create(self.TEXT), context)
        losses = {indices: measured[tuple(c[i].w_bits for c, i in zip(context.candidates, indices, strict=True))] for indices, _ in report.measured}
        known = dict(report.measured)
        assert len(known) > 40 and sorted(known, key=known.get) == sorted(losses, key=losses.get)
        sizes = tuple(tuple(float(layer.weight_numel * (c.w_bits or 32)) for c in row) for layer, row in zip(context.layers, context.candidates, strict=True))
        problem = Problem(context.layers, context.candidates, {"kl_front": report.rows}, {"size_bytes": sizes}, measured={"kl_front": known})
        least, most = (sum(layer.weight_numel * bits for layer in context.layers) for bits in (2, 8))
        for part in range(3, 23):
            limit = least + (most - least) * part / 24
            found = solve(problem, "kl_front", [Budget("size_bytes", limit, "")])
            bits = [c[i].w_bits for c, i in zip(context.candidates, found.indices, strict=True)]
            best = min(loss for indices, loss in losses.items() if problem.cost(indices).size_bytes <= limit)
            assert found.indices not in known or losses[found.indices] == best, (part, bits)
            assert None not in bits and found.score <= min(known[indices] for indices, loss in losses.items() if loss == best)
        assert "measured assignments stands in place of their sums" in report.notes[0]

    def test_units_of_one_tie_share_what_both_do(self, tiny):
        context = self.context(tiny)
        tied = replace(context, layers=tuple(replace(layer, tie="t") if i < 2 else layer for i, layer in enumerate(context.layers)))
        table = rows_of(self.TEXT, tied)
        assert np.isfinite(table).all() and (table[:, :-1] > 0).all() and not table[:, -1].any()

    def test_nothing_to_choose_leaves_the_table_of_single_units(self, tiny):
        context = replace(self.context(tiny), candidates=((Candidate.parse("W4A8"),),) * len(self.context(tiny).layers))
        assert np.array_equal(rows_of("kl_front:images=8", context), rows_of("kl:images=8", context))

    def test_no_more_passes_than_it_says(self, tiny, monkeypatch):
        context, calls = self.context(tiny), []
        measure = SampledEvaluator.measure
        monkeypatch.setattr(SampledEvaluator, "measure", lambda self, assignment: calls.append(1) or measure(self, assignment))
        rows_of(self.TEXT, context)
        kl, front = (OBJECTIVES.create(text).passes(context) for text in ("kl:images=32", self.TEXT))
        others = [OBJECTIVES.create(text).passes(context) for text in ("fisher", "output_mse")]
        assert front.forward == kl.forward + (9 * (3 + 6) + 60 + 20 * LAST) * len(context.images) + sum(other.forward for other in others)
        assert (front.backward, front.units) == (sum(other.backward for other in others), sum(other.units for other in others))
        assert len(calls) <= len(context.layers) * 6 + 9 * (3 + 6) + 60 + 20 * LAST

    def test_the_best_are_judged_by_more_images(self, tiny, monkeypatch):
        """By the images of the search one unit does little damage, by more images another."""
        context, text = self.context(tiny), "kl_front:images=8,exchanges=6,optima=60"
        names, counts = [layer.name for layer in context.layers], []

        def damage(count, bits):
            return sum(4.0**-b * (0.1 if i == (2 if count == 24 else 0) else 1) for i, b in enumerate(bits))

        def measure(self, assignment):
            counts.append(len(self.evaluator.float_logits))
            return damage(counts[-1], [assignment[n].w_bits or 99 for n in names])

        def judged(rows) -> float:
            """Sum of the logarithms of the losses, by more images, of the optima."""
            chosen, total = list(itertools.product(range(6), repeat=len(names))), 0.0
            sizes = [sum((8, 6, 5, 4, 3, 2)[c] * layer.weight_numel for c, layer in zip(choices, context.layers, strict=True)) for choices in chosen]
            for part in range(3, 23):
                limit = min(sizes) + (max(sizes) - min(sizes)) * part / 24
                fitting = [choices for choices, size in zip(chosen, sizes, strict=True) if size <= limit]
                best = min(fitting, key=lambda choices: sum(row[c] for row, c in zip(rows, choices, strict=True)))
                total += math.log(damage(24, [(8, 6, 5, 4, 3, 2)[c] for c in best]))
            return total

        monkeypatch.setattr(SampledEvaluator, "measure", measure)
        moved = rows_of(text, context)
        assert counts == sorted(counts) and set(counts) == {8, 16, 24}
        assert judged(moved) < judged(rows_of("kl:images=8", context)) - 1
        passes, kl = OBJECTIVES.create(text).passes(context), OBJECTIVES.create("kl:images=8").passes(context)
        others = sum(OBJECTIVES.create(o).passes(context).forward for o in ("fisher", "output_mse"))
        searched = 16 * 9 * (3 + 6) + 2 * MOST_PROBES + 16 + 24  # the sample is drawn from all images
        judged = 24 * (60 + 20 * (3 + LAST)) + 2 * MOST_PROBES + 24
        assert passes.forward == kl.forward + others + searched + judged

    def test_a_task_without_classes_has_no_fisher_information(self, tiny, monkeypatch):
        context = replace(self.context(tiny), task=TASKS.create("embedding"))
        monkeypatch.setattr(OBJECTIVES.get("fisher"), "score", lambda *_: pytest.fail("scored"))
        assert (rows_of("kl_front:images=8,exchanges=1,optima=9", context)[:, :-1] > 0).all()
        assert OBJECTIVES.create("kl_front").passes(context).backward == 0

    @pytest.mark.parametrize("text", ["kl_front:images=8", "kl_mixed:images=8"])
    def test_a_unit_whose_damage_is_not_finite_is_named(self, tiny, monkeypatch, text):
        monkeypatch.setattr(SampledEvaluator, "measure", lambda self, assignment: math.nan)
        context = self.context(tiny)
        with pytest.raises(MpsearchError, match=f"gives nan for '{context.layers[0].name}'"):
            score(OBJECTIVES.create(text), context)

    def test_bad_options_are_refused(self):
        with pytest.raises(OptionError, match="'exchanges' of kl_front is 0"):
            OBJECTIVES.create("kl_front:exchanges=0")


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
