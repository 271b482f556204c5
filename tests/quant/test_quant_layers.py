"""Quantised layers: what they compute, what they drop, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsearch.errors import UnknownNameError
from mpsearch.problem import Candidate
from mpsearch.quant import QuantConv2d, QuantLinear, UnitState, affine_params, fake_quantize, install, wrap


def linear_layer(keep_prob: float, seed: int | None) -> tuple[QuantLinear, torch.Tensor]:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    layer = QuantLinear(nn.Linear(16, 4))
    layer.input.params = affine_params(x.min(), x.max(), 2, symmetric=False)
    layer.input.keep_prob = keep_prob
    layer.input.generator = None if seed is None else torch.Generator().manual_seed(seed)
    return layer, x


def test_keep_prob_one_is_deterministic_and_draws_nothing():
    layer, x = linear_layer(1.0, 3)
    state = layer.input.generator.get_state()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(layer.input(x), fake_quantize(x, layer.input.params))
    assert torch.equal(layer.input.generator.get_state(), state)


def test_keep_prob_one_half_differs_between_calls_and_repeats_with_a_seed():
    layer, x = linear_layer(0.5, 3)
    first, second = layer.input(x), layer.input(x)
    assert not torch.equal(first, second)
    again, _ = linear_layer(0.5, 3)
    assert torch.equal(again.input(x), first)
    assert torch.equal(again.input(x), second)
    quantized = fake_quantize(x, layer.input.params)
    assert ((first == x) | (first == quantized)).all()
    differ = quantized != x
    assert 0.4 < float((first == quantized)[differ].float().mean()) < 0.6


@pytest.mark.parametrize(
    ("keep_prob", "low", "high"), [(0.9, 0.85, 0.95), (0.1, 0.05, 0.15), (0.0, 0.0, 0.0)]
)
def test_keep_prob_is_the_share_that_is_quantised(keep_prob, low, high):
    layer, x = linear_layer(keep_prob, 1)
    kept = (layer.input(x) == fake_quantize(x, layer.input.params)).float().mean()
    assert low <= float(kept) <= high


def test_without_a_quantiser_the_layer_is_the_float_layer(tiny):
    net = tiny("conv")
    x = net.images.inputs()
    with torch.no_grad():
        assert torch.equal(
            install(net.module, {u: UnitState(Candidate(None, None, "float")) for u in net.units})(x),
            net.module(x),
        )


def test_attributes_of_the_wrapped_layer_are_seen():
    conv = nn.Conv2d(3, 8, 5, stride=2)
    layer = QuantConv2d(conv)
    assert (layer.out_channels, layer.kernel_size, layer.stride) == (8, (5, 5), (2, 2))
    assert layer.weight is conv.weight
    with pytest.raises(AttributeError, match="no_such_thing"):
        layer.no_such_thing  # noqa: B018


class Doubled(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_keeps_its_own_forward():
    net = nn.Sequential(Doubled(4, 2))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    before = net(x)
    layers = wrap(net, ["0"])
    assert isinstance(net[0], QuantLinear) and layers["0"] is net[0]
    assert torch.equal(net(x), before)


@pytest.mark.parametrize("text", ["W4A8", "W2A4", "W8A8/tensor"])
@pytest.mark.parametrize("name", ["conv", "vit"])
def test_install_computes_by_definition_and_leaves_the_float_model_alone(tiny, left_as_found, name, text):
    net = tiny(name)
    check = left_as_found(net.module)
    states = net.calibration.states(net.uniform(text))
    quantized = install(net.module, states)
    check()
    first = net.blocks[0][0]
    seen = {}
    quantized.get_submodule(first).register_forward_hook(lambda _m, args, out: seen.update(x=args[0], y=out))
    with torch.no_grad():
        quantized(net.images.inputs())
    state, conv = states[first], net.module.get_submodule(first)
    by_hand = F.conv2d(
        fake_quantize(seen["x"], state.activation),
        state.weight.dequantize(),
        state.bias,
        conv.stride,
        conv.padding,
    )
    assert torch.equal(seen["y"], by_hand)
    assert not quantized.training
    for unit in net.units:
        assert isinstance(quantized.get_submodule(unit), QuantConv2d | QuantLinear)
        assert torch.equal(quantized.get_submodule(unit).weight, states[unit].weight.dequantize())
    check()


@pytest.mark.parametrize("mode", [True, False])
def test_wrap_keeps_the_mode(mode):
    net = nn.Sequential(nn.Linear(2, 2)).train(mode)
    wrap(net, ["0"])
    assert net[0].training is mode


def test_an_unknown_layer_is_named_with_the_closest(tiny):
    net = tiny("conv")
    with pytest.raises(UnknownNameError, match=r"'residual\.conv3'.*Did you mean 'residual\.conv[12]'"):
        install(net.module, {"residual.conv3": UnitState(Candidate(None, None, "float"))})
    with pytest.raises(UnknownNameError, match="convolution or linear layer is called 'residual'"):
        install(net.module, {"residual": UnitState(Candidate(None, None, "float"))})
