"""The packed checkpoint: one safetensors file with bit-packed weights, whose size is known to the byte before it is written.

For each integer unit `<unit>.codes` (uint8, C_out x bytes of a row), `<unit>.scale` (float32, C_out) and, where its input is quantised too,
`<unit>.input` (float32 [2]: step and grid, see `input_codes.py`); for each quantised product of two activations `<unit>.left` and
`<unit>.right`, as `.input`; everything else under its own name in float32. The metadata holds one JSON text: schema, how the float model is
built, which batch norms were folded, and the assignment. The header is padded to its greatest length over all assignments of the
model, so that the size of the file is a sum over units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import mpsearch.files as files
from mpsearch.deploy.building import architecture
from mpsearch.deploy.input_codes import decode, encode
from mpsearch.deploy.payload import DTYPES, OPEN_SEAL, check_seal, nbytes, put_stored, require_dense, seal, stored_form, to_stored
from mpsearch.errors import CheckpointError, MpsearchError, UserError
from mpsearch.models import ModelSource, as_stored, fold_batch_norm
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import AffineParams, QuantizedTensor, UnitState, install, pack, packed_nbytes, unpack
from mpsearch.quant.products import product_names

SCHEMA = 1
_KEY = "mpsearch"
_ENTRIES = {"schema", "source", "folded", "data_config", "sha256", "assignment"}
_OPERANDS = ("left", "right")


@dataclass(frozen=True)
class PackedLayout:
    """What the file of a model holds, whatever the assignment.

    Args:
        weights: Unit -> shape of its weight.
        leftovers: Tensors that are stored as they are -> (type, shape) in the file.
        description: JSON of the metadata but for the assignment.
        header_bytes: Length of the header in every file of this model, its 8-byte length field included.
        products: Products of two activations that may be quantised.
    """

    weights: Mapping[str, tuple[int, ...]]
    leftovers: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    description: Mapping[str, Any]
    header_bytes: int
    products: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, module: nn.Module, units: Iterable[str], source: ModelSource, folded: Iterable[tuple[str, str]], data_config: Mapping[str, Any]
    ) -> PackedLayout:
        """The layout of a folded float model whose `units` may be quantised."""
        named = list(units)
        products = tuple(product_names(module, named))
        held = {unit: tuple(module.get_submodule(unit).get_parameter("weight").shape) for unit in named if unit not in products}
        skip = {f"{unit}.weight" for unit in held}
        kept = {name: value for name, value in module.state_dict().items() if name not in skip}
        for name, value in kept.items():
            require_dense(name, value)
        leftovers = {name: stored_form(value.dtype, tuple(value.shape)) for name, value in kept.items()}
        description = {"schema": SCHEMA, "source": source.to_json(), "folded": [list(pair) for pair in folded], "data_config": dict(data_config)}
        layout = cls(held, leftovers, description, 0, products)
        return cls(held, leftovers, description, 8 + layout._longest_header(), products)

    @property
    def units(self) -> tuple[str, ...]:
        """All that may be quantised: layers, then products."""
        return (*self.weights, *self.products)

    def unit_bytes(self, unit: str, candidate: Candidate) -> int:
        """Bytes of one unit's tensors; its bias is a leftover."""
        return sum(nbytes(dtype, shape) for dtype, shape in self._unit_tensors(unit, candidate).values())

    @property
    def constant_bytes(self) -> int:
        """Bytes of the header and of all that is not a unit's weight."""
        return self.header_bytes + sum(nbytes(dtype, shape) for dtype, shape in self.leftovers.values())

    def size_bytes(self, assignment: Assignment) -> int:
        """Size of the file of an assignment, to the byte."""
        return self.constant_bytes + sum(self.unit_bytes(unit, assignment[unit]) for unit in self.units)

    def leftover_bytes(self) -> dict[str, int]:
        """What is not quantised, by name."""
        return {name: nbytes(dtype, shape) for name, (dtype, shape) in self.leftovers.items()}

    def metadata(self, assignment: Mapping[str, str]) -> str:
        """The JSON text of the metadata, its digest still open."""
        about = {**self.description, "sha256": OPEN_SEAL, "assignment": dict(assignment)}
        return json.dumps(about, separators=(",", ":"), default=list)

    def _unit_tensors(self, unit: str, candidate: Candidate) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        if unit in self.products:
            return {} if candidate.is_float or candidate.weight_only else {f"{unit}.{side}": (torch.float32, (2,)) for side in _OPERANDS}
        shape = self.weights[unit]
        if candidate.is_float or candidate.w_bits is None:
            return {f"{unit}.weight": (torch.float32, shape)}
        scales: tuple[int, ...] = (shape[0],) if candidate.w_granularity == "channel" else ()
        row = packed_nbytes(1, math.prod(shape[1:]), candidate.w_bits)
        weight = {f"{unit}.codes": (torch.uint8, (shape[0], row)), f"{unit}.scale": (torch.float32, scales)}
        return weight if candidate.weight_only else {**weight, f"{unit}.input": (torch.float32, (2,))}

    def _longest_header(self) -> int:
        """Every unit at 8 bits, weights and inputs, which has the most tensors and the longest row; every offset as long as the file of the float model."""
        widest = Candidate(8, 8)
        tensors = dict(self.leftovers)
        for unit in self.units:
            tensors.update(self._unit_tensors(unit, widest))
        end = sum(nbytes(*t) for t in self.leftovers.values()) + sum(4 * math.prod(s) + 64 for s in self.weights.values()) + 16 * len(self.products)
        entries = {name: {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [end, end]} for name, (dtype, shape) in tensors.items()}
        longest = dict.fromkeys(self.units, "W8A8/tensor")
        header = {"__metadata__": {_KEY: self.metadata(longest)}, **entries}
        length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
        return -(-length // 8) * 8


def save_packed(path: Path, layout: PackedLayout, module: nn.Module, states: Mapping[str, UnitState]) -> int:
    """Write the checkpoint whole or not at all.

    Args:
        path: File to write.
        layout: Layout of `module`.
        module: Folded float model.
        states: Every unit's codes and quantisers, products included.
    Returns: Bytes on disk.
    Raises: MpsearchError: The file is not as large as the layout says (a defect: the promise would be broken).
    """
    assignment = Assignment(tuple((unit, states[unit].candidate) for unit in layout.units))
    tensors: dict[str, Tensor] = {}
    for unit in layout.units:
        tensors.update(_unit_tensors(unit, states[unit], module))
    held = {**module.state_dict(), **{f"{unit}.bias": state.bias for unit, state in states.items() if state.bias is not None}}
    tensors.update({name: to_stored(name, held[name]) for name in layout.leftovers})
    text = layout.metadata(assignment.to_json())
    short = save(tensors, {_KEY: text})
    missing = layout.header_bytes - 8 - int.from_bytes(short[:8], "little")
    data = save(tensors, {_KEY: text + " " * missing}) if missing > 0 else short
    if len(data) != layout.size_bytes(assignment):
        raise MpsearchError(f"{path} would have {len(data)} bytes, not the predicted {layout.size_bytes(assignment)}. Nothing was written; please report this.")
    with files.replacing(path) as beside:
        beside.write_bytes(seal(data))
    return path.stat().st_size


def load_packed(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The quantised module of a packed checkpoint: dequantised weights, fake-quantised inputs, float units as they are, in eval mode.

    Computes bit for bit what the module in memory did when the checkpoint was written, on the same machine and threads.

    Args:
        path: Written by `save_packed`.
        model: Float model of the same architecture, batch norms not folded; needed unless the checkpoint names a timm model. Code of a
            factory is never run from a checkpoint. Its weights do not matter; it is not changed.
    Raises: CheckpointError: The file is missing, damaged, or does not fit the model.
    """
    module, states = open_packed(path, model)
    return install(module, {unit: state for unit, state in states.items() if not state.candidate.is_float})


def open_packed(path: str | Path, model: nn.Module | None = None, *, folded: bool = False) -> tuple[nn.Module, dict[str, UnitState]]:
    """The folded float module of a checkpoint and the states of its units; a quantised unit's weight in the module is the model's own.

    Args and Raises: As `load_packed`; `folded` says that the batch norms of `model` are folded already.
    """
    path = Path(path)
    header, tensors = _read(path)
    source, pairs, assignment = _parsed(path, header)
    given = architecture(path, source, tensors) if model is None else as_stored(model, {name: tensor.dtype for name, tensor in tensors.items()})
    try:
        module = fold_batch_norm(given, [] if folded and model is not None else pairs)
        products = set(product_names(module, assignment))
        states = {u: (_product_state if u in products else _unit_state)(u, assignment[u], module, tensors) for u in assignment}
        _load_leftovers(module, set(assignment) - products, tensors)
    except UserError as error:
        raise CheckpointError(f"{path} does not fit its model: {error}") from None
    check_seal(path, header.get("sha256"))  # last: what is wrong with a tensor says more than that something is
    return module, states


def read_description(path: str | Path) -> dict[str, Any]:
    """The metadata of a packed checkpoint. Raises CheckpointError where it is not one."""
    return _read(Path(path), tensors=False)[0]


def _unit_tensors(unit: str, state: UnitState, module: nn.Module) -> dict[str, Tensor]:
    if state.second is not None and state.activation is not None:
        return {f"{unit}.{side}": encode(q) for side, q in zip(_OPERANDS, (state.activation, state.second), strict=True)}
    if state.weight is None and unit in product_names(module, [unit]):
        return {}
    if state.weight is None:
        return {f"{unit}.weight": module.get_submodule(unit).get_parameter("weight").detach().clone().contiguous()}
    params = state.weight.params
    codes = (state.weight.codes.flatten(1).to(torch.int32) - params.qmin).to(torch.uint8)
    weight = {f"{unit}.codes": pack(codes, params.bits), f"{unit}.scale": params.scale.clone()}
    return weight if state.activation is None else {**weight, f"{unit}.input": encode(state.activation)}


def _product_state(unit: str, candidate: Candidate, module: nn.Module, tensors: dict[str, Tensor]) -> UnitState:
    if candidate.is_float or candidate.weight_only or candidate.a_bits is None:
        return UnitState(candidate)
    left, right = (decode(_take(tensors, f"{unit}.{side}", torch.float32, (2,)), candidate.a_bits, unit) for side in _OPERANDS)
    return UnitState(candidate, None, left, right)


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
    params = AffineParams(scale, torch.zeros_like(scale, dtype=torch.int32), candidate.w_bits, True, 0 if per_channel else None)
    activation = None if given is None else decode(given, candidate.a_bits, unit)
    signed = (codes.to(torch.int16) + params.qmin).reshape(weight.shape)
    return UnitState(candidate, QuantizedTensor(signed, params), activation)


def _load_leftovers(module: nn.Module, units: Iterable[str], tensors: dict[str, Tensor]) -> None:
    held = {name: value for name, value in module.state_dict().items() if name not in {f"{unit}.weight" for unit in units}}
    with torch.no_grad():
        for name, value in held.items():
            put_stored(value, _take(tensors, name, *stored_form(value.dtype, tuple(value.shape))))
    if tensors:
        raise CheckpointError(f"it holds {len(tensors)} tensors that the model has no place for, such as {next(iter(tensors))!r}.")


def _take(tensors: dict[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"the tensor {name!r} is missing.")
    value = tensors.pop(name)
    if value.dtype != dtype or tuple(value.shape) != shape:
        raise CheckpointError(f"the tensor {name!r} is {value.dtype} {tuple(value.shape)}, not {dtype} {shape}.")
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
        source, assignment = ModelSource.from_json(header["source"]), Assignment.from_json(header["assignment"])
        folded = [(layer, norm) for layer, norm in header["folded"]]
    except (TypeError, ValueError, KeyError, AttributeError, UserError) as error:
        raise CheckpointError(f"{path} is damaged: its metadata cannot be read ({type(error).__name__}: {error}). Write it again with mpsearch.") from None
    if not all(isinstance(name, str) for name in (source.kind, source.name, *chain(*folded))):
        raise CheckpointError(f"{path} is damaged: a name in its metadata is not a text. Write it again with mpsearch.")
    odd = next((unit for unit, candidate in assignment.items() if candidate.number_format == "fp8"), None)
    if odd is not None:
        raise CheckpointError(f"{path} has the unit {odd!r} at fp8, which a packed checkpoint does not hold. Write it again with mpsearch.")
    return source, folded, assignment


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata[_KEY])
            held = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118 (not a mapping)
    except KeyError:
        raise CheckpointError(f"{path} is a safetensors file that mpsearch did not write: its metadata has no {_KEY!r}.") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a packed checkpoint, or is damaged: {error}. Write it again with mpsearch.") from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        found = header.get("schema") if isinstance(header, dict) else type(header).__name__
        raise CheckpointError(f"{path} has schema {found!r}; this version of mpsearch reads {SCHEMA}.")
    if not {"source", "folded", "assignment"} <= set(header):
        raise CheckpointError(f"{path} is damaged: its metadata lacks the source, the folded norms or the assignment.")
    if not set(header) <= _ENTRIES:  # a digest under a damaged name would not be looked for
        raise CheckpointError(f"{path} is damaged: its metadata has the unknown entry {min(set(header) - _ENTRIES)!r}.")
    return header, held
