"""Tiny float nets with seeded weights, their units, blocks and images: what the tests above the arithmetic start from."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from mpsearch.data import ImageSet
from mpsearch.problem import Assignment, Candidate
from mpsearch.reconstruct import Calibration, calibrate


class Residual(nn.Module):
    """Two convolutions, the second grouped, around which the input goes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class TinyConv(nn.Module):
    """A stem, a residual block, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.residual, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), Residual(), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.residual(torch.relu(self.stem(x))).mean((2, 3)))


@dataclass
class Tiny:
    """A float net with what a test needs to know of it."""

    module: nn.Module
    blocks: list[tuple[str, list[str]]]
    images: ImageSet
    calibration: Calibration

    @property
    def units(self) -> list[str]:
        return [unit for _, units in self.blocks for unit in units]

    def uniform(self, text: str) -> Assignment:
        return Assignment(tuple((unit, Candidate.parse(text)) for unit in self.units))

    def mixed(self, seed: int, choices: tuple[str, ...]) -> Assignment:
        draw = random.Random(seed)
        return Assignment(tuple((unit, Candidate.parse(draw.choice(choices))) for unit in self.units))


def _vit() -> tuple[nn.Module, list[tuple[str, list[str]]]]:
    vit = timm.create_model("test_vit", pretrained=False, img_size=32, num_classes=10)
    inside = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = [(f"blocks.{i}", [f"blocks.{i}.{unit}" for unit in inside]) for i in range(2)]
    return vit, [("patch_embed.proj", ["patch_embed.proj"]), *blocks, ("head", ["head"])]


def _conv() -> tuple[nn.Module, list[tuple[str, list[str]]]]:
    return TinyConv(), [("stem", ["stem"]), ("residual", ["residual.conv1", "residual.conv2"]), ("head", ["head"])]


def _make(name: str) -> Tiny:
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, blocks = _vit() if name == "vit" else _conv()
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.ndim >= 2:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
            elif key.endswith("bias"):
                value.normal_(0, 0.1, generator=generator)
    size = 32 if name == "vit" else 12
    pixels = torch.randint(256, (24, 3, size, size), generator=generator, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(24) % 10, (0.5, 0.4, 0.3), (0.25, 0.3, 0.35), "noise")
    units = [unit for _, inside in blocks for unit in inside]
    return Tiny(module.eval(), blocks, images, calibrate(module.eval(), units, [images.inputs()]))


_held: dict[str, Tiny] = {}


@pytest.fixture
def tiny():
    """`tiny("conv")` or `tiny("vit")`; made once, so a test must leave it as found. One thread: more only wait for each other on nets this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(name: str) -> Tiny:
        if name not in _held:
            _held[name] = _make(name)
        return _held[name]

    yield make
    torch.set_num_threads(threads)


@pytest.fixture
def left_as_found():
    """`check = left_as_found(module)`; `check()` fails if weights, hooks, forwards, modes or a random state have changed since."""

    def watch(module: nn.Module):
        def look() -> list[object]:
            hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__, m.training, type(m)) for m in module.modules()]
            return [hooks, random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist(), [id(p) for p in module.parameters()]]

        before, weights = look(), copy.deepcopy(module.state_dict())

        def check() -> None:
            assert look() == before
            after = module.state_dict()
            assert weights.keys() == after.keys()
            assert all(torch.equal(weights[key], after[key]) for key in weights)
            assert all(p.grad is None for p in module.parameters())

        return check

    return watch
