"""Tiny models, calibrated on noise, with their layouts: what every test of this folder starts from."""

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from timm.layers import create_conv2d
from torch import nn

from mpsearch.deploy import PackedLayout, export_float
from mpsearch.models import ModelSource, analyze, build_model, find_foldable, fold_batch_norm, trace_model
from mpsearch.problem import Assignment, Candidate
from mpsearch.reconstruct import Calibration, calibrate


class Mobile(nn.Module):
    """ReLU6, a depthwise and a grouped convolution, a residual sum, a linear head; norms that fold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.grouped = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1, groups=4), nn.ReLU())
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(self.grouped(x).mean((2, 3)))


class SamePadded(nn.Sequential):
    """Strided convolutions with TensorFlow's padding, as in timm's `tf_` models: below and to the right
    alone.
    """

    def __init__(self) -> None:
        stem, depthwise = (
            create_conv2d(3, 16, 3, stride=2, padding="same"),
            create_conv2d(16, 16, 3, stride=2, padding="same", depthwise=True),
        )
        super().__init__(stem, nn.ReLU(), depthwise, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 8 * 8, 10))


@dataclass
class Prepared:
    """A folded, calibrated model."""

    source: ModelSource
    unfolded: nn.Module
    module: nn.Module
    units: list[str]
    layout: PackedLayout
    calibration: Calibration
    images: torch.Tensor

    def mixed(self, seed: int, choices: tuple[str, ...]) -> Assignment:
        draw = random.Random(seed)
        return Assignment(tuple((unit, Candidate.parse(draw.choice(choices))) for unit in self.units))

    def uniform(self, text: str) -> Assignment:
        return Assignment(tuple((unit, Candidate.parse(text)) for unit in self.units))


def spread(module: nn.Module, seed: int) -> nn.Module:
    """Random weights as a trained net might have them: norms that do something, no layer left at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                value.normal_(0, 0.1, generator=generator)
            elif value.ndim >= 2 and value.is_floating_point():
                value.normal_(0, (2.0 / value[0].numel()) ** 0.5, generator=generator)
            elif name.endswith("bias"):
                value.normal_(0, 0.1, generator=generator)
    return module


def prepare(source: ModelSource, module: nn.Module, size: int, seed: int = 0, images: int = 24) -> Prepared:
    inputs = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(seed))
    spread(module, seed).eval()
    pairs = find_foldable(trace_model(module, inputs[:1]), module)
    folded = fold_batch_norm(module, pairs)
    units = [layer.name for layer in analyze(folded, inputs[:1]).layers if layer.op != "matmul"]
    layout = PackedLayout.of(folded, units, source, pairs, {"input_size": (3, size, size)})
    return Prepared(source, module, folded, units, layout, calibrate(folded, units, [inputs]), inputs)


_SIZES = {"test_resnet": 32, "test_efficientnet": 32, "test_vit": 160}
_OWN: dict[str, type[nn.Module]] = {"mobile": Mobile, "same": SamePadded}
_held: dict[str, Any] = {}
_graphs: dict[str, Any] = {}


@pytest.fixture
def prepared():
    """`prepared("mobile")`, `prepared("same")` or the name of one of timm's test models; made once."""

    def make(name: str) -> Prepared:
        if name not in _held:
            if name in _OWN:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    _held[name] = prepare(ModelSource("factory", f"nets.py:{name}"), _OWN[name](), 32)
            else:
                source = ModelSource("timm", name, {"num_classes": 10})
                _held[name] = prepare(source, build_model(source), _SIZES[name])
        return _held[name]

    return make


@pytest.fixture
def mobile_net():
    """A float net of the hand-written architecture, with other weights."""
    return Mobile


@pytest.fixture
def exported(prepared):
    """`exported("mobile")`: the net and its float graph, exported once."""

    def make(name: str):
        net = prepared(name)
        if name not in _graphs:
            _graphs[name] = export_float(net.module, net.images[:1])
        return net, _graphs[name]

    return make
