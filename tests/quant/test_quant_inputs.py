"""Input quantisers: learned steps, dropping, and the gradients of both."""

from __future__ import annotations

import pytest
import torch

from mpsearch.quant import InputQuantizer, affine_params, dequantize, fake_quantize, quantize
from mpsearch.quant.inputs import LearnedStep, keep_mask, learned_step


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_autograd(x, scale, zero_point, qmin, qmax, keep, damping):
    """The textbook form: straight-through rounding, and LSQ's scaling of the step's gradient, composed of
    torch's own operations.
    """
    damped = (scale - scale * damping).detach() + scale * damping
    scaled = x / damped
    code = scaled + (scaled.round() - scaled).detach() + zero_point
    code = torch.where(
        (code.detach().round() < qmin) | (code.detach().round() > qmax), code.detach().clamp(qmin, qmax), code
    )
    quantized = (code - zero_point) * damped
    return quantized if keep is None else x + keep * (quantized - x)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("qmin", "qmax", "zero"), [(0, 15, 6.0), (0, 3, 0.0), (-8, 7, 0.0)])
def test_learned_step_has_the_gradients_of_the_straight_through_form(qmin, qmax, zero, per_channel, dropped):
    x = drawn(3, 4, 5, dtype=torch.float64).requires_grad_()
    scale = (
        torch.rand(
            (1, 4, 1) if per_channel else (), generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        * 0.2
        + 0.1
    ).requires_grad_()
    zero_point = torch.full_like(scale.detach(), zero)
    keep = (drawn(3, 4, 5, seed=2) > 0).double() if dropped else None
    weight = drawn(3, 4, 5, seed=3, dtype=torch.float64)
    found = []
    for function in (LearnedStep.apply, by_autograd):
        output = function(x, scale, zero_point, qmin, qmax, keep, 0.25)
        found.append((output.detach(), *torch.autograd.grad((output * weight).sum(), (x, scale))))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_where_everything_is_clipped_the_gradient_of_the_step_is_the_true_one():
    x = torch.tensor([9.0, 11.0, -5.0], dtype=torch.float64)
    zero = torch.tensor(2.0, dtype=torch.float64)
    step = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: LearnedStep.apply(x, s, zero, 0, 7, None, 1.0), (step,))


def test_at_factor_one_a_learned_step_is_the_quantiser_itself():
    x = drawn(64, 8) * 2 + 1
    params = affine_params(x.min(), x.max(), 3, symmetric=False)
    assert torch.equal(learned_step(x, params, torch.ones(())), fake_quantize(x, params))


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_gradient_of_fake_quantisation_is_that_of_torchs_kernel(symmetric, axis):
    x = drawn(4, 6, 3) * 3
    low, high = (x.min() / 2, x.max() / 2) if axis is None else (x.amin((0, 2)) / 2, x.amax((0, 2)) / 2)
    params = affine_params(low, high, 4, symmetric=symmetric, axis=axis)
    grads = []
    for function in (
        fake_quantize,
        lambda x, p: (
            torch.fake_quantize_per_tensor_affine(x, float(p.scale), int(p.zero_point), p.qmin, p.qmax)
            if axis is None
            else torch.fake_quantize_per_channel_affine(x, p.scale, p.zero_point, axis, p.qmin, p.qmax)
        ),
    ):
        given = x.clone().requires_grad_()
        function(given, params).square().sum().backward()
        grads.append(given.grad)
    torch.testing.assert_close(grads[0], grads[1])
    assert (grads[0] == 0).any()


def test_learning_moves_the_step_and_settling_keeps_it():
    x = torch.rand(4096, generator=torch.Generator().manual_seed(0))
    start = affine_params(torch.tensor(0.0), torch.tensor(3.0), 2, symmetric=False)  # three times too wide
    quantizer = InputQuantizer(start)
    step = quantizer.learn()
    optimizer = torch.optim.Adam([step], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    settled = quantizer.settle()
    assert float((fake_quantize(x, settled) - x).square().mean()) < 0.3 * float(
        (fake_quantize(x, start) - x).square().mean()
    )
    assert quantizer.log_step is None
    assert torch.equal(settled.zero_point, start.zero_point)
    assert torch.equal(quantizer(x), dequantize(quantize(x, settled), settled))


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (4, 6, 5, 3), (2, 1, 1, 3)])
def test_a_keep_mask_has_the_layout_of_its_tensor_and_repeats_with_a_seed(shape):
    for x in (
        torch.empty(shape),
        torch.empty(shape).contiguous(memory_format=torch.channels_last)
        if len(shape) == 4
        else torch.empty(shape),
    ):
        first, again = (keep_mask(x, 0.5, torch.Generator().manual_seed(4)) for _ in range(2))
        assert torch.equal(first, again)
        assert (first.shape, first.stride()) == (x.shape, x.stride())
        assert set(first.unique().tolist()) <= {0.0, 1.0}


def test_a_keep_mask_keeps_its_share_everywhere():
    mask = keep_mask(torch.empty(64, 1000), 0.25, torch.Generator().manual_seed(0))
    assert abs(float(mask.mean()) - 0.25) < 0.01
    assert (mask.mean(0) - 0.25).abs().max() < 0.3
    assert (mask.mean(1) - 0.25).abs().max() < 0.07
