"""The objectives that take gradients: closed forms, exact Hessians, odd units, stated passes. Long: all share
the linear network and the odd one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsearch.data import ImageSet
from mpsearch.errors import DataError, ModelError, OptionError
from mpsearch.evaluate.prefixes import MOST_PROBES
from mpsearch.objectives import OBJECTIVES, ScoringContext, score
from mpsearch.objectives._grads import Cotangents
from mpsearch.objectives.hessian_trace import HessianTrace, Trace
from mpsearch.problem import Candidate, Layer
from mpsearch.reconstruct import calibrate

CANDIDATES = tuple(Candidate.parse(text) for text in ("W3A4", "W4A4", "W4A8", "W4A8/tensor", "float"))
GRADIENT = ("gradient", "jacobian", "fisher", "hessian_trace")


def images_of(count: int, size: int = 1, labels: bool = True, classes: int = 4, seed: int = 3) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    drawn = torch.randint(classes, (count,), generator=generator)
    return ImageSet(pixels, drawn if labels else None, (0.5,) * 3, (0.25,) * 3)


def filled(net: nn.Module, seed: int = 0, size: float = 0.7) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, size, generator=generator)
    return net.eval()


def context_of(
    net: nn.Module,
    images: ImageSet,
    units: list[str],
    candidates=CANDIDATES,
    calls: dict[str, int] | None = None,
    **more,
) -> ScoringContext:
    calibration = calibrate(net, units, [images.inputs()], weight_observer="minmax", input_observer="minmax")

    def layer(unit: str) -> Layer:
        if unit not in calibration.weights:
            return Layer(unit, "matmul", (), ((1, 1, 1), (1, 1, 1)), (1, 1, 1), 1, unit)
        weight = calibration.weights[unit]
        return Layer(
            unit,
            "conv2d",
            tuple(weight.shape),
            ((1,),),
            (1,),
            weight.numel(),
            unit,
            calls=(calls or {}).get(unit, 1),
        )

    return ScoringContext(
        net, tuple(map(layer, units)), (candidates,) * len(units), calibration, images, **more
    )


def rows_of(text: str, context: ScoringContext) -> np.ndarray:
    with torch.no_grad():
        return np.array(OBJECTIVES.create(text).score(context))


@dataclass
class Linear:
    """f(x) = W2 (W1 x), as numbers: 3 inputs, 5 hidden, 4 classes."""

    context: ScoringContext

    @classmethod
    def make(cls, count: int = 6) -> Linear:
        net = filled(nn.Sequential(nn.Flatten(), nn.Linear(3, 5, bias=False), nn.Linear(5, 4, bias=False)))
        return cls(context_of(net, images_of(count), ["1", "2"]))

    def array(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().double().numpy()

    @property
    def weights(self) -> list[np.ndarray]:
        return [self.array(self.context.calibration.weights[unit]) for unit in ("1", "2")]

    @property
    def read(self) -> list[np.ndarray]:
        x = self.array(self.context.images.inputs().flatten(1))
        return [x, x @ self.weights[0].T]

    @property
    def chance(self) -> np.ndarray:
        return self.array(torch.tensor(self.read[1] @ self.weights[1].T).softmax(1))

    def residual(self) -> np.ndarray:
        """p - e_y of the true labels, N x 4."""
        return self.chance - np.eye(4)[self.context.images.labels.numpy()]

    def quantized(self, at: int, candidate: Candidate) -> tuple[np.ndarray, np.ndarray]:
        """Weight and input of a unit at a candidate."""
        state = self.context.calibration.state(("1", "2")[at], candidate)
        return self.array(state.weight.dequantize()), self.array(
            state.activation.fake_quantize(torch.tensor(self.read[at]).float())
        )

    def output_error(
        self, at: int, candidate: Candidate, weight: bool = True, inputs: bool = True
    ) -> np.ndarray:
        if candidate.is_float:
            return np.zeros((len(self.context.images), len(self.weights[at])))
        w, x = self.quantized(at, candidate)
        return (x if inputs else self.read[at]) @ (w if weight else self.weights[at]).T - self.read[
            at
        ] @ self.weights[at].T

    def slopes(self, cotangent: np.ndarray) -> list[np.ndarray]:
        """Gradients at both outputs, for cotangents N x 4."""
        return [cotangent @ self.weights[1], cotangent]


class TestClosedForms:
    def test_gradient_with_true_labels(self):
        net = Linear.make()
        slopes = net.slopes(net.residual())
        expected = [
            [(slopes[at] ** 2 * net.output_error(at, c) ** 2).sum() / 6 for c in CANDIDATES] for at in (0, 1)
        ]
        assert np.allclose(rows_of("gradient:target=labels", net.context), expected, rtol=1e-4)
        assert np.allclose(
            rows_of("gradient:target=labels,images=6,batch_size=4", net.context), expected, rtol=1e-4
        )

    def test_gradient_of_drawn_labels_goes_to_the_fisher_information(self):
        net = Linear.make()
        p = net.chance
        head = p * (1 - p)
        covariance = np.einsum("ik,kl->ikl", p, np.eye(4)) - p[:, :, None] * p[:, None, :]
        hidden = np.einsum("ikl,kh,lh->ih", covariance, net.weights[1], net.weights[1])
        expected = [
            [(power * net.output_error(at, c) ** 2).sum() / 6 for c in CANDIDATES]
            for at, power in enumerate((hidden, head))
        ]
        assert np.allclose(rows_of("gradient:samples=4000", net.context), expected, rtol=0.06)

    def test_contributions_are_of_one_without_the_other(self):
        net = Linear.make()
        slopes = net.slopes(net.residual())
        with torch.no_grad():
            parts = OBJECTIVES.create("gradient:target=labels,contributions=yes").parts(net.context)
        for found, alone in ((parts.weights, {"inputs": False}), (parts.activations, {"weight": False})):
            expected = [
                [(slopes[at] ** 2 * net.output_error(at, c, **alone) ** 2).sum() / 6 for c in CANDIDATES]
                for at in (0, 1)
            ]
            assert np.allclose(found, expected, rtol=1e-4)
        report = score(OBJECTIVES.create("jacobian:contributions=yes"), net.context)
        assert np.array(report.weights)[:, 1] == pytest.approx(np.array(report.weights)[:, 2]), (
            "W4A4 and W4A8"
        )
        assert score(OBJECTIVES.create("jacobian"), net.context).weights is None

    def test_jacobian_at_the_logits_is_their_squared_error(self):
        net = Linear.make()
        expected = [(net.output_error(1, c) ** 2).sum() / 6 for c in CANDIDATES]
        assert np.allclose(rows_of("jacobian:probes=1", net.context)[1], expected, rtol=1e-4)

    @pytest.mark.parametrize("metric", ["logits", "softmax"])
    def test_jacobian_is_the_trace_times_the_error(self, metric):
        net, p = Linear.make(), Linear.make().chance
        covariance = (
            np.einsum("ik,kl->ikl", p, np.eye(4)) - p[:, :, None] * p[:, None, :]
            if metric == "softmax"
            else np.eye(4)[None]
        )
        w = net.weights[1]
        traces = [
            np.einsum("ikl,kh,lh->i", covariance, w, w).mean() / 5,
            np.einsum("ikk->i", covariance).mean() / 4,
        ]
        expected = [
            [traces[at] * (net.output_error(at, c) ** 2).sum() / 6 for c in CANDIDATES] for at in (0, 1)
        ]
        assert np.allclose(rows_of(f"jacobian:metric={metric},probes=3000", net.context), expected, rtol=0.05)

    def test_fisher_with_true_labels(self):
        net = Linear.make()
        slopes = net.slopes(net.residual())
        with torch.no_grad():
            parts = OBJECTIVES.create("fisher:target=labels").parts(net.context)
        for at in (0, 1):
            of_weight = np.einsum("ik,ij->kj", slopes[at] ** 2, net.read[at] ** 2) / 6
            of_input = (slopes[at] @ net.weights[at]) ** 2 / 6
            for i, c in enumerate(CANDIDATES[:-1]):
                w, x = net.quantized(at, c)
                assert parts.weights[at][i] == pytest.approx(
                    (of_weight * (w - net.weights[at]) ** 2).sum(), rel=1e-4
                )
                assert parts.activations[at][i] == pytest.approx(
                    (of_input * (x - net.read[at]) ** 2).sum(), rel=1e-3
                )
                assert parts.total[at][i] == parts.weights[at][i] + parts.activations[at][i]
            assert parts.total[at][-1] == 0.0

    def test_fisher_with_uniform_noise(self):
        net = Linear.make()
        slopes = net.slopes(net.residual())
        with torch.no_grad():
            parts = OBJECTIVES.create("fisher:target=labels,noise=uniform").parts(net.context)
        for at in (0, 1):
            w, x = net.weights[at], net.read[at]
            each = np.einsum("ik,ij->k", slopes[at] ** 2, x**2) / 6
            trace = ((slopes[at] @ w) ** 2).sum() / 6
            for i, c in enumerate(CANDIDATES[:-1]):
                spread = np.ptp(w, axis=1) if c.w_granularity == "channel" else np.ptp(w)
                assert parts.weights[at][i] == pytest.approx(
                    (each * (spread / (2**c.w_bits - 1)) ** 2 / 12).sum(), rel=1e-4
                )
                spread = max(x.max(), 0) - min(x.min(), 0)
                assert parts.activations[at][i] == pytest.approx(
                    trace * (spread / (2**c.a_bits - 1)) ** 2 / 12, rel=1e-4
                )

    def test_fisher_of_drawn_labels_goes_to_its_expectation(self):
        net = Linear.make()
        p = net.chance
        of_weight = np.einsum("ik,ij->kj", p * (1 - p), net.read[1] ** 2) / 6
        with torch.no_grad():
            parts = OBJECTIVES.create("fisher:samples=1000").parts(net.context)
        expected = [
            (of_weight * (net.quantized(1, c)[0] - net.weights[1]) ** 2).sum() for c in CANDIDATES[:-1]
        ]
        assert np.allclose(parts.weights[1][:-1], expected, rtol=0.06)

    def test_hessian_of_a_softmax_layer(self):
        """Tr(H) of the last layer is the mean of |x|^2 sum p (1 - p); the score is that over n times the
        squared norm of the weight's error.
        """
        net = Linear.make()
        p = net.chance
        trace = ((net.read[1] ** 2).sum(1) * (p * (1 - p)).sum(1)).mean()
        objective = HessianTrace(target="model", probes=100, tolerance=0.0)
        with torch.no_grad():
            found = objective.traces(net.context)["2"]
        assert abs(found.mean - trace) < 3 * found.error < 0.4 * trace
        row = rows_of("hessian_trace:target=model,probes=100,tolerance=0", net.context)[1]
        norms = [((net.quantized(1, c)[0] - net.weights[1]) ** 2).sum() for c in CANDIDATES[:-1]]
        assert np.allclose(row[:-1], found.mean / 20 * np.array(norms), rtol=1e-4)


class TestHutchinson:
    @pytest.mark.parametrize("target", ["labels", "model"])
    def test_is_the_exact_trace_within_three_standard_errors(self, target):
        net = filled(
            nn.Sequential(
                nn.Flatten(), nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)
            ),
            seed=2,
        )
        images = images_of(4)
        context = context_of(net, images, ["1", "3", "5"])
        with torch.no_grad():
            found = HessianTrace(target=target, probes=200, tolerance=0.0).traces(context)
        logits = net(images.inputs()).detach()
        goal = images.labels if target == "labels" else logits.softmax(1)
        for unit, trace in found.items():
            weight = context.calibration.weights[unit]

            def loss(w, unit=unit):
                return F.cross_entropy(
                    torch.func.functional_call(net, {f"{unit}.weight": w}, (images.inputs(),)), goal
                )

            hessian = torch.autograd.functional.hessian(loss, weight)
            exact = float(hessian.reshape(weight.numel(), -1).trace())
            assert trace.draws == 800
            assert abs(trace.mean - exact) < 3 * trace.error, unit
            assert trace.error < 0.2 * abs(exact), unit

    def test_running_mean_and_its_error(self):
        trace = Trace()
        assert trace.error == float("inf")
        for value in (values := [1.0, 4.0, -2.0, 7.0]):
            trace.add(value)
        assert trace.mean == pytest.approx(2.5)
        assert trace.error == pytest.approx(np.std(values, ddof=1) / 2)

    def test_stops_when_every_trace_is_known_well_enough(self):
        context = Linear.make(4).context
        steps: list[tuple[int, int]] = []
        context = replace(context, on_step=lambda done, total: steps.append((done, total)))
        with torch.no_grad():
            assert {t.draws for t in HessianTrace(probes=9, tolerance=100.0).traces(context).values()} == {4}
            assert steps == [(i, 4) for i in range(1, 5)]
            assert {t.draws for t in HessianTrace(probes=3, tolerance=0.0).traces(context).values()} == {12}

    def test_negative_and_uncertain_traces_are_noted_and_never_free(self):
        negative, rough = Trace(), Trace()
        for value in (-3.0, -2.0, -3.0, -2.0):
            negative.add(value)
        for value in (9.0, -8.0, 1.0):
            rough.add(value)

        @dataclass(frozen=True)
        class Given(HessianTrace):
            def traces(self, context):
                return {"1": negative, "2": rough}

        context = Linear.make().context
        report = score(Given(), context)
        norms = np.array(rows_of("weight_mse:normalize=none", context))
        assert np.allclose(report.rows[0], negative.error / 15 * norms[0], rtol=1e-5)
        assert np.allclose(report.rows[1], rough.error / 20 * norms[1], rtol=1e-5)
        assert report.weights == report.rows and not np.any(report.activations)
        assert "of 1 units is negative" in report.notes[0] and "'1'" in report.notes[0]
        assert (
            "2 units has a standard error above 0.1" in report.notes[1] and "Raise probes" in report.notes[1]
        )

    def test_labels_are_taken_where_there_are_some(self):
        net = Linear.make()
        assert np.array_equal(
            rows_of("hessian_trace", net.context), rows_of("hessian_trace:target=labels", net.context)
        )
        bare = replace(net.context, images=replace(net.context.images, labels=None))
        assert np.array_equal(
            rows_of("hessian_trace", bare), rows_of("hessian_trace:target=model", net.context)
        )
        for text in ("hessian_trace:target=labels", "fisher:target=labels", "gradient:target=labels"):
            with pytest.raises(DataError, match="has no labels"):
                rows_of(text, bare)

    def test_labels_of_another_model_are_refused(self):
        net = Linear.make()
        wrong = replace(net.context, images=replace(net.context.images, labels=net.context.images.labels + 3))
        for text in ("hessian_trace", "fisher:target=labels", "gradient:target=labels"):
            with pytest.raises(DataError, match="the model has 4 classes"):
                rows_of(text, wrong)


class Odd(nn.Module):
    """A depthwise and a grouped convolution, a linear layer on (B, N, C) that is called twice, in-place
    functions behind units, a product.
    """

    def __init__(self, in_place: bool = True, spare: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)
        self.spare = nn.Linear(8, 4) if spare else None
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.stem(x), inplace=self.in_place)
        y = F.relu(self.depthwise(x), inplace=self.in_place)
        y = x.add_(y) if self.in_place else x + y
        tokens = self.grouped(y).flatten(2).transpose(1, 2)
        tokens = torch.tanh(self.twice(torch.tanh(self.twice(tokens))))
        return self.head((tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens).mean(1)


UNITS = ["stem", "depthwise", "grouped", "twice", "head"]


def odd(in_place: bool = True, units: list[str] = UNITS, **more) -> ScoringContext:
    return context_of(
        filled(Odd(in_place), size=0.4), images_of(6, size=4), units, calls={"twice": 2}, **more
    )


class TestOddUnits:
    @pytest.mark.parametrize("text", [*GRADIENT, "fisher:noise=uniform", "output_mse", "sqnr", "kl"])
    def test_functions_in_place_change_nothing(self, text):
        rows = rows_of(text, odd())
        assert (rows[:, :-1] > 0).all()
        assert np.allclose(rows, rows_of(text, odd(in_place=False)), rtol=1e-3)

    @pytest.mark.parametrize(
        "text",
        ["gradient", "gradient:target=labels", "jacobian", "jacobian:metric=softmax", "output_mse", "sqnr"],
    )
    def test_the_batch_size_does_not_matter(self, text):
        more = "," if ":" in text else ":"
        one, all_ = (rows_of(f"{text}{more}batch_size={size}", odd()) for size in (1, 6))
        assert np.allclose(one, all_, rtol=1e-3)
        assert np.allclose(one, rows_of(f"{text}{more}batch_size=4", odd()), rtol=1e-3)

    def test_calls_of_one_unit_add_up(self):
        """Against gradients taken by hand, call by call, of networks written out without hooks."""
        context = odd(in_place=False)
        net, images, at = context.module, context.images, UNITS.index("twice")
        expected = {"gradient": np.zeros(4), "fisher": np.zeros(4)}
        for image, label in images.batches(1):
            tokens = (
                net.grouped((x := F.relu6(net.stem(image))) + F.relu(net.depthwise(x)))
                .flatten(2)
                .transpose(1, 2)
                .detach()
            )
            weight = net.twice.weight.detach().requires_grad_()
            reads, outs = [tokens], []
            for _ in range(2):
                outs.append(F.linear(reads[-1], weight, net.twice.bias))
                reads.append(torch.tanh(outs[-1]))
            t = reads[-1]
            loss = F.cross_entropy(net.head((t @ t.transpose(1, 2)).softmax(-1) @ t).mean(1), label)
            grads = torch.autograd.grad(loss, [*outs, weight])
            for i, c in enumerate(CANDIDATES[:-1]):
                state = context.calibration.state("twice", c)
                w = state.weight.dequantize()
                for read, out, grad in zip(reads[:2], outs, grads[:2], strict=True):
                    moved = F.linear(state.activation.fake_quantize(read.detach()), w, state.bias) - out
                    expected["gradient"][i] += (grad**2 * moved**2).sum().item() / len(images)
                expected["fisher"][i] += (grads[2] ** 2 * (w - weight) ** 2).sum().item() / len(images)
        assert np.allclose(
            rows_of("gradient:target=labels", context)[at, :-1], expected["gradient"], rtol=1e-3
        )
        with torch.no_grad():
            parts = OBJECTIVES.create("fisher:target=labels").parts(context)
        assert np.allclose(parts.weights[at][:-1], expected["fisher"], rtol=1e-3)

    @pytest.mark.parametrize("text", [*GRADIENT, "output_mse", "sqnr"])
    def test_a_unit_that_is_never_called_is_refused(self, text, left_as_found):
        context = odd()
        net = filled(Odd(spare=True), size=0.4)
        calibration = replace(
            context.calibration,
            weights={**context.calibration.weights, "spare": net.spare.weight.detach()},
            inputs={**context.calibration.inputs, "spare": torch.randn(9)},
        )
        spare = Layer("spare", "linear", (4, 8), ((1, 8),), (1, 4), 32, "spare")
        context = ScoringContext(
            net, (*context.layers, spare), (CANDIDATES,) * 6, calibration, context.images
        )
        check = left_as_found(net)
        with pytest.raises(ModelError, match="'spare' was never called"):
            rows_of(text, context)
        check()

    @pytest.mark.parametrize("text", GRADIENT)
    def test_a_unit_without_influence_has_no_damage(self, text):
        class Ignoring(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.ignored = nn.Linear(3, 4), nn.Linear(3, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.ignored(x.flatten(1))
                return self.used(x.flatten(1))

        rows = rows_of(text, context_of(filled(Ignoring()), images_of(6), ["used", "ignored"]))
        assert (rows[0, :-1] > 0).all() and not rows[1].any()

    @pytest.mark.parametrize(
        "text", ["gradient", "jacobian", "fisher", "fisher:noise=uniform", "output_mse", "sqnr", "kl"]
    )
    def test_products_are_scored_at_their_operands(self, text, left_as_found):
        context = odd(units=[*UNITS, "matmul0", "matmul1"])
        check = left_as_found(context.module)
        rows = rows_of(text, context)
        check()
        assert rows[5:, 1] == pytest.approx(rows[5:, 0]), "weight bits do not matter to a product"
        assert (rows[5:, 1] > rows[5:, 2]).all() and (rows[5:, 2] > 0).all(), "input bits do"
        assert np.allclose(rows[:5], rows_of(text, odd()), rtol=1e-3)

    @pytest.mark.parametrize("text", GRADIENT)
    def test_what_needed_gradients_needs_them_after(self, text):
        context = odd()
        context.module.stem.requires_grad_(False)
        before = [p.requires_grad for p in context.module.parameters()]
        rows_of(text, context)
        assert [p.requires_grad for p in context.module.parameters()] == before
        assert before[0] is False and before[-1] is True

    def test_products_have_no_weight(self):
        context = odd(units=[*UNITS, "matmul0"])
        for text in ("hessian_trace", "weight_mse", "coding_length"):
            assert not rows_of(text, context)[5].any()
        with torch.no_grad():
            assert not np.any(OBJECTIVES.create("fisher").parts(context).weights[5])

    @pytest.mark.parametrize("text", GRADIENT)
    def test_a_model_without_logits_is_refused_and_left_as_found(self, text, left_as_found):
        net = filled(nn.Sequential(nn.Conv2d(3, 4, 1)))
        context = context_of(net, images_of(4, size=2), ["0"])
        check = left_as_found(net)
        with pytest.raises(ModelError, match="gradients are taken of N x K logits"):
            rows_of(text, context)
        check()


class TestWork:
    @pytest.mark.parametrize(
        "text",
        [
            "gradient:images=5,batch_size=1,samples=3",
            "gradient:images=4,batch_size=1,contributions=yes",
            "jacobian:images=5,batch_size=1",
            "fisher:images=5,samples=2",
            "hessian_trace:images=3,probes=3,tolerance=0",
            "output_mse:images=5",
            "sqnr:images=4",
            "kl:images=3",
            "weight_mse",
            "coding_length",
        ],
    )
    def test_no_more_passes_than_stated(self, text, monkeypatch):
        context, counts = odd(), {"forward": 0, "backward": 0, "units": 0}
        original = {cls: cls.forward for cls in (nn.Conv2d, nn.Linear)}
        grad, forward = torch.autograd.grad, Odd.forward

        def count(self, x):
            counts["forward"] += len(x)
            return forward(self, x)

        def count_unit(self, x):
            counts["units"] += len(x)
            return original[type(self)](self, x)

        def count_grad(outputs, *args, **kwargs):
            counts["backward"] += (
                2 if isinstance(outputs, list) else 1
            )  # of one image; a list is the gradient of the gradient
            return grad(outputs, *args, **kwargs)

        monkeypatch.setattr(Odd, "forward", count)
        monkeypatch.setattr(torch.autograd, "grad", count_grad)
        for cls in original:
            monkeypatch.setattr(cls, "forward", count_unit)
        objective = OBJECTIVES.create(text)
        stated = objective.passes(context)
        assert score(objective, context).passes == stated
        in_model = 6 * counts["forward"]  # five units, one of them twice
        spared = (
            2 * (MOST_PROBES - 1) if text.startswith("kl") else 0
        )  # of the probes, which are stated at their most; a unit that runs twice ends them at one
        made = (counts["forward"], counts["backward"], counts["units"] - in_model)
        assert made == (stated.forward - spared, stated.backward, stated.units)

    @pytest.mark.parametrize(
        "text",
        [
            "gradient:samples=0",
            "jacobian:probes=0",
            "fisher:images=0",
            "hessian_trace:probes=-1",
            "gradient:batch_size=0",
            "kl:images=0",
        ],
    )
    def test_bad_counts_are_refused(self, text):
        with pytest.raises(OptionError, match="must be at least 1"):
            OBJECTIVES.create(text)

    @pytest.mark.parametrize("value", ["-1", "nan"])
    def test_a_bad_tolerance_is_refused(self, value):
        with pytest.raises(OptionError, match="tolerance of hessian_trace"):
            OBJECTIVES.create(f"hessian_trace:tolerance={value}")

    @pytest.mark.parametrize("text", ["gradient", "jacobian", "fisher", "hessian_trace"])
    def test_the_seed_reaches_the_draws(self, text):
        context = odd()
        assert not np.array_equal(rows_of(text, context), rows_of(text, replace(context, seed=1)))


class TestCotangents:
    def test_drawn_labels_follow_the_softmax(self):
        logits = torch.tensor([[0.0, 1.0, -1.0], [3.0, 0.0, 0.0]])
        rows = Cotangents("model", images_of(2), seed=0, draws=20000).of(logits)
        picked = (logits.softmax(1) - rows).mean(0)
        assert torch.allclose(picked, logits.softmax(1), atol=0.015)

    @pytest.mark.parametrize("kind", ["model", "rademacher"])
    def test_batches_do_not_change_the_draws(self, kind):
        logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
        whole = Cotangents(kind, images_of(7), seed=5, draws=3).of(logits)
        parts = Cotangents(kind, images_of(7), seed=5, draws=3)
        assert torch.equal(
            torch.cat([parts.of(logits[a:b]) for a, b in itertools.pairwise((0, 2, 3, 7))], 1), whole
        )
