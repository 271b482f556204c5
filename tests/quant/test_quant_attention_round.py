"""Attention Round: starts at nearest, may reach any level, and is pulled back to where it started."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mpsearch.errors import OptionError
from mpsearch.quant import affine_params, quantize
from mpsearch.quant.attention_round import AttentionRound, RoundWithAttention

WEIGHT = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
PARAMS = affine_params(WEIGHT.amin(1), WEIGHT.amax(1), 3, symmetric=True, axis=0)


def test_it_starts_at_nearest_rounding():
    rounding = AttentionRound().start(WEIGHT, PARAMS)
    assert torch.equal(rounding.hard().codes, quantize(WEIGHT, PARAMS))
    assert torch.equal(rounding.soft(), rounding.hard().dequantize())
    assert rounding.decided()


def test_a_gaussian_start_reaches_all_levels_as_often_as_the_gaussian_says():
    scale, tau = 0.1, 0.8
    weight = torch.full((1, 40_000), 0.03)
    params = affine_params(torch.tensor([-0.8]), torch.tensor([0.8]), 4, symmetric=True, axis=0)
    params = replace(params, scale=torch.full_like(params.scale, scale))
    codes = AttentionRound(tau, "gaussian").start(weight, params).hard().codes.flatten()
    normal = torch.distributions.Normal(0.03 / scale, tau)
    for level in range(-3, 4):
        expected = float(normal.cdf(torch.tensor(level + 0.5)) - normal.cdf(torch.tensor(level - 0.5)))
        assert float((codes == level).float().mean()) == pytest.approx(expected, abs=0.01)
    again = AttentionRound(tau, "gaussian").start(weight, params).hard().codes.flatten()
    assert torch.equal(codes, again), "the same weight starts at the same sample"


def test_a_gaussian_start_is_about_given_codes():
    codes = quantize(WEIGHT, PARAMS).clamp(max=PARAMS.qmax - 1) + 1
    offsets = AttentionRound(0.1).start(WEIGHT, PARAMS, codes).alpha
    sampled = AttentionRound(0.1, "gaussian").start(WEIGHT, PARAMS, codes).alpha
    assert float((sampled - offsets).detach().std()) == pytest.approx(0.1, rel=0.1)


def test_a_weight_may_go_beyond_its_two_neighbours():
    rounding = AttentionRound().start(WEIGHT, PARAMS)
    with torch.no_grad():
        rounding.alpha.fill_(2.0)
    moved = rounding.hard().codes - quantize(WEIGHT, PARAMS)
    assert int(moved.max()) == 2
    assert int(rounding.hard().codes.max()) <= PARAMS.qmax
    assert torch.equal(rounding.soft(), rounding.hard().dequantize())


def test_the_way_back_is_open_and_the_way_out_is_damped():
    alpha = torch.tensor([-1.0, -0.2, 0.0, 0.2, 1.0], requires_grad=True)
    phi = torch.special.ndtr(alpha.detach() / 0.5)
    for sign, expected in ((1.0, phi), (-1.0, -(1 - phi))):
        output = RoundWithAttention.apply(
            alpha, torch.zeros(5), torch.tensor(1.0), torch.tensor(-4.0), torch.tensor(3.0), 0.5
        )
        (grad,) = torch.autograd.grad(output, alpha, torch.full((5,), sign))
        torch.testing.assert_close(grad, expected)


def test_outside_the_grid_there_is_no_gradient():
    alpha = torch.tensor([5.0, -6.0, 1.0], requires_grad=True)
    output = RoundWithAttention.apply(
        alpha, torch.zeros(3), torch.tensor(1.0), torch.tensor(-4.0), torch.tensor(3.0), 0.5
    )
    (grad,) = torch.autograd.grad(output.sum(), alpha)
    assert grad[:2].tolist() == [0, 0]
    assert float(grad[2]) > 0


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_tau_must_be_positive(tau):
    with pytest.raises(OptionError, match="must be positive"):
        AttentionRound(tau)
