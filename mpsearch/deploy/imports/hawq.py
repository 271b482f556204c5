"""`hawq`: a bit configuration of HAWQ-V3, the dictionary of its `bit_config.py`, read as data and never run.

HAWQ names the layers of its own quantised copies of pytorchcv's ResNets: `quant_init_block_convbn` (or
`quant_init_convbn`), `stageS.unitU.quant_convbnK`, `stageS.unitU.quant_identity_convbn` and `quant_output`;
the inputs of a unit's first convolution and of its shortcut are `quant_act`, of its K-th `quant_act<K-1>`, of
the first convolution `quant_input`, of the head `quant_act_output`. `quant_act_int32` is the residual sum,
which has no bits to choose. Here they are timm's and torchvision's names, or whatever names `names` gives.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.deploy.imports._base import IMPORTERS, Bits, Imported, Importer, assigned
from mpsearch.errors import UserError
from mpsearch.problem import Layer
from mpsearch.problem.document import read_small_text

_UNIT = re.compile(r"stage(\d+)\.unit(\d+)\.quant_(?:convbn(\d+)|identity_convbn)")
_FIRST = ("quant_init_block_convbn", "quant_init_convbn")


@IMPORTERS.register("hawq")
@dataclass(frozen=True)
class FromHawq(Importer):
    """`bit_config.py`, or one configuration as JSON.

    Args:
        config: Key of `bit_config_dict`, such as `bit_config_resnet18_modelsize_0.5`; needed where the file
            has more than one.
        names: JSON file of HAWQ's name -> name in the model, for models whose names are not torchvision's.
    """

    config: str | None = None
    names: str | None = None

    def read(self, path: Path, layers: Sequence[Layer]) -> Imported:
        """The assignment of a configuration."""
        bits = self._configuration(path)
        given = None if self.names is None else _json_object(Path(self.names))
        found: dict[str, Bits] = {}
        for name in bits:
            if name in _FIRST or name == "quant_output" or _UNIT.fullmatch(name):
                unit = _torchvision(name) if given is None else given.get(name)
                if not isinstance(unit, str):
                    raise UserError(
                        f"{self.names} has no name for {name!r}, which {path} gives {bits[name]} bits. "
                        "Add it."
                    )
                found[unit] = (bits[name], _input_bits(name, bits))
        return assigned(path, layers, found)

    def _configuration(self, path: Path) -> Mapping[str, int]:
        held = _literal(path)
        if all(isinstance(value, int) for value in held.values()):
            chosen = held
        elif self.config is None:
            raise UserError(
                f"{path} has the configurations {', '.join(list(held)[:6])} and so on. Name one: --from "
                "hawq:config=NAME."
            )
        elif self.config not in held:
            raise UserError(
                f"{path} has no configuration {self.config!r}; it has {', '.join(list(held)[:6])} and so on."
            )
        else:
            chosen = held[self.config]
        if not isinstance(chosen, dict) or not all(
            isinstance(k, str) and isinstance(v, int) for k, v in chosen.items()
        ):
            raise UserError(
                f"{path} is no bit configuration of HAWQ: it must give each name a number of bits."
            )
        return chosen


def _torchvision(name: str) -> str:
    if name in _FIRST:
        return "conv1"
    if name == "quant_output":
        return "fc"
    match = _UNIT.fullmatch(name)
    assert match is not None
    prefix = f"layer{match[1]}.{int(match[2]) - 1}"
    return f"{prefix}.conv{match[3]}" if match[3] else f"{prefix}.downsample.0"


def _input_bits(name: str, bits: Mapping[str, int]) -> int | None:
    """Bits of the activation quantiser before a layer."""
    if name in _FIRST:
        return bits.get("quant_input")
    if name == "quant_output":
        return bits.get("quant_act_output")
    match = _UNIT.fullmatch(name)
    assert match is not None
    before = "" if match[3] in (None, "1") else str(int(match[3]) - 1)
    return bits.get(f"stage{match[1]}.unit{match[2]}.quant_act{before}")


def _literal(path: Path) -> dict[str, Any]:
    """The dictionary of a JSON file, or the one that a Python file assigns, if it is written out."""
    if path.suffix == ".json":
        return _json_object(path)
    text = read_small_text(path)
    try:
        values = [
            node.value
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        ]
        found = [value for value in map(ast.literal_eval, values) if isinstance(value, dict)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{path} is not a dictionary that is written out ({type(error).__name__}); code is not run. "
            "Save the configuration as JSON."
        ) from None
    if len(found) != 1 or not found[0]:
        raise UserError(
            f"{path} assigns {len(found)} dictionaries; HAWQ's bit_config.py assigns one. Save the "
            "configuration as JSON."
        )
    return found[0]


def _json_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_small_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}).") from None
    if not isinstance(data, dict) or not data:
        raise UserError(f"{path} is no JSON object with entries.")
    return data
