"""Reads a packed checkpoint: states, float rest and description, each checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mpsearch.deploy.building import architecture
from mpsearch.deploy.input_codes import decode
from mpsearch.deploy.packed import ENTRIES, KEY, SCHEMA, other_names, sides_of
from mpsearch.deploy.payload import check_seal, put_stored, stored_form
from mpsearch.errors import CheckpointError, UserError
from mpsearch.models import ModelSource, as_stored, fold_batch_norm
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import AffineParams, QuantizedTensor, UnitState, install, packed_nbytes, unpack
from mpsearch.quant.weightless import weightless_names


def load_packed(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The quantised module of a packed checkpoint: dequantised weights, fake-quantised inputs, float units as
    they are, in eval mode.

    Computes bit for bit what the module in memory did when the checkpoint was written, on the same machine
    and threads.

    Args:
        path: Written by `save_packed`.
        model: Float model of the same architecture, batch norms not folded; needed unless the checkpoint
            names a timm model. Code of a factory is never run from a checkpoint. Its weights do not matter;
            it is not changed.
    Raises: CheckpointError: The file is missing, damaged, or does not fit the model.
    """
    module, states = open_packed(path, model)
    return install(module, {unit: state for unit, state in states.items() if not state.candidate.is_float})


def open_packed(
    path: str | Path, model: nn.Module | None = None, *, folded: bool = False
) -> tuple[nn.Module, dict[str, UnitState]]:
    """The folded float module of a checkpoint and the states of its units; a quantised unit's weight in the
    module is the model's own.

    Args and Raises: As `load_packed`; `folded` says that the batch norms of `model` are folded already.
    """
    path = Path(path)
    header, tensors = _read(path)
    source, pairs, assignment = _parsed(path, header)
    given = (
        architecture(path, source, tensors)
        if model is None
        else as_stored(model, {name: tensor.dtype for name, tensor in tensors.items()})
    )
    try:
        module = fold_batch_norm(given, [] if folded and model is not None else pairs)
        weightless = set(weightless_names(module, assignment))
        states = {
            u: (_weightless_state if u in weightless else _unit_state)(u, assignment[u], module, tensors)
            for u in assignment
        }
        _load_leftovers(module, set(assignment) - weightless, tensors)
    except UserError as error:
        raise CheckpointError(f"{path} does not fit its model: {error}") from None
    check_seal(
        path, header.get("sha256")
    )  # last: what is wrong with a tensor says more than that something is
    return module, states


def read_description(path: str | Path) -> dict[str, Any]:
    """The metadata of a packed checkpoint. Raises CheckpointError where it is not one."""
    return _read(Path(path), tensors=False)[0]


def _weightless_state(
    unit: str, candidate: Candidate, module: nn.Module, tensors: dict[str, Tensor]
) -> UnitState:
    if candidate.is_float or candidate.weight_only or candidate.a_bits is None:
        return UnitState(candidate)
    first, *more = [
        decode(_take(tensors, f"{unit}.{side}", torch.float32, (2,)), candidate.a_bits, unit)
        for side in sides_of(unit)
    ]
    return UnitState(candidate, None, first, more[0] if more else None)


def _unit_state(unit: str, candidate: Candidate, module: nn.Module, tensors: dict[str, Tensor]) -> UnitState:
    weight = _weight_of(module, unit)
    if candidate.is_float or candidate.w_bits is None or candidate.a_bits is None:
        value = _take(tensors, f"{unit}.weight", torch.float32, tuple(weight.shape))
        weight.data.copy_(value)
        return UnitState(candidate)
    columns = weight[0].numel()
    rows = (len(weight), packed_nbytes(1, columns, candidate.w_bits))
    codes = unpack(_take(tensors, f"{unit}.codes", torch.uint8, rows), candidate.w_bits, columns)
    per_channel = candidate.w_granularity == "channel"
    scale = _take(tensors, f"{unit}.scale", torch.float32, (len(weight),) if per_channel else ())
    given = None if candidate.weight_only else _take(tensors, f"{unit}.input", torch.float32, (2,))
    if not (torch.isfinite(scale).all() and (scale > 0).all()):
        raise CheckpointError(f"a scale of unit {unit!r} is not positive and finite.")
    params = AffineParams(
        scale, torch.zeros_like(scale, dtype=torch.int32), candidate.w_bits, True, 0 if per_channel else None
    )
    activation = None if given is None else decode(given, candidate.a_bits, unit)
    signed = (codes.to(torch.int16) + params.qmin).reshape(weight.shape)
    return UnitState(candidate, QuantizedTensor(signed, params), activation)


def _load_leftovers(module: nn.Module, units: Iterable[str], tensors: dict[str, Tensor]) -> None:
    named = list(units)
    apart = {f"{unit}.weight" for unit in named} | other_names(module, named)
    held = {name: value for name, value in module.state_dict().items() if name not in apart}
    with torch.no_grad():
        for name, value in held.items():
            put_stored(value, _take(tensors, name, *stored_form(value.dtype, tuple(value.shape))))
    if tensors:
        raise CheckpointError(
            f"it holds {len(tensors)} tensors that the model has no place for, such as "
            f"{next(iter(tensors))!r}."
        )


def _take(tensors: dict[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"the tensor {name!r} is missing.")
    value = tensors.pop(name)
    if value.dtype != dtype or tuple(value.shape) != shape:
        raise CheckpointError(
            f"the tensor {name!r} is {value.dtype} {tuple(value.shape)}, not {dtype} {shape}."
        )
    return value


def _weight_of(module: nn.Module, unit: str) -> Tensor:
    try:
        weight = module.get_submodule(unit).weight
    except AttributeError:
        raise CheckpointError(f"the model has no unit {unit!r}.") from None
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        raise CheckpointError(f"{unit!r} has no weight that can be quantised.")
    return weight


def _parsed(path: Path, header: Mapping[str, Any]) -> tuple[ModelSource, list[tuple[str, str]], Assignment]:
    """How the float model is built, which norms to fold into what, and the candidates."""
    try:
        source, assignment = (
            ModelSource.from_json(header["source"]),
            Assignment.from_json(header["assignment"]),
        )
        folded = [(layer, norm) for layer, norm in header["folded"]]
    except (TypeError, ValueError, KeyError, AttributeError, UserError) as error:
        raise CheckpointError(
            f"{path} is damaged: its metadata cannot be read ({type(error).__name__}: {error}). Write it "
            "again with mpsearch."
        ) from None
    if not all(isinstance(name, str) for name in (source.kind, source.name, *chain(*folded))):
        raise CheckpointError(
            f"{path} is damaged: a name in its metadata is not a text. Write it again with mpsearch."
        )
    odd = next((unit for unit, candidate in assignment.items() if candidate.number_format == "fp8"), None)
    if odd is not None:
        raise CheckpointError(
            f"{path} has the unit {odd!r} at fp8, which a packed checkpoint does not hold. Write it "
            "again with mpsearch."
        )
    return source, folded, assignment


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata[KEY])
            held = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118 (not a mapping)
    except KeyError:
        raise CheckpointError(
            f"{path} is a safetensors file that mpsearch did not write: its metadata has no {KEY!r}."
        ) from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a packed checkpoint, or is damaged: {error}. Write it again with mpsearch."
        ) from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        found = header.get("schema") if isinstance(header, dict) else type(header).__name__
        raise CheckpointError(f"{path} has schema {found!r}; this version of mpsearch reads {SCHEMA}.")
    if not {"source", "folded", "assignment"} <= set(header):
        raise CheckpointError(
            f"{path} is damaged: its metadata lacks the source, the folded norms or the assignment."
        )
    if not set(header) <= ENTRIES:  # a digest under a damaged name would not be looked for
        raise CheckpointError(
            f"{path} is damaged: its metadata has the unknown entry {min(set(header) - ENTRIES)!r}."
        )
    return header, held
