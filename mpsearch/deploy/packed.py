"""The packed checkpoint: one safetensors file with bit-packed weights, whose size is known to the byte before
it is written.

For each integer unit `<unit>.codes` (uint8, C_out x bytes of a row), `<unit>.scale` (float32, C_out) and,
where its input is quantised too, `<unit>.input` (float32 [2]: step and grid, see `input_codes.py`); for each
quantised product of two activations `<unit>.left` and `<unit>.right`, as `.input`, and for each quantised
output of a module `<unit>.input`; everything else under its
own name in float32. The metadata holds one JSON text: schema, how the float model is built, which batch norms
were folded, and the assignment. The header is padded to its greatest length over all assignments of the
model, so that the size of the file is a sum over units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

import mpsearch.files as files
from mpsearch.deploy.input_codes import encode
from mpsearch.deploy.payload import DTYPES, OPEN_SEAL, nbytes, require_dense, seal, stored_form, to_stored
from mpsearch.errors import MpsearchError
from mpsearch.models import ModelSource
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import UnitState, pack, packed_nbytes
from mpsearch.quant.weightless import operands_of, weightless_names

SCHEMA = 1
KEY = "mpsearch"
ENTRIES = {"schema", "source", "folded", "data_config", "sha256", "assignment"}


def sides_of(unit: str) -> tuple[str, ...]:
    """Last parts of the names of what a unit without a weight stores."""
    return ("left", "right") if operands_of(unit) == 2 else ("input",)


@dataclass(frozen=True)
class PackedLayout:
    """What the file of a model holds, whatever the assignment.

    Args:
        weights: Unit -> shape of its weight.
        leftovers: Tensors that are stored as they are -> (type, shape) in the file.
        description: JSON of the metadata but for the assignment.
        header_bytes: Length of the header in every file of this model, its 8-byte length field included.
        products: Units without a weight that may be quantised: products of two activations, and tensors that
            modules return.
    """

    weights: Mapping[str, tuple[int, ...]]
    leftovers: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    description: Mapping[str, Any]
    header_bytes: int
    products: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        module: nn.Module,
        units: Iterable[str],
        source: ModelSource,
        folded: Iterable[tuple[str, str]],
        data_config: Mapping[str, Any],
    ) -> PackedLayout:
        """The layout of a folded float model whose `units` may be quantised."""
        named = list(units)
        products = tuple(weightless_names(module, named))
        held = {
            unit: tuple(module.get_submodule(unit).get_parameter("weight").shape)
            for unit in named
            if unit not in products
        }
        skip = {f"{unit}.weight" for unit in held} | other_names(module, held)
        kept = {name: value for name, value in module.state_dict().items() if name not in skip}
        for name, value in kept.items():
            require_dense(name, value)
        leftovers = {name: stored_form(value.dtype, tuple(value.shape)) for name, value in kept.items()}
        description = {
            "schema": SCHEMA,
            "source": source.to_json(),
            "folded": [list(pair) for pair in folded],
            "data_config": dict(data_config),
        }
        layout = cls(held, leftovers, description, 0, products)
        return cls(held, leftovers, description, 8 + layout._longest_header(), products)

    @property
    def units(self) -> tuple[str, ...]:
        """All that may be quantised: layers, then units without a weight."""
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

    def _unit_tensors(
        self, unit: str, candidate: Candidate
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        if unit in self.products:
            return (
                {}
                if candidate.is_float or candidate.weight_only
                else {f"{unit}.{side}": (torch.float32, (2,)) for side in sides_of(unit)}
            )
        shape = self.weights[unit]
        if candidate.is_float or candidate.w_bits is None:
            return {f"{unit}.weight": (torch.float32, shape)}
        scales: tuple[int, ...] = (shape[0],) if candidate.w_granularity == "channel" else ()
        row = packed_nbytes(1, math.prod(shape[1:]), candidate.w_bits)
        weight = {f"{unit}.codes": (torch.uint8, (shape[0], row)), f"{unit}.scale": (torch.float32, scales)}
        return weight if candidate.weight_only else {**weight, f"{unit}.input": (torch.float32, (2,))}

    def _longest_header(self) -> int:
        """Every unit at 8 bits, weights and inputs, which has the most tensors and the longest row; every
        offset as long as the file of the float model.
        """
        widest = Candidate(8, 8)
        tensors = dict(self.leftovers)
        for unit in self.units:
            tensors.update(self._unit_tensors(unit, widest))
        end = (
            sum(nbytes(*t) for t in self.leftovers.values())
            + sum(4 * math.prod(s) + 64 for s in self.weights.values())
            + 16 * len(self.products)
        )
        entries = {
            name: {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [end, end]}
            for name, (dtype, shape) in tensors.items()
        }
        longest = dict.fromkeys(self.units, "W8A8/tensor")
        header = {"__metadata__": {KEY: self.metadata(longest)}, **entries}
        length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
        return -(-length // 8) * 8


def other_names(module: nn.Module, units: Iterable[str]) -> set[str]:
    """Names in the state of a model under which tensors of units stand once more: of layers that have several
    places in the tree of modules.
    """
    own = {id(module.get_submodule(unit)): unit for unit in units}
    return {
        f"{path}.{name}"
        for path, layer in module.named_modules(remove_duplicate=False)
        if own.get(id(layer), path) != path
        for name in layer.state_dict()
    }


def save_packed(path: Path, layout: PackedLayout, module: nn.Module, states: Mapping[str, UnitState]) -> int:
    """Write the checkpoint whole or not at all.

    Args:
        path: File to write.
        layout: Layout of `module`.
        module: Folded float model.
        states: Every unit's codes and quantisers, products included.
    Returns: Bytes on disk.
    Raises: MpsearchError: The file is not as large as the layout says (a defect: the promise would be
        broken).
    """
    assignment = Assignment(tuple((unit, states[unit].candidate) for unit in layout.units))
    tensors: dict[str, Tensor] = {}
    for unit in layout.units:
        tensors.update(_unit_tensors(unit, states[unit], module))
    held = {
        **module.state_dict(),
        **{f"{unit}.bias": state.bias for unit, state in states.items() if state.bias is not None},
    }
    tensors.update({name: to_stored(name, held[name]) for name in layout.leftovers})
    text = layout.metadata(assignment.to_json())
    short = save(tensors, {KEY: text})
    missing = layout.header_bytes - 8 - int.from_bytes(short[:8], "little")
    data = save(tensors, {KEY: text + " " * missing}) if missing > 0 else short
    if len(data) != layout.size_bytes(assignment):
        raise MpsearchError(
            f"{path} would have {len(data)} bytes, not the predicted {layout.size_bytes(assignment)}. "
            "Nothing was written; please report this."
        )
    with files.replacing(path) as beside:
        beside.write_bytes(seal(data))
    return path.stat().st_size


def _unit_tensors(unit: str, state: UnitState, module: nn.Module) -> dict[str, Tensor]:
    if state.weight is None and weightless_names(module, [unit]):
        held = [q for q in (state.activation, state.second) if q is not None]
        return {f"{unit}.{side}": encode(q) for side, q in zip(sides_of(unit), held, strict=bool(held))}
    if state.weight is None:
        return {
            f"{unit}.weight": module.get_submodule(unit).get_parameter("weight").detach().clone().contiguous()
        }
    params = state.weight.params
    codes = (state.weight.codes.flatten(1).to(torch.int32) - params.qmin).to(torch.uint8)
    weight = {f"{unit}.codes": pack(codes, params.bits), f"{unit}.scale": params.scale.clone()}
    return weight if state.activation is None else {**weight, f"{unit}.input": encode(state.activation)}
