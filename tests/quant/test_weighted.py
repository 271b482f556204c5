"""Scales of weights of few bits: the least error among those tried, weighted by the power of the inputs."""

import pytest
import torch

from mpsearch.quant import OBSERVERS, QuantizedTensor, quantize
from mpsearch.quant.weighted import REACH, TRIED, weighted
from mpsearch.reconstruct import calibrate


def errors(weight, params, power):
    """Of each row, in float64."""
    shift = (QuantizedTensor(quantize(weight, params), params).dequantize() - weight).double()
    rows = shift.reshape(len(power), -1, power.shape[1])
    return (rows.square() * power.double()[:, None, :]).sum(2).flatten()


@pytest.mark.parametrize("shape", [(6, 20), (6, 2, 3, 3), (8, 1, 3, 3)])
@pytest.mark.parametrize("axis", [0, None])
def test_no_scale_that_is_tried_is_better(shape, axis):
    generator = torch.Generator().manual_seed(1)
    groups = 8 if shape[1] == 1 else 1
    weight = torch.randn(shape, generator=generator)
    power = torch.rand(groups, weight[0].numel(), generator=generator) ** 4
    given = OBSERVERS.create("mse").observe(weight, 2, symmetric=True, axis=axis)
    found = weighted(weight, given, power)
    assert found.scale.shape == given.scale.shape and found.bits == 2 and found.axis == axis
    ours = errors(weight, found, power)
    for factor in torch.linspace(1 - REACH, 1 + REACH, TRIED):
        tried = type(given)(given.scale * factor, given.zero_point, 2, True, axis)
        theirs = errors(weight, tried, power)
        if axis is None:
            assert ours.sum() <= theirs.sum() * (1 + 1e-5)
        else:
            assert (ours <= theirs * (1 + 1e-5)).all()
    assert ours.sum() < errors(weight, given, power).sum()


def test_the_power_of_inputs_is_measured_and_counts_for_few_bits_alone(tiny):
    net = tiny("conv")
    found = calibrate(net.module, net.units, [net.images.inputs()], weigh=True)
    plain = calibrate(net.module, net.units, [net.images.inputs()])
    assert not plain.powers and found.weight_grids != plain.weight_grids
    unit, other = net.units[0], net.units[-1]
    seen = []
    handle = net.module.get_submodule(other).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net.module(net.images.inputs())
    handle.remove()
    power = seen[0].flatten(0, -2).square().mean(0)  # of the head, a linear layer
    assert torch.allclose(found.powers[other][0], power, rtol=1e-4)
    for text, same in (("W2A8", False), ("W3A8", False), ("W4A8", True), ("W8A8", True)):
        candidate = net.uniform(text)[unit]
        scales = [each.weight_params(unit, candidate).scale for each in (found, plain)]
        assert torch.equal(*scales) == same
