"""Quantisers and states on another device: dataclasses whose tensors are moved, and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
T = TypeVar("T")


def on_device(value: T, device: torch.device) -> T:
    """A quantiser, a state, or a mapping or tuple of such, with its tensors on a device; itself where they
    are there already.
    """
    return cast(T, _moved(value, device))


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value if value.device == device else value.to(device)
    if isinstance(value, Mapping):
        moved = {key: _moved(held, device) for key, held in value.items()}
        return value if all(moved[key] is held for key, held in value.items()) else moved
    if isinstance(value, tuple):
        found = tuple(_moved(held, device) for held in value)
        return value if all(a is b for a, b in zip(found, value, strict=True)) else found
    if is_dataclass(value) and not isinstance(value, type):
        before = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        after = {name: _moved(held, device) for name, held in before.items()}
        changed = {name: held for name, held in after.items() if held is not before[name]}
        return replace(value, **changed) if changed else value
    return value


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: the device of its first parameter or buffer."""
    held = next(itertools.chain(module.parameters(), module.buffers()), None)
    return CPU if held is None else held.device


def wide(x: Tensor) -> Tensor:
    """In float64, or in float32 on a device that has nothing wider (Apple's)."""
    return x.to(wide_type(x.device))


def wide_type(device: torch.device) -> torch.dtype:
    """What sums and factorisations are taken in."""
    return torch.float32 if device.type == "mps" else torch.float64
