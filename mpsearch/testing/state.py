"""What must be as before when something has looked at a model: weights, gradients, hooks, modes, random
states.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def left_as_found(module: nn.Module) -> Iterator[None]:
    """Raises AssertionError, which names what differs, if the body does not leave `module` and the global
    random states as it found them.
    """
    before, weights = _look(module), copy.deepcopy(module.state_dict())
    yield
    for what, value in _look(module).items():
        assert value == before[what], f"{what} differ from what was found"
    after = module.state_dict()
    changed = [
        key
        for key in sorted(weights.keys() | after.keys())
        if key not in weights or key not in after or not torch.equal(weights[key], after[key])
    ]
    assert not changed, f"weights differ from what was found: {changed}"
    left = [name for name, p in module.named_parameters() if p.grad is not None]
    assert not left, f"gradients are left behind: {left}"


def _look(module: nn.Module) -> dict[str, Any]:
    modules = list(module.modules())
    return {
        "hooks": [
            (
                len(m._forward_hooks),
                len(m._forward_pre_hooks),
                len(m._backward_hooks),
                len(m._backward_pre_hooks),
            )
            for m in modules
        ],
        "forward methods": ["forward" in m.__dict__ for m in modules],
        "modes": [m.training for m in modules],
        "module classes": [type(m) for m in modules],
        "parameters": [(id(p), p.requires_grad) for p in module.parameters()],
        "Python's random states": random.getstate(),
        "NumPy's random states": repr(np.random.get_state()),
        "torch's random states": torch.get_rng_state().tolist(),
    }
