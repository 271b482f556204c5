"""What a quantiser gives does not depend on the unit that a tensor is measured in: a tensor times a power of
two has the same codes.
"""

import pytest
import torch
from torch import nn

from mpsearch.models import analyze
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import OBSERVERS, install, quantize
from mpsearch.quant.learned import learned_step
from mpsearch.quant.observers import Mse
from mpsearch.quant.region_search import log_params, opt_m, post_softmax_params, two_region_params
from mpsearch.reconstruct import calibrate, smooth

EXPONENTS = (-100, -60, -30, 20)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["minmax", "percentile", "mse", "mse:power=2.4"])
@pytest.mark.parametrize("axis", [None, 0])
def test_observers_find_the_same_codes(name, axis, symmetric):
    x = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    x[2] = 0
    x[3] *= 1e-5
    observer = OBSERVERS.create(name)
    wanted = observer.observe(x, 4, symmetric=symmetric, axis=axis)
    for exponent in EXPONENTS:
        found = observer.observe(x * 2.0**exponent, 4, symmetric=symmetric, axis=axis)
        if not isinstance(observer, Mse) or observer.power == 2:
            expected = wanted.scale if axis is None else wanted.scale[[0, 1, 3, 4, 5]]
            given = found.scale if axis is None else found.scale[[0, 1, 3, 4, 5]]
            assert torch.equal(given.double() / 2.0**exponent, expected.double())
        assert torch.equal(quantize(x * 2.0**exponent, found), quantize(x, wanted))


SEARCHES = {
    "two regions": lambda x: two_region_params(x, 4, "sign"),
    "opt_m": lambda x: opt_m(x, 4),
    "log": lambda x: log_params(x.abs(), 3),
    "softmax": lambda x: post_softmax_params(x.abs(), 4),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_searches_of_other_grids_find_the_same_levels(search):
    x = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    wanted = search(x)
    for exponent in (-60, -30, 20):
        found = search(x * 2.0**exponent)
        assert type(found) is type(wanted)
        torch.testing.assert_close(
            found.fake_quantize(x * 2.0**exponent) * 2.0**-exponent,
            wanted.fake_quantize(x),
            rtol=1e-6,
            atol=0,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_learned_step_is_scaled_with_its_input(dtype):
    x = torch.randn(500, generator=torch.Generator().manual_seed(2)).to(dtype)
    gradients = []
    for exponent in (0, -60):
        params, factor = (
            OBSERVERS.create("mse").observe(x.float() * 2.0**exponent, 3, symmetric=False),
            torch.ones((), requires_grad=True),
        )
        learned_step(
            (x * 2.0**exponent).to(dtype), params, factor, dtype=dtype
        ).float().square().sum().backward()
        gradients.append(float(factor.grad))
    assert gradients[1] * 2.0**120 == pytest.approx(
        gradients[0], rel=1e-2 if dtype == torch.bfloat16 else 1e-5
    )


class Scaled(nn.Module):
    """Two ReLU layers; the first is scaled by s and the second by 1 / s, which changes nothing."""

    def __init__(self, s):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(24, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        with torch.no_grad():
            self.one.weight.mul_(s)
            self.one.bias.mul_(s)
            self.two.weight.div_(s)

    def forward(self, x):
        return self.head(torch.relu(self.two(torch.relu(self.one(x.flatten(1))))))


@pytest.mark.parametrize("exponent", [-24, -27, -30, -40])
def test_a_layer_of_small_numbers_keeps_its_codes_and_its_error(exponent):
    images = torch.randn(32, 6, 2, 2, generator=torch.Generator().manual_seed(3))
    found = []
    for s in (1.0, 2.0**exponent):
        module = Scaled(s).eval()
        units = [layer.name for layer in analyze(module, images[:1]).layers]
        states = calibrate(module, units, [images]).states(
            Assignment(tuple((unit, Candidate(8, 8)) for unit in units))
        )
        with torch.no_grad():
            error = (install(module, states)(images) - module(images)).norm() / module(images).norm()
        found.append(({unit: state.weight.codes for unit, state in states.items()}, float(error)))
    for unit, codes in found[0][0].items():
        assert torch.equal(found[1][0][unit], codes)
    assert len(found[1][0]["one"].unique()) > 100
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-3) and found[0][1] < 0.05


@pytest.mark.parametrize("exponent", [-30, -50])
def test_smoothing_evens_channels_of_small_numbers(exponent):
    class Net(nn.Module):
        def __init__(self, s):
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 8)
            with torch.no_grad():
                self.norm.weight.copy_(torch.logspace(-2, 1, 16) * s)
                self.norm.bias.mul_(s)
                self.fc.weight.div_(s)

        def forward(self, x):
            return self.fc(self.norm(x))

    x = torch.randn(20, 5, 16, generator=torch.Generator().manual_seed(4))
    reach = []
    for s in (1.0, 2.0**exponent):
        smoothed = smooth(Net(s).eval(), [x])
        with torch.no_grad():
            torch.testing.assert_close(smoothed(x), Net(s).eval()(x), rtol=1e-4, atol=1e-4)
            reach.append(smoothed.norm(x).abs().amax((0, 1)))
    torch.testing.assert_close(reach[1] / reach[1].amax(), reach[0] / reach[0].amax(), rtol=1e-4, atol=0)
    assert float(reach[1].amin() / reach[1].amax()) > 0.02
