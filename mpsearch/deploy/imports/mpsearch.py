"""`mpsearch`: our own `assignment.json`, CSV, or a study's `best.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpsearch.deploy.imports._base import IMPORTERS, Imported, Importer
from mpsearch.errors import UserError
from mpsearch.problem import FLOAT, Assignment, Layer, read_assignment


@IMPORTERS.register("mpsearch")
@dataclass(frozen=True)
class FromMpsearch(Importer):
    """Every layer with a weight must be in the file; products of activations that are not are float."""

    def read(self, path: Path, layers: Sequence[Layer]) -> Imported:
        """The assignment of the file, in the order of the model."""
        given, known = read_assignment(path), {layer.name for layer in layers}
        odd, missing = (
            sorted(set(given) - known),
            [layer.name for layer in layers if layer.weight_shape and layer.name not in given],
        )
        if odd or missing:
            which = (
                f"names {odd[0]!r}, which the model does not have"
                if odd
                else f"has no candidate for {missing[0]!r}"
            )
            raise UserError(
                f"{path} is for another model: it {which}. Name the model it was written for with --model."
            )
        return Imported(Assignment(tuple((layer.name, given.get(layer.name, FLOAT)) for layer in layers)))
