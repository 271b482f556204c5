"""Residual operands and pool inputs are layers of their own, named by the module that returns them, and wires end
there.
"""

import torch
from torch import nn

from mpsearch.deploy import export_float
from mpsearch.deploy.tensors import find_tensors, graph_names
from mpsearch.deploy.wiring import find_wires
from mpsearch.models import analyze


class Block(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(4, 4, 3, stride, 1), nn.ReLU())
        self.b = nn.Conv2d(4, 4, 3, 1, 1)
        self.down = nn.Sequential(nn.Conv2d(4, 4, 1, stride)) if stride > 1 else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.b(self.a(x)) + self.down(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(Block(1), Block(2))
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.gap(self.blocks(self.pool(self.stem(x)))).flatten(1))


def test_tensors_are_named_by_the_module_that_returns_them():
    module, example = Net().eval(), torch.randn(1, 3, 16, 16)
    model = export_float(module, example)
    found = find_tensors(model)
    assert [(choice.layer.name, choice.layer.op, choice.layer.output_shape) for choice in found] == [
        ("stem.output", "pool", (1, 4, 16, 16)),
        ("pool.output", "residual", (1, 4, 8, 8)),
        ("blocks.1.down.output", "residual", (1, 4, 4, 4)),
        ("blocks.output", "pool", (1, 4, 4, 4)),
    ]
    layers = (*analyze(module, example).layers, *(choice.layer for choice in found))
    names = [layer.name for layer in layers]
    wires = {
        (names[w.source], names[w.target], w.kind) for w in find_wires(model, layers, graph_names(found))
    }
    assert wires == {
        ("stem", "stem.output", "direct"),
        ("stem.output", "pool.output", "direct"),
        ("pool.output", "blocks.0.a.0", "direct"),
        ("blocks.0.a.0", "blocks.0.b", "direct"),
        ("blocks.0.b", "pool.output", "join"),
        ("blocks.0.b", "blocks.1.a.0", "sum"),
        ("blocks.0.b", "blocks.1.down.0", "sum"),
        ("pool.output", "blocks.1.a.0", "sum"),
        ("pool.output", "blocks.1.down.0", "sum"),
        ("blocks.1.a.0", "blocks.1.b", "direct"),
        ("blocks.1.down.0", "blocks.1.down.output", "direct"),
        ("blocks.1.b", "blocks.1.down.output", "join"),
        ("blocks.1.b", "blocks.output", "sum"),
        ("blocks.1.down.output", "blocks.output", "sum"),
    }


def test_a_sum_inside_one_module_is_no_choice():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.a(x).abs()
            return self.b(x) + x

    assert find_tensors(export_float(Inside().eval(), torch.randn(1, 3, 8, 8))) == ()
