"""The affine quantiser against torch's kernels and against its own definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch.quant import AffineParams, QuantizedTensor, affine_params, dequantize, fake_quantize, quantize
from mpsearch.quant.affine import ZERO_SCALE

BITS = st.integers(2, 8)
VALUES = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def spanning(x: torch.Tensor, bits: int, symmetric: bool, axis: int | None) -> AffineParams:
    rows = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1)
    low, high = rows.amin(1), rows.amax(1)
    return affine_params(
        low if axis is not None else low[0],
        high if axis is not None else high[0],
        bits,
        symmetric=symmetric,
        axis=axis,
    )


@pytest.mark.parametrize("axis", [None, 0, 1, 3])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_fake_quantize_is_torchs_kernel_and_its_own_definition(bits, symmetric, axis):
    x = drawn(bits, 4, 5, 3, 6)
    params = spanning(x, bits, symmetric, axis)
    qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    assert (params.qmin, params.qmax) == (qmin, qmax)
    if axis is None:
        theirs = torch.fake_quantize_per_tensor_affine(
            x, float(params.scale), int(params.zero_point), qmin, qmax
        )
    else:
        theirs = torch.fake_quantize_per_channel_affine(x, params.scale, params.zero_point, axis, qmin, qmax)
    mine = fake_quantize(x, params)
    assert torch.equal(mine, dequantize(quantize(x, params), params))
    scale, zero_point = params.expanded(x.ndim)
    exact = x.double() / scale.double()
    tie = (
        (exact - exact.floor()) - 0.5
    ).abs() < 1e-4  # torch's kernel multiplies by 1 / scale, so that ties may fall to either side
    assert torch.equal(mine[~tie], theirs[~tie])
    by_hand = ((exact.round() + zero_point.double()).clamp(qmin, qmax) - zero_point.double()) * scale.double()
    codes = quantize(x, params)
    assert codes.dtype == torch.int16
    for found in (mine, dequantize(codes, params), QuantizedTensor(codes, params).dequantize()):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[~tie].double(), by_hand[~tie], rtol=1e-6, atol=1e-7)
        assert ((found - by_hand).abs() <= 1.01 * scale).all()
    assert not tie.all()


def test_ties_go_to_the_even_code():
    params = AffineParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), 4, True)
    assert quantize(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), params).tolist() == [0, 2, 2, 0, -2]


def test_gradient_is_straight_through_inside_the_range_only():
    params = affine_params(torch.tensor(-1.0), torch.tensor(1.0), 4, symmetric=False)
    x = torch.tensor([-5.0, -0.5, 0.3, 5.0], requires_grad=True)
    fake_quantize(x, params).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_scale_and_zero_point_of_a_range():
    symmetric = affine_params(torch.tensor(-3.0), torch.tensor(1.0), 3, symmetric=True)
    assert (float(symmetric.scale), int(symmetric.zero_point)) == (pytest.approx(3 / 3.5), 0)
    asymmetric = affine_params(torch.tensor(-3.0), torch.tensor(4.0), 3, symmetric=False)
    assert (float(asymmetric.scale), int(asymmetric.zero_point)) == (1.0, 3)
    channels = affine_params(torch.tensor([-1.0, 0.0]), torch.tensor([6.0, 14.0]), 3, symmetric=False, axis=1)
    assert (channels.scale.tolist(), channels.zero_point.tolist(), channels.zero_point.dtype) == (
        [1.0, 2.0],
        [1, 0],
        torch.int32,
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-12])
def test_a_constant_tensor_is_held(value, symmetric):
    x = torch.full((7,), value)
    params = spanning(x, 8, symmetric, None)
    assert float(params.scale) > 0 and (value != 0 or float(params.scale) == pytest.approx(ZERO_SCALE))
    torch.testing.assert_close(fake_quantize(x, params), x, rtol=0.005, atol=0)
    assert float(fake_quantize(torch.zeros(1), params)) == 0.0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_range_on_one_side_is_widened_to_hold_zero(sign):
    low, high = sorted((sign * 1.0, sign * 5.0))
    params = affine_params(torch.tensor(low), torch.tensor(high), 4, symmetric=False)
    assert float(params.scale) == pytest.approx(5 / 15)
    assert int(params.zero_point) == (0 if sign > 0 else 15)
    assert float(fake_quantize(torch.zeros(1), params)) == 0.0
    assert float(fake_quantize(torch.tensor([sign * 5.0]), params)) == pytest.approx(sign * 5.0)


@settings(max_examples=100, deadline=None)
@given(VALUES, BITS, st.booleans())
def test_idempotent_and_within_half_a_step(values, bits, symmetric):
    x = torch.tensor(values)
    params = spanning(x, bits, symmetric, None)
    once = fake_quantize(x, params)
    assert torch.equal(fake_quantize(once, params), once)
    assert torch.equal(
        dequantize(quantize(dequantize(quantize(x, params), params), params), params),
        dequantize(quantize(x, params), params),
    )
    low, high = ((edge - int(params.zero_point)) * params.scale for edge in (params.qmin, params.qmax))
    inside = (x >= low) & (x <= high)
    assert ((once - x).abs()[inside] <= 0.5001 * params.scale).all()
    assert ((once >= low - 1e-6 * params.scale) & (once <= high + 1e-6 * params.scale)).all()
