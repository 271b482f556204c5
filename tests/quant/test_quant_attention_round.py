"""Attention Round: starts at nearest, may reach any level, and is pulled back to where it started."""

from __future__ import annotations

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
