"""State dicts of `torch.save`, read with `weights_only`: tensors and plain containers, no code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.foreign import first_line

SUFFIXES = {".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar", ".th"}
"""Files that `torch.save` is used to write."""
_INSIDE = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Keys under which training scripts keep a state dict, in the order in which they are looked for."""
_WRAPPED = ("module.", "_orig_mod.", "model.")
"""Prefixes that `DataParallel`, `torch.compile` and Lightning put before every name."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a file of `torch.save`.

    Raises: ModelError: It is damaged, needs code to be read, or holds no state dict.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} needs code to be read ({_refused(error)}), and a file of weights must not run any. "
            "Save the "
            "weights alone where you trust it: torch.save(model.state_dict(), FILE)."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} is not a file of torch.save, or is damaged: {first_line(error)} Save the weights again."
        ) from None
    found = _state_dict(held)
    if found is None:
        told = f"the keys {', '.join(map(str, list(held)[:5]))}" if isinstance(held, Mapping) else "no dict"
        raise ModelError(
            f"{path} holds no state dict but {told}. Save it with torch.save(model.state_dict(), FILE)."
        )
    return found


def unwrapped_names(found: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Without what wrappers put before every name, where the model's own names do not begin so."""
    wanted, names = set(module.state_dict()), dict(found)
    for prefix in _WRAPPED:
        inside = {name.removeprefix(prefix): value for name, value in names.items()}
        if names and all(name.startswith(prefix) for name in names) and not wanted & set(names):
            names = inside
    return names


def _state_dict(held: Any) -> dict[str, Tensor] | None:
    if not isinstance(held, Mapping):
        return None
    if held and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in held.items()):
        return dict(held)
    for key in _INSIDE:
        if isinstance(held.get(key), Mapping):
            return _state_dict(held[key])
    return None


def _refused(error: Exception) -> str:
    """Which class it would build, from torch's long message."""
    text = str(error)
    _, _, rest = text.partition("GLOBAL ")
    return f"{rest.split()[0]}" if rest else first_line(error).rstrip(".")
