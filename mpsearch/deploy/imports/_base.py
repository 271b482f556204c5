"""The interface of an importer, and what several of them share: bits of a weight and an input become a
candidate, names become units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mpsearch.errors import UserError
from mpsearch.problem import FLOAT, FLOAT_INPUT, Assignment, Candidate, Layer
from mpsearch.registry import Registry

Bits = tuple[int | None, int | None]
"""Bits of the weight and of the input; None where the tool leaves it in float."""


@dataclass(frozen=True)
class Imported:
    """What was read.

    Args:
        assignment: A candidate for every layer of the model.
        notes: What the other tool's choice lost on the way, a sentence each.
    """

    assignment: Assignment
    notes: tuple[str, ...] = ()


class Importer(ABC):
    """Reads one tool's form; a frozen dataclass whose fields are its options. No code of a file is run."""

    name: ClassVar[str]

    @abstractmethod
    def read(self, path: Path, layers: Sequence[Layer]) -> Imported:
        """The assignment of a file for a model.

        Args:
            path: File.
            layers: Layers of the model that it is for.
        Raises: UserError: The file is not of this form, or does not fit the model.
        """


IMPORTERS: Registry[Importer] = Registry("importer", "mpsearch.deploy.imports")


def assigned(
    path: Path, layers: Sequence[Layer], bits: Mapping[str, Bits], notes: Sequence[str] = ()
) -> Imported:
    """The assignment of the bits of some layers.

    A layer that is not named is float, and so is a weight or an input of more than 8 bits. A weight without a
    quantised input is at `W4A16` and the like. Inputs of 9 to 15 bits, and a quantised input without a
    quantised weight, have no candidate and stay float; each is noted.

    Raises: UserError: A name is no layer of the model, no layer is named, or a width does not exist.
    """
    known = {layer.name: layer for layer in layers}
    odd = sorted(set(bits) - set(known))
    if odd:
        raise UserError(
            f"{path} names {len(odd)} layers that the model does not have, such as {odd[0]!r}; it has "
            f"{', '.join(list(known)[:4])} and so on."
        )
    if not bits:
        raise UserError(f"{path} names no layer of the model. Check that --from and --model fit the file.")
    changed: dict[str, list[str]] = {}
    choices = []
    for name in known:
        candidate, note = _candidate(path, name, *bits.get(name, (None, None)))
        choices.append((name, candidate))
        if note:
            changed.setdefault(note, []).append(name)
    missing = [name for name, layer in known.items() if name not in bits and layer.weight_shape]
    found = (
        [f"{len(missing)} layers are not in the file and stay float, such as {missing[0]}."]
        if missing
        else []
    )
    found += [f"{len(names)} layers, such as {names[0]}: {note}." for note, names in changed.items()]
    return Imported(Assignment(tuple(choices)), (*notes, *found))


def _candidate(path: Path, name: str, w_bits: int | None, a_bits: int | None) -> tuple[Candidate, str]:
    for what, value in (("weight", w_bits), ("input", a_bits)):
        if value is not None and not 1 < value <= 32:
            raise UserError(
                f"{path} gives the {what} of {name!r} {value} bits; 2 to 8 are integers here, 16 and 32 "
                "float."
            )
    if w_bits is None or w_bits > 8:
        return (
            FLOAT,
            ""
            if a_bits is None or a_bits > 8
            else "a quantised input without a quantised weight has no candidate; the layer is float",
        )
    if a_bits is None or a_bits > 8:
        return (
            Candidate(w_bits, FLOAT_INPUT),
            "inputs of 9 to 15 bits have no candidate; they stay float"
            if a_bits is not None and a_bits < 16
            else "",
        )
    return Candidate(w_bits, a_bits), ""
