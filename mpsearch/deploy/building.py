"""The float model that a checkpoint names, and a bound on it: one of a terabyte must not be allocated before
it is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mpsearch.errors import CheckpointError, UserError
from mpsearch.models import ModelSource, build_model
from mpsearch.named import HUB

_SPARE_ELEMENTS, _SPARE_TENSORS = 2**16, 64
_NO_ARGUMENTS = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
}
"""Arguments of timm that reach for files, the network or global switches: a checkpoint must not."""


def architecture(path: Path, source: ModelSource, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The float model that a checkpoint names.

    Args:
        path: For messages.
        source: What it names.
        tensors: All that the file holds.
    Raises: CheckpointError: It is not timm's, has an argument that a checkpoint may not give, or cannot be
        built.
    """
    if source.kind != "timm" or source.name.startswith(HUB):
        raise CheckpointError(
            f"{path} holds a model that was built by {source.name!r}, and a checkpoint never runs code. "
            f"Build the float model yourself and pass it: mpsearch.load({str(path)!r}, model=...)."
        )
    odd = sorted(
        key
        for key in source.kwargs
        if key in _NO_ARGUMENTS or not isinstance(source.kwargs[key], bool | int | float | str | list | None)
    )
    if odd:
        raise CheckpointError(
            f"{path} asks for the model argument {odd[0]!r}, which a checkpoint may not. Pass the float "
            "model: mpsearch.load(..., model=...)."
        )
    try:
        with within(path, tensors):
            return build_model(source)
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(f"{path} names a model that cannot be built: {error}") from error


@contextlib.contextmanager
def within(path: Path, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse, while it is being built, a model that has more parameters than the file can fill.

    A parameter is registered before it is written, and memory that is not written is not taken. A file has at
    most four codes in a byte and three tensors for a weight and the norm folded into it, so twice its
    elements times four is more than any model of its own needs.

    Args:
        path: For messages.
        tensors: All that the file holds.
    Raises: CheckpointError: The model grows beyond.
    """
    room = 8 * sum(value.numel() for value in tensors.values()) + _SPARE_ELEMENTS
    count = 8 * len(tensors) + _SPARE_TENSORS
    seen = {"elements": 0, "tensors": 0}

    def look(_: nn.Module, name: str, parameter: Any) -> None:
        if parameter is None:
            return
        seen["elements"] += parameter.numel()
        seen["tensors"] += 1
        if seen["elements"] > room or seen["tensors"] > count:
            held = sum(value.numel() for value in tensors.values())
            raise CheckpointError(
                f"{path} names a model of more than {seen['elements']:,} parameters, and holds "
                f"{len(tensors)} tensors of {held:,} elements: "
                "it is damaged or hostile. Pass the float model: mpsearch.load(..., model=...)."
            )

    handle = register_module_parameter_registration_hook(look)
    try:
        yield
    finally:
        handle.remove()
