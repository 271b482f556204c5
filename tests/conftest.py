"""Tiny float nets with seeded weights, their units, blocks and images: what the tests above the arithmetic
start from.
"""

from __future__ import annotations

import copy
import os
import random
from dataclasses import dataclass
from pathlib import Path

if not Path(
    "/dev/nvidiactl"
    # no GPU: the Triton kernels run in Triton's interpreter, which is chosen when Triton is imported (timm
    # does)
).exists():
    os.environ["TRITON_INTERPRET"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of the processes that share the cores
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from torch import nn

from mpsearch.problem import Assignment, Candidate
from mpsearch.testing import TinyNet, tiny_net


@dataclass(frozen=True)
class Tiny(TinyNet):
    """With assignments."""

    def uniform(self, text: str) -> Assignment:
        return Assignment(tuple((unit, Candidate.parse(text)) for unit in self.units))

    def mixed(self, seed: int, choices: tuple[str, ...]) -> Assignment:
        draw = random.Random(seed)
        return Assignment(tuple((unit, Candidate.parse(draw.choice(choices))) for unit in self.units))


def _make(name: str) -> Tiny:
    net = tiny_net(name)
    return Tiny(net.module, net.blocks, net.images, net.calibration)


_held: dict[str, Tiny] = {}


@pytest.fixture
def tiny():
    """`tiny("conv")` or `tiny("vit")`; made once, so a test must leave it as found. One thread: more only
    wait for each other on nets this small.
    """
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
    """`check = left_as_found(module)`; `check()` fails if weights, hooks, forwards, modes or a random state
    have changed since.
    """

    def watch(module: nn.Module):
        def look() -> list[object]:
            hooks = [
                (
                    len(m._forward_hooks),
                    len(m._forward_pre_hooks),
                    "forward" in m.__dict__,
                    m.training,
                    type(m),
                )
                for m in module.modules()
            ]
            return [
                hooks,
                random.getstate(),
                repr(np.random.get_state()),
                torch.get_rng_state().tolist(),
                [id(p) for p in module.parameters()],
            ]

        before, weights = look(), copy.deepcopy(module.state_dict())

        def check() -> None:
            assert look() == before
            after = module.state_dict()
            assert weights.keys() == after.keys()
            assert all(torch.equal(weights[key], after[key]) for key in weights)
            assert all(p.grad is None for p in module.parameters())

        return check

    return watch
