"""AdaRound: where it starts, what it ends on, and its hand-written gradient against autograd."""

from __future__ import annotations

import pytest
import torch

from mpsearch.quant import OBSERVERS, quantize
from mpsearch.quant.rounding import GAMMA, ROUNDINGS, ZETA, AdaRound, SoftRound


def problem(bits: int, symmetric: bool = True, observer: str = "minmax"):
    weight = 0.05 * torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(bits))
    return weight, OBSERVERS.create(observer).observe(weight, bits, symmetric=symmetric, axis=0)


@pytest.mark.parametrize("name", ROUNDINGS.names())
@pytest.mark.parametrize("observer", ["minmax", "mse"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_policy_starts_at_nearest_rounding(name, bits, observer, symmetric):
    weight, params = problem(bits, symmetric, observer)
    hard = ROUNDINGS.create(name).start(weight, params).hard()
    assert hard.params is params
    assert hard.codes.dtype == torch.int16
    share = (weight / params.expanded(weight.ndim)[0]) % 1
    tie = (
        share - 0.5
    ).abs() < 1e-4  # the extreme of a symmetric channel lies between two codes: both are nearest
    assert torch.equal(hard.codes[~tie], quantize(weight, params)[~tie])
    assert ((hard.codes - quantize(weight, params)).abs() <= 1).all()
    assert tie.sum() <= len(weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_adarounds_soft_weight_is_the_weight_inside_the_grid(bits, observer):
    weight, params = problem(bits, observer=observer)
    scale, zero_point = params.expanded(weight.ndim)
    low, high = (params.qmin - zero_point) * scale, (params.qmax - zero_point) * scale
    soft = ROUNDINGS.create("adaround").start(weight, params).soft()
    inside = (weight > low) & (weight < high)
    share = (weight / scale) % 1
    moved = (share < 1e-4) | (share > 1 - 1e-4)  # kept off the ends, where the sigmoid has no gradient
    assert inside.float().mean() > 0.5
    assert ((soft - weight).abs() < 1e-6)[inside & ~moved].all()
    clamped = weight.clamp(low.expand_as(weight), high.expand_as(weight))
    assert ((soft - clamped).abs() <= 1.1e-4 * scale + 1e-6).all()


def test_hard_codes_follow_the_sign_of_alpha_and_stay_on_the_grid():
    weight, params = problem(3)
    rounding = ROUNDINGS.create("adaround").start(weight, params)
    floor = torch.floor(weight / params.expanded(4)[0])
    for sign in (1, -1):
        with torch.no_grad():
            rounding.alpha.fill_(sign * 9.0)
        codes = rounding.hard().codes
        assert torch.equal(codes, (floor + (sign > 0)).clamp(params.qmin, params.qmax).short())
        torch.testing.assert_close(rounding.soft(1.0), rounding.hard().dequantize(), rtol=1e-6, atol=1e-8)


def soft_round_inputs():
    generator = torch.Generator().manual_seed(0)
    alpha = torch.empty(5, 12, dtype=torch.float64).uniform_(-4, 4, generator=generator)
    floor = torch.randint(-6, 6, (5, 12), generator=generator).double()
    scale = torch.rand(5, 1, generator=generator, dtype=torch.float64) + 0.5
    return alpha, floor, scale, -4, 3


def base_and_room(floor, scale, low, high):
    """What a rounding precomputes: the level below on the grid, and the step where the one above is on it
    too.
    """
    return floor.clamp(low, high) * scale, ((floor >= low) & (floor + 1 <= high)) * scale


def test_soft_round_passes_gradcheck():
    alpha, *grid = soft_round_inputs()
    fixed = base_and_room(*grid)
    assert torch.autograd.gradcheck(lambda a: SoftRound.apply(a, *fixed, 0.0, None), alpha.requires_grad_())


@pytest.mark.parametrize("beta", [None, 20.0, 7.5, 2.0])
def test_soft_rounds_gradient_is_that_of_the_plain_formula(beta):
    alpha, floor, scale, low, high = soft_round_inputs()
    weights = torch.randn(alpha.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = alpha.clone().requires_grad_()
    h = torch.clamp(torch.sigmoid(plain) * (ZETA - GAMMA) + GAMMA, 0, 1)
    value = torch.clamp(floor + h, low, high) * scale
    loss = (value * weights).sum() + (0 if beta is None else 0.3 * (1 - (2 * h - 1).abs().pow(beta)).sum())
    loss.backward()
    mine = alpha.clone().requires_grad_()
    found = SoftRound.apply(mine, *base_and_room(floor, scale, low, high), 0.3, beta)
    (found * weights).sum().backward()
    torch.testing.assert_close(found, value, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-10, atol=1e-13)
    assert (mine.grad == 0).any() and (mine.grad != 0).any()


@pytest.mark.parametrize(
    ("progress", "beta"), [(0.0, None), (0.19, None), (0.2, 20.0), (0.6, 11.0), (1.0, 2.0)]
)
def test_the_regulariser_sets_in_after_the_warmup_and_beta_falls(progress, beta):
    weight, params = problem(4)
    rounding = AdaRound(weight=0.5).start(weight, params)
    rounding.soft(progress).backward(torch.zeros_like(weight))
    alpha = rounding.alpha.detach().double().requires_grad_()
    h = torch.clamp(torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA, 0, 1)
    (0 * h if beta is None else 0.5 * (1 - (2 * h - 1).abs().pow(beta))).sum().backward()
    torch.testing.assert_close(rounding.alpha.grad.double(), alpha.grad, rtol=1e-3, atol=1e-6)
    assert bool(rounding.alpha.grad.any()) == (beta is not None)
