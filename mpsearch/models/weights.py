"""Weights from a safetensors file or a state dict of `torch.save`, checked before anything is computed with
them. No file of weights runs code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mpsearch.errors import ModelError
from mpsearch.models.pickles import SUFFIXES, read_state_dict, unwrapped_names

_SHOWN = 5


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a file of weights into a model, in place; floating-point values become those of the model's dtype.

    Raises: ModelError: The file is missing, needs code or is damaged, or its names or shapes are not the
        model's.
    """
    found, wanted = unwrapped_names(_read(path), module), module.state_dict()
    problems = [
        f"missing {name!r}"
        for name in wanted
        if name not in found and not name.endswith("num_batches_tracked")
    ]
    problems += [f"unexpected {name!r}" for name in found if name not in wanted]
    problems += [
        f"{name!r} has shape {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if problems:
        raise ModelError(
            f"{path} does not fit the model in {len(problems)} places: {_few(problems)}. Name the model "
            "and the options that it was saved from."
        )
    module.load_state_dict(
        {name: value.to(wanted[name].dtype) for name, value in found.items()}, strict=False
    )


def check_finite(module: nn.Module) -> None:
    """Raise ModelError, naming the tensors, where a parameter or buffer holds NaN or infinity, or nothing yet
    (`nn.LazyLinear` before its first call).
    """
    empty = [name for name, value in module.state_dict(keep_vars=True).items() if is_lazy(value)]
    if empty:
        raise ModelError(
            f"The weights of {_few(map(repr, empty))} have no shape yet. Run the model once on an input "
            "before it is given."
        )
    bad = [
        name
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor) and not _is_finite(value)
    ]
    if bad:
        raise ModelError(
            f"The weights hold NaN or infinity in {_few(map(repr, bad))}. Such a model computes nothing; "
            "load weights that are finite."
        )


def _is_finite(value: Tensor) -> bool:
    """False where a number is NaN or infinite; types that hold neither are always finite."""
    if not (value.is_floating_point() or value.is_complex()) or value.dtype == torch.float4_e2m1fn_x2:
        return True
    return bool(torch.isfinite(value).all())


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and bytes of all parameters and buffers, as hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        plain = value.detach().cpu().contiguous().resolve_conj().resolve_neg()
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def require_weights(path: Path) -> None:
    """Raises ModelError where a file is missing, needs code, or holds no weights; reads no more than the
    header of a safetensors file.
    """
    _require_readable(path)
    if path.suffix.lower() in SUFFIXES:
        read_state_dict(path)
        return
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _read(path: Path) -> dict[str, Tensor]:
    _require_readable(path)
    if path.suffix.lower() in SUFFIXES:
        return read_state_dict(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _require_readable(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}. Give a .safetensors file, or a state dict (.pt).")


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path} is not a safetensors file, or is damaged: {error}. Save the weights with "
        "safetensors.torch.save_file."
    )


def _few(texts: Iterable[str]) -> str:
    texts = list(texts)
    return ", ".join(texts[:_SHOWN]) + (f", ... ({len(texts)} in all)" if len(texts) > _SHOWN else "")
