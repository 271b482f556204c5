"""Observers: the ranges they say, and data that has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch.errors import DataError, OptionError, UnknownNameError
from mpsearch.quant import OBSERVERS, fake_quantize
from mpsearch.quant import observers as observers_module


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).pow(3)


@pytest.mark.parametrize("name", OBSERVERS.names())
class TestEveryObserver:
    @pytest.mark.parametrize("symmetric", [True, False])
    @pytest.mark.parametrize("axis", [None, 0, 2])
    def test_quantiser_of_the_right_shape(self, name, symmetric, axis):
        x = drawn(0, 4, 6, 5)
        params = OBSERVERS.create(name).observe(x, 5, symmetric=symmetric, axis=axis)
        assert params.scale.shape == params.zero_point.shape == (() if axis is None else (x.shape[axis],))
        assert (params.scale > 0).all() and torch.isfinite(params.scale).all()
        assert (params.bits, params.symmetric, params.axis) == (5, symmetric, axis)
        again = OBSERVERS.create(name).observe(x, 5, symmetric=symmetric, axis=axis)
        assert torch.equal(params.scale, again.scale)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None])
    def test_values_without_a_range_are_refused(self, name, bad):
        x = torch.zeros(0, 3) if bad is None else torch.tensor([[1.0, bad, 2.0]])
        with pytest.raises(DataError, match="no values" if bad is None else "NaN or infinite"):
            OBSERVERS.create(name).observe(x, 8, symmetric=False)

    @pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
    def test_a_single_value_is_held(self, name, value):
        params = OBSERVERS.create(name).observe(torch.tensor([value]), 8, symmetric=False)
        assert float(fake_quantize(torch.tensor([value]), params)) == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize("axis", [None, 1])
def test_minmax_is_the_extremes(axis):
    x = drawn(1, 8, 3, 7)
    low, high = (x.min(), x.max()) if axis is None else (x.amin((0, 2)), x.amax((0, 2)))
    observer = OBSERVERS.create("minmax")
    asymmetric = observer.observe(x, 4, symmetric=False, axis=axis)
    torch.testing.assert_close(asymmetric.scale, (high - low) / 15, rtol=0, atol=0)
    assert torch.equal(asymmetric.zero_point, torch.round(-low / asymmetric.scale).int())
    symmetric = observer.observe(x, 4, symmetric=True, axis=axis)
    torch.testing.assert_close(symmetric.scale, torch.maximum(-low, high) / 7.5, rtol=0, atol=0)


@pytest.mark.parametrize("percent", [60.0, 90.0, 99.0, 99.99, 100.0])
@pytest.mark.parametrize("axis", [None, 0])
def test_percentile_is_numpys(percent, axis):
    x = drawn(2, 3, 1001)
    low, high = np.percentile(x.numpy(), [100 - percent, percent], axis=None if axis is None else 1)
    params = OBSERVERS.create(f"percentile:percent={percent}").observe(x, 8, symmetric=False, axis=axis)
    np.testing.assert_allclose(params.scale.numpy(), (high - low) / 255, rtol=2e-5)
    np.testing.assert_allclose(params.zero_point.numpy(), np.round(-low / params.scale.numpy()), atol=1)


def test_a_long_row_is_taken_at_random_places(monkeypatch):
    monkeypatch.setattr(observers_module, "MAX_VALUES", 400)
    x = drawn(3, 4000)
    low, high = np.percentile(x.numpy(), [5, 95])
    params = OBSERVERS.create("percentile:percent=95").observe(x, 8, symmetric=False)
    assert float(params.scale) == pytest.approx((high - low) / 255, rel=0.2)
    assert float(params.scale) == float(
        OBSERVERS.create("percentile:percent=95").observe(x, 8, symmetric=False).scale
    )


@pytest.mark.parametrize(("channels", "size"), [(256, 3), (320, 3), (640, 3), (200, 5), (2500, 3)])
def test_every_place_of_a_kernel_counts(channels, size):
    """A stride through a row that meets that of the channels sees one place of the kernel: here one whose
    weights are a tenth of the others'.
    """
    weight = drawn(0, 4, channels, size, size)
    weight[:, :, 0, 0] *= 0.1
    weight[:, :, :, 0] *= 0.3
    params = OBSERVERS.create("mse").observe(weight, 4, symmetric=True, axis=0)
    exact = OBSERVERS.create(f"mse:values={channels * size * size}").observe(
        weight, 4, symmetric=True, axis=0
    )
    errors = [(fake_quantize(weight, p) - weight).square().mean() for p in (params, exact)]
    assert errors[0] < 1.1 * errors[1]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from([None, 0, 1]),
    st.integers(1, 300),
)
def test_mse_is_never_worse_than_minmax(seed, bits, symmetric, axis, count):
    x = drawn(seed, 3, count)
    errors = {}
    for name in ("minmax", "mse"):
        params = OBSERVERS.create(name).observe(x, bits, symmetric=symmetric, axis=axis)
        errors[name] = (fake_quantize(x, params) - x).double().square().mean(() if axis is None else 1 - axis)
    assert (errors["mse"] <= errors["minmax"] * (1 + 1e-5) + 1e-20).all()


def test_mse_clips_what_is_far_out():
    x = torch.cat([drawn(4, 4096).clamp(-3, 3), torch.tensor([100.0])])
    found = {
        name: float(OBSERVERS.create(name).observe(x, 4, symmetric=True).scale) for name in ("minmax", "mse")
    }
    assert found["mse"] < 0.8 * found["minmax"]


def test_rows_are_searched_alone_whatever_the_chunk(monkeypatch):
    x = drawn(5, 37, 64)
    whole = OBSERVERS.create("mse").observe(x, 4, symmetric=True, axis=0)
    monkeypatch.setattr(observers_module, "_CHUNK_VALUES", 200)
    assert torch.equal(OBSERVERS.create("mse").observe(x, 4, symmetric=True, axis=0).scale, whole.scale)
    alone = torch.stack([OBSERVERS.create("mse").observe(row, 4, symmetric=True).scale for row in x])
    torch.testing.assert_close(alone, whole.scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "text",
    [
        "percentile:percent=50",
        "percentile:percent=100.1",
        "mse:steps=0",
        "mse:values=0",
        "mse:power=0",
        "mse:power=nan",
        "mse:shrink=3",
    ],
)
def test_bad_options_are_refused(text):
    with pytest.raises(OptionError):
        OBSERVERS.create(text)


def test_an_unknown_observer_names_the_closest():
    with pytest.raises(UnknownNameError, match="Did you mean 'minmax'"):
        OBSERVERS.create("minmx")
