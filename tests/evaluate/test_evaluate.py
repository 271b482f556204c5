"""Metrics against scipy's and torch's formulas, and the fast evaluator against the plain one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from torch import nn

from mpsearch.errors import MpsearchError
from mpsearch.evaluate import FastEvaluator, Metrics, clearly_lower, compare, kl_by_image, predict
from mpsearch.evaluate.metrics import kl_divergence
from mpsearch.quant import install

CHOICES = ("W2A4", "W4A8", "W8A8", "W3A6", "W4A8/tensor", "float")


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(40, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.01, 3.0, 100.0])
def test_compare_is_scipys_and_torchs(scale):
    mine, reference = logits(0, scale), logits(1, scale)
    labels = torch.arange(40) % 7
    p, q = (scipy.special.log_softmax(x.numpy().astype(np.float64), axis=1) for x in (reference, mine))
    found = compare(mine, reference, labels)
    assert found.images == 40
    assert found.kl == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-9)
    assert found.kl == pytest.approx(
        float(F.kl_div(torch.tensor(q), torch.tensor(p), reduction="batchmean", log_target=True)), rel=1e-9
    )
    assert found.loss == pytest.approx(float(F.cross_entropy(mine, labels)), rel=1e-5)
    assert found.top1 == pytest.approx(np.mean(mine.numpy().argmax(1) == labels.numpy()))
    assert found.agreement == pytest.approx(np.mean(mine.numpy().argmax(1) == reference.numpy().argmax(1)))
    assert 0 < found.agreement < 1
    assert found.top1_error == pytest.approx(math.sqrt(found.top1 * (1 - found.top1) / 40))


def test_kl_by_hand():
    reference, mine = torch.log(torch.tensor([[0.75, 0.25]])), torch.log(torch.tensor([[0.5, 0.5]]))
    assert kl_divergence(mine, reference) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6
    )
    assert kl_divergence(mine + 5, reference - 3) == pytest.approx(kl_divergence(mine, reference), rel=1e-6)


def test_the_same_logits_agree_fully():
    found = compare(logits(0), logits(0))
    assert found == Metrics(40, 0.0, 1.0)
    assert (found.top1, found.loss, found.top1_error) == (None, None, None)
    assert found.to_json() == {"images": 40, "kl": 0.0, "agreement": 1.0, "top1": None, "loss": None}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_kl_of_logits_that_are_not_finite_is_not_a_good_score(bad):
    mine = logits(0)
    mine[3, 2] = bad
    assert math.isnan(kl_divergence(mine, logits(1)))


class Bad(nn.Module):
    def __init__(self, bad: float) -> None:
        super().__init__()
        self.bad = bad

    def forward(self, x):
        out = x.mean((2, 3))
        out[:2, 1] = self.bad
        return out


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_model_whose_output_is_not_finite_is_an_error(tiny, bad):
    with pytest.raises(MpsearchError, match="NaN or infinite on 2 of 24 images of noise"):
        predict(Bad(bad), tiny("conv").images)


def test_predict_goes_through_all_images_in_order(tiny, left_as_found):
    net, done, sizes = tiny("conv"), [], []
    many = net.images.subset(torch.arange(150) % 24)
    check = left_as_found(net.module)

    def watched(x):
        sizes.append(len(x))
        return net.module(x).double()

    found = predict(watched, many, on_batch=done.append)
    assert (sizes, done) == ([64, 64, 22], [64, 128, 150])
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(found[:24], found[24:48])
    with torch.no_grad():
        torch.testing.assert_close(found, net.module(many.inputs()))
    check()


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_fast_is_install_and_predict_to_the_last_bit(tiny, left_as_found, name):
    net = tiny(name)
    check = left_as_found(net.module)
    fast = FastEvaluator(net.module, net.calibration, net.images)
    assert torch.equal(fast.float_logits, predict(net.module, net.images))
    for seed in range(8):
        assignment = net.mixed(seed, CHOICES)
        plain = predict(install(net.module, net.calibration.states(assignment)), net.images)
        assert torch.equal(fast.logits(assignment), plain)
        assert fast.measure(assignment) == compare(plain, fast.float_logits).kl
    assert fast.measure(net.uniform("float")) == 0.0
    assert torch.equal(fast.logits(net.uniform("float")), fast.float_logits)
    check()


def test_the_order_of_measurements_does_not_matter(tiny):
    net = tiny("conv")
    assignments = [net.mixed(seed, CHOICES) for seed in range(4)]
    expected = [FastEvaluator(net.module, net.calibration, net.images).measure(a) for a in assignments]
    assert len(set(expected)) == 4
    fast = FastEvaluator(net.module, net.calibration, net.images)
    for order in itertools.permutations(range(4)):
        assert [fast.measure(assignments[i]) for i in order] == [expected[i] for i in order]


@pytest.mark.parametrize("limit", [5000, 3000, 1])
def test_the_memory_limit_holds_and_changes_no_result(tiny, limit):
    net = tiny("conv")
    free = FastEvaluator(net.module, net.calibration, net.images)
    tight = FastEvaluator(net.module, net.calibration, net.images, memory_limit_bytes=limit)
    largest = max(weight.nbytes for weight in net.calibration.weights.values())
    for seed in range(10):
        assignment = net.mixed(seed, CHOICES)
        assert tight.measure(assignment) == free.measure(assignment)
        assert 0 < tight.kept_bytes <= max(limit, largest)
        assert tight.kept_bytes == sum(weight.nbytes for weight in tight._kept.values())
    assert free.kept_bytes > 5000


def test_a_weight_is_quantised_once_whatever_the_input_bits(tiny):
    net, asked = tiny("conv"), []

    class Counting:
        weights, products, learned = net.calibration.weights, {}, {}
        input_params = staticmethod(net.calibration.input_params)

        @staticmethod
        def state(unit, candidate):
            asked.append((unit, candidate.w_bits))
            return net.calibration.state(unit, candidate)

    fast = FastEvaluator(net.module, Counting(), net.images)
    for text in ("W4A8", "W4A4", "W2A8", "W4A8", "float"):
        fast.measure(net.uniform(text))
    assert sorted(asked) == sorted((unit, bits) for unit in net.units for bits in (4, 2))


def test_the_least_recently_used_weight_goes_first(tiny):
    net = tiny("conv")
    size = sum(weight.nbytes for weight in net.calibration.weights.values())
    fast = FastEvaluator(net.module, net.calibration, net.images, memory_limit_bytes=2 * size)
    for text in ("W4A8", "W2A8", "W4A8", "W3A8"):
        fast.measure(net.uniform(text))
    assert {candidate.w_bits for _, candidate in fast._kept} == {4, 3}


def test_a_quantised_model_that_breaks_measures_nan(tiny, monkeypatch):
    net = tiny("conv")
    fast = FastEvaluator(net.module, net.calibration, net.images)
    broken = fast.logits(net.uniform("W4A8"))
    broken[0, 0] = float("nan")
    monkeypatch.setattr(fast, "logits", lambda _: broken)
    assert math.isnan(fast.measure(net.uniform("W4A8")))


def test_a_loss_is_clearly_lower_only_beyond_two_standard_errors():
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    noise = (noise - noise.mean()) / noise.std(correction=0)  # the standard error of its mean is 0.05
    base = torch.rand(400).double()
    assert clearly_lower(base, base + noise + 0.11)
    assert not clearly_lower(base, base + noise + 0.09)
    assert not clearly_lower(base + noise + 0.11, base)
    assert not clearly_lower(base, base)


def test_the_mean_over_images_of_the_kl_is_the_kl():
    a, b = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(1))
    by_image = kl_by_image(a, b)
    assert by_image.shape == (50,)
    assert (by_image >= 0).all()
    assert float(by_image.mean()) == pytest.approx(compare(a, b).kl)
    p, q = b[3].double().softmax(0), a[3].double().softmax(0)
    assert float(by_image[3]) == pytest.approx(float((p * (p / q).log()).sum()))
