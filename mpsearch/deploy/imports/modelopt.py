"""`modelopt`: NVIDIA ModelOpt's `quant_cfg` as JSON, in its list form or the earlier dictionary, patterns and
all.

An entry's pattern is matched, as ModelOpt does with fnmatch, with the names `<layer>.weight_quantizer` and
`<layer>.input_quantizer`; a later entry wins. Integers of 2 to 8 bits are taken; floating-point formats
(`num_bits` of two numbers) are not, since no candidate here has them.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.deploy.imports._base import IMPORTERS, Imported, Importer, assigned
from mpsearch.errors import UserError
from mpsearch.problem import Layer
from mpsearch.problem.document import read_small_text

_CLASSES = {"conv2d": "nn.Conv2d", "linear": "nn.Linear"}


@IMPORTERS.register("modelopt")
@dataclass(frozen=True)
class FromModelOpt(Importer):
    """A `quant_cfg`, or an object that holds one (`{"quant_cfg": ..., "algorithm": ...}`)."""

    def read(self, path: Path, layers: Sequence[Layer]) -> Imported:
        """The assignment that the patterns give."""
        try:
            data = json.loads(read_small_text(path))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is not JSON ({error}). Save ModelOpt's configuration with json.dump."
            ) from None
        entries = _entries(path, data)
        units = [layer for layer in layers if layer.weight_shape]
        bits = {u.name: (_bits(path, entries, u, "weight"), _bits(path, entries, u, "input")) for u in units}
        return assigned(path, layers, bits)


@dataclass(frozen=True)
class _Entry:
    pattern: str
    parent: str | None
    enabled: bool | None
    cfg: dict[str, Any] | None


def _entries(path: Path, data: Any) -> list[_Entry]:
    held = data.get("quant_cfg", data) if isinstance(data, dict) else data
    raw = [{key: value} for key, value in held.items()] if isinstance(held, dict) else held
    if not isinstance(raw, list) or not raw or not all(isinstance(entry, dict) for entry in raw):
        raise UserError(
            f"{path} is no quant_cfg of ModelOpt: it must be a list of entries, or an object of patterns."
        )
    return [found for entry in raw for found in _read(path, entry)]


def _read(path: Path, entry: dict[str, Any]) -> list[_Entry]:
    if "quantizer_name" in entry:
        cfg, parent = entry.get("cfg"), entry.get("parent_class")
        if (
            not isinstance(entry["quantizer_name"], str)
            or not isinstance(cfg, dict | None)
            or not isinstance(parent, str | None)
        ):
            raise UserError(
                f"{path} has the entry {entry}, which cannot be read: a name, a cfg object and a parent "
                "class are texts and an object."
            )
        return [_Entry(entry["quantizer_name"], parent, entry.get("enable"), cfg)]
    found = []
    for key, value in entry.items():
        inner, parent = (value, key) if key.startswith("nn.") else ({key: value}, None)
        if not isinstance(inner, dict) or not all(isinstance(v, dict) for v in inner.values()):
            raise UserError(f"{path} gives {key!r} the value {value!r}; an object of settings belongs there.")
        for name, settings in inner.items():
            cfg = {k: v for k, v in settings.items() if k != "enable"}
            found.append(
                _Entry("*" if name == "default" else name, parent, settings.get("enable"), cfg or None)
            )
    return found


def _bits(path: Path, entries: list[_Entry], layer: Layer, which: str) -> int | None:
    name, enabled, bits = (
        f"{layer.name}.{which}_quantizer",
        True,
        8,
    )  # ModelOpt's quantisers are on, at 8 bits, where nothing is said
    for entry in entries:
        if not fnmatch.fnmatch(name, entry.pattern) or entry.parent not in (None, _CLASSES.get(layer.op)):
            continue
        if entry.cfg is not None:
            bits, enabled = _width(path, name, entry.cfg.get("num_bits", bits)), True
        if entry.enabled is not None:
            enabled = bool(entry.enabled)
    return bits if enabled else None


def _width(path: Path, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(
            f"{path} gives {name!r} the format {value!r}; only whole numbers of bits can be imported, "
            "floating-point formats cannot."
        )
    return value
