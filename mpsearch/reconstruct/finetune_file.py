"""The checkpoint of a fine-tuning: parameters, the optimiser's moments and the steps that are done, as
safetensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mpsearch.errors import CheckpointError
from mpsearch.files import digest, replacing
from mpsearch.models import weights_hash
from mpsearch.quant import AffineParams, UnitState

_FORMAT = "mpsearch fine-tuning 2"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")

Parameters = Mapping[str, nn.Parameter]


def fingerprint(student: nn.Module, states: Mapping[str, UnitState], about: list[Any]) -> str:
    """Of the arguments that a checkpoint belongs to; teacher and augmentation are functions, and cannot be
    told apart.

    Args:
        student: The model at the start.
        states: Its units.
        about: Plain data of everything else.
    """
    grids = [
        (unit, str(s.candidate), *(_grid(q) for q in (s.weight and s.weight.params, s.activation, s.second)))
        for unit, s in states.items()
    ]
    return digest([weights_hash(student), grids, *about])


def _grid(params: object) -> Any:
    if params is None:
        return "NoneType"
    if not isinstance(params, AffineParams):
        return [
            type(params).__name__,
            *(v.tolist() if isinstance(v, Tensor) else v for v in vars(params).values()),
        ]
    return [params.scale.tolist(), params.zero_point.tolist(), params.bits, params.symmetric, params.axis]


def save_checkpoint(
    path: Path, name: str, parameters: Parameters, optimizer: torch.optim.Optimizer, steps: int
) -> None:
    """Write it whole or not at all.

    Args:
        path: The file.
        name: Fingerprint of the fine-tuning.
        parameters: What learns, by name.
        optimizer: Holds their moments.
        steps: Done.
    """
    with replacing(path) as beside:
        save_file(
            {key: value.contiguous() for key, value in _held(parameters, optimizer)},
            beside,
            {"format": _FORMAT, "run": name, "steps": str(steps)},
        )


def load_checkpoint(path: Path, name: str, parameters: Parameters, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint into parameters and optimiser; returns the steps that are done.

    Args: As `save_checkpoint`.
    Raises: CheckpointError: It is damaged, or of another fine-tuning.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of fine-tuning, or is damaged: {error}. Remove it to start anew."
        ) from None
    if about.get("format") != _FORMAT or about.get("run") != name:
        raise CheckpointError(
            f"{path} belongs to another fine-tuning (model, states, images or settings differ). Name "
            "another file, or remove it to start anew."
        )
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(found[f"value.{key}"])
            if f"step.{key}" in found:
                optimizer.state[parameter] = {m: found[f"{m}.{key}"].to(parameter.device) for m in _MOMENTS}
    return int(about["steps"])


def _held(parameters: Parameters, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint holds, by name: the parameters, and the moments of the optimiser."""
    for name, parameter in parameters.items():
        yield f"value.{name}", parameter.detach()
        for moment in _MOMENTS if parameter in optimizer.state else ():
            yield f"{moment}.{name}", optimizer.state[parameter][moment]
