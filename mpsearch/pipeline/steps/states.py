"""What is learned of units: named by a digest, and kept as files, one for each block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mpsearch import files
from mpsearch.quant import ActivationQuantizer, AffineParams, QuantizedTensor, TwoRegionParams, UnitState
from mpsearch.quant.devices import CPU, on_device
from mpsearch.reconstruct import BlockResult

States = dict[str, UnitState]
Gains = dict[tuple[int, str], BlockResult]
"""What each block gained, by phase and block."""


def digest_of_states(states: Mapping[str, UnitState]) -> str:
    """Digest of all that decides what the units compute: codes, steps and zero points of weights, inputs and
    both operands, biases.
    """
    return digest_of(states)


def digest_of(value: object) -> str:
    """Digest of tensors, dataclasses, mappings and plain values, by what they hold."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: object) -> None:
    """A value of a state, field by field; of a tensor its type, shape and bytes."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, Mapping):
        for key, held in sorted(value.items()):
            digest.update(f"{key} ".encode())
            _feed(digest, held)
    elif is_dataclass(value):
        digest.update(f"{type(value).__name__}\n".encode())
        for field in fields(value):
            digest.update(f"{field.name} ".encode())
            _feed(digest, getattr(value, field.name))
    else:
        digest.update(f"{value!r}\n".encode())


def save_block(folder: Path, states: Mapping[str, UnitState], gained: BlockResult) -> None:
    """Keep what a block learned, and what it gained by that, in the folder of a reconstruction."""
    with files.replacing(folder / str(gained.phase) / f"{files.digest(gained.block)}.safetensors") as beside:
        beside.write_bytes(save(_learned_tensors(states), {"gained": json.dumps(asdict(gained))}))


def known_blocks(folder: Path, start: States) -> tuple[dict[int, States], Gains]:
    """What an interrupted reconstruction had learned.

    Args:
        folder: Where `save_block` kept it.
        start: The states that it started from.
    Returns: Phase -> unit -> state, and what the blocks gained, where their files say so.
    """
    known: dict[int, States] = {}
    gains: Gains = {}
    for path in sorted(folder.glob("[0-9]*/[!.]*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            said = (file.metadata() or {}).get("gained")
        if said is not None:
            held = json.loads(said)
            gained = BlockResult(**{**held, "calibrated": tuple(held["calibrated"])})
            gains[gained.phase, gained.block] = gained
        phase = known.setdefault(int(path.parent.name), {})
        for unit in {name.rpartition("|")[0] for name in tensors}:
            phase[unit] = _restored(start[unit], tensors, unit)
    return known, gains


def _learned_tensors(states: Mapping[str, UnitState]) -> dict[str, Tensor]:
    """Codes and their scales, biases and the scales of inputs, by unit, in the CPU's memory; of a unit that
    has none of these an empty tensor.
    """
    states = on_device(dict(states), CPU)
    weights = {unit: s.weight for unit, s in states.items() if s.weight is not None}
    tensors = {f"{unit}|codes": w.codes.to(torch.int8).contiguous() for unit, w in weights.items()}
    tensors |= {f"{unit}|scale": w.params.scale.clone() for unit, w in weights.items()}
    inputs = {
        unit: s.activation
        for unit, s in states.items()
        if isinstance(s.activation, AffineParams | TwoRegionParams)
    }
    tensors |= {f"{unit}|bias": s.bias.clone() for unit, s in states.items() if s.bias is not None}
    seconds = {
        unit: s.second for unit, s in states.items() if isinstance(s.second, AffineParams | TwoRegionParams)
    }
    tensors |= {f"{unit}|second": read.step.clone() for unit, read in seconds.items()}
    tensors |= {f"{unit}|input": read.step.clone() for unit, read in inputs.items()}
    named = {name.rpartition("|")[0] for name in tensors}
    return tensors | {f"{unit}|nothing": torch.zeros(0) for unit in states if unit not in named}


def _restored(state: UnitState, tensors: Mapping[str, Tensor], unit: str) -> UnitState:
    if state.weight is not None:
        codes, scale = tensors[f"{unit}|codes"].to(torch.int16), tensors[f"{unit}|scale"]
        weight = QuantizedTensor(codes, replace(state.weight.params, scale=scale))
        state = replace(state, weight=weight, bias=tensors.get(f"{unit}|bias"))
    return replace(
        state,
        activation=_with_step(state.activation, tensors.get(f"{unit}|input")),
        second=_with_step(state.second, tensors.get(f"{unit}|second")),
    )


def _with_step(read: ActivationQuantizer | None, step: Tensor | None) -> ActivationQuantizer | None:
    """The quantiser with the step that was learned; logarithmic levels stay as they are."""
    if isinstance(read, AffineParams) and step is not None:
        return replace(read, scale=step)
    return replace(read, step=step) if isinstance(read, TwoRegionParams) and step is not None else read
