"""The steps of two regions are learned as the step of a uniform grid is; a logarithm keeps what was
calibrated.
"""

import math

import pytest
import torch

from mpsearch.quant import InputQuantizer, LogParams, TwoRegionParams
from mpsearch.quant.inputs import learned_regions
from mpsearch.quant.region_search import two_region_params
from mpsearch.quant.regions import SPLITS

QUANTIZERS = [TwoRegionParams(torch.tensor(0.07), 3, 4, split) for split in (*SPLITS, "unsigned")]


def values(count=400):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, generator=draw) * 1.5


@pytest.mark.parametrize("params", QUANTIZERS, ids=str)
def test_gradients_are_those_of_autograd_on_the_straight_through_expression(params):
    x, log = values().requires_grad_(), torch.tensor(0.3, requires_grad=True)
    cotangent = torch.linspace(-1, 2, len(x))
    (learned_regions(x, params, log.exp()) * cotangent).sum().backward()
    again, factor = x.detach().clone().requires_grad_(), torch.tensor(0.3, requires_grad=True)
    step = params.step * factor.exp()
    share = again / step
    grid = (params.scaled(factor.detach().exp()).fake_quantize(again.detach()) / step).detach()
    inside = params.scaled(factor.detach().exp()).inside(again.detach())
    straight = torch.where(inside, share + (grid - share).detach(), grid) * step
    (straight * cotangent).sum().backward()
    assert inside.any() and not inside.all()
    assert torch.allclose(x.grad, again.grad)
    damping = 1 / math.sqrt(len(x) * (2**params.bits - 1))
    assert (
        float(log.grad) == pytest.approx(float(factor.grad) * damping, rel=1e-4)
        and abs(float(log.grad)) > 1e-4
    )


@pytest.mark.parametrize("params", QUANTIZERS, ids=str)
def test_outside_the_range_the_gradient_is_the_true_one(params):
    """There x_hat = s q exactly, so a finite difference of the output is the gradient."""
    top = float(params.levels().max())
    x = torch.full((8,), 10 * top)
    log = torch.tensor(0.0, requires_grad=True)
    learned_regions(x, params, log.exp()).sum().backward()
    apart = (
        params.scaled(torch.tensor(1.01)).fake_quantize(x)
        - params.scaled(torch.tensor(0.99)).fake_quantize(x)
    ).sum() / 0.02
    assert float(log.grad) == pytest.approx(float(apart) / math.sqrt(8 * (2**params.bits - 1)), rel=1e-3)


@pytest.mark.parametrize(
    "best", [two_region_params(values(), 4, "magnitude"), two_region_params(values(), 4, "sign")], ids=str
)
def test_a_step_that_is_off_is_learned_back(best):
    x = values()
    off = InputQuantizer(best.scaled(torch.tensor(0.4)))
    before = float((off(x) - x).square().mean())
    parameter = off.learn()
    optimizer = torch.optim.Adam([parameter], lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        (off(x) - x).square().mean().backward()
        optimizer.step()
    settled = off.settle()
    after, least = (float((q.fake_quantize(x) - x).square().mean()) for q in (settled, best))
    assert type(settled) is type(best) and off.log_step is None
    assert after < before / 2 and after < 1.25 * least


def test_what_is_dropped_passes_and_gives_no_gradient_to_the_step():
    quantizer = InputQuantizer(QUANTIZERS[0])
    parameter = quantizer.learn()
    quantizer.keep_prob, quantizer.generator = 0.0, torch.Generator().manual_seed(0)
    x = values().requires_grad_()
    found = quantizer(x)
    found.sum().backward()
    assert torch.equal(found, x) and torch.equal(x.grad, torch.ones_like(x)) and float(parameter.grad) == 0


def test_a_logarithm_keeps_its_levels():
    quantizer = InputQuantizer(LogParams(torch.tensor(0.8), 3))
    assert quantizer.learn() is None
    assert quantizer.settle() == LogParams(torch.tensor(0.8), 3)
