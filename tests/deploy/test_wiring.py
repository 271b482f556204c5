"""Wires are the tensors between units of the exported graph, whatever activation, pooling or residual sum
lies between.
"""

import pytest
import torch
from torch import nn

from mpsearch.deploy import export_float
from mpsearch.deploy.wiring import find_wires
from mpsearch.models import analyze
from mpsearch.testing import tiny_net


def wires_of(module, example):
    layers = analyze(module, example).layers
    names = [layer.name for layer in layers]
    return {
        (names[w.source], names[w.target], w.kind, w.numel)
        for w in find_wires(export_float(module, example), layers)
    }


def test_a_residual_block_has_direct_wires_sums_and_joins():
    net = tiny_net("conv")
    found = wires_of(net.module, net.images.inputs([0]))
    side = 8 * (net.images.inputs([0]).shape[-1] // 2) ** 2
    assert found == {
        ("stem", "residual.conv1", "direct", side),
        ("residual.conv1", "residual.conv2", "direct", side),
        ("stem", "residual.conv2", "join", side),
    }


class Chain(nn.Module):
    """A pool and a change of shape carry a wire on; a softmax ends it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Conv2d(3, 4, 3),
            nn.Linear(36, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        x = torch.flatten(nn.functional.max_pool2d(torch.relu(self.a(x)), 2), 1)
        x = self.b(x)
        return self.d(torch.softmax(self.c(x) + x, -1))


def test_pools_and_shapes_carry_a_wire_and_a_softmax_ends_it():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = wires_of(Chain().eval(), torch.randn(1, 3, 8, 8))
    assert found == {("a", "b", "direct", 4 * 36), ("b", "c", "direct", 8), ("b", "c", "join", 8)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit"])
def test_units_of_a_transformer_are_joined_by_residual_sums_at_most(name):
    net = tiny_net(name)
    assert {kind for *_, kind, _ in wires_of(net.module, net.images.inputs([0]))} <= {"sum", "join", "direct"}
