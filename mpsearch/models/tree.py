"""What a trace needs of a module while it runs, and the one name that each of its modules and tensors goes
by.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def prepared(module: nn.Module) -> Iterator[None]:
    """Eval mode and unfused attention inside the block; every mode and switch as found after it."""
    modes = [(m, m.training) for m in module.modules()]
    fused = [m for m in module.modules() if getattr(m, "fused_attn", False) is True]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        module.eval()
        for m in fused:
            m.fused_attn = False  # type: ignore[assignment]
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for m in fused:
            m.fused_attn = True  # type: ignore[assignment]
        for m, training in modes:
            m.training = training


def copied(module: nn.Module) -> nn.Module:
    """A deep copy. Tensors that `torch.nn.utils.weight_norm` has computed, which torch does not copy, are cut
    off from what they came from first.
    """
    for m in module.modules():
        for name, value in m.__dict__.items():
            if isinstance(value, Tensor) and not value.is_leaf:
                m.__dict__[name] = value.detach()
    return copy.deepcopy(module)


def canonical_names(module: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """Every name of every module, and of every parameter and buffer -> the first name of the same object."""
    return _first(module.named_modules(remove_duplicate=False)), _first(
        [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    )


def _first(named: object) -> dict[str, str]:
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in named}  # type: ignore[attr-defined]


def holders(module: nn.Module, held: nn.Module | nn.Parameter) -> list[tuple[nn.Module, str]]:
    """Every (module, attribute) that holds a child module or a parameter; one for an ordinary tree."""
    return [
        (m, name)
        for m in module.modules()
        for name, value in (*m._modules.items(), *m._parameters.items())
        if value is held
    ]


def is_own_weight(module: nn.Module, path: str, constant_name: str | None) -> bool:
    """Whether a parameter of the model, by its first name, is the `weight` of the module at `path`."""
    weight = module.get_submodule(path)._parameters.get("weight")
    return (
        weight is not None
        and constant_name is not None
        and dict(module.named_parameters()).get(constant_name) is weight
    )
