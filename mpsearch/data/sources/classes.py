"""Which class a folder of images stands for: by the order of the names, or by a file that says so."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.utils.misc import natural_key

from mpsearch.errors import DataError

_MAP = "--class-map FILE (JSON or CSV: folder, class)"


@dataclass(frozen=True)
class Classes:
    """What is known of a model's classes before images are read.

    Args:
        outputs: Number of classes that the model has; None where it is not known, or labels do not matter.
        timm: Whether the classes are in the order in which timm reads folders (natural order: `class2` before
            `class10`). Else folders are refused whose order as text, which torchvision takes, is another than
            the natural one.
        folders: Folder -> class, where a file says so; it counts above any order.
    """

    outputs: int | None = None
    timm: bool = False
    folders: Mapping[str, int] | None = None

    def labels(self, where: str, names: Sequence[str]) -> dict[str, int]:
        """Class of each folder.

        Args:
            where: What messages call the place.
            names: Every class folder that is known of, images in it or not.

        Raises:
            DataError: The order is in doubt, or the folders are not as many as the model's classes.
        """
        if self.folders is not None:
            return self._mapped(where, names)
        if self.outputs is not None and len(names) != self.outputs:
            raise DataError(
                f"{where} has {len(names)} class folders and the model {self.outputs} classes, so which "
                "folder is which "
                f"class cannot be told. Give a folder for each class, or say it with {_MAP}."
            )
        return {name: i for i, name in enumerate(self._ordered(where, names))}

    def require(self, where: str, label: int) -> None:
        """Raises DataError, naming the place, where the model has no output for a label."""
        if self.outputs is not None and not 0 <= label < self.outputs:
            raise DataError(
                f"{where} has the label {label}; the model has {self.outputs} classes, 0 to "
                f"{self.outputs - 1}. "
                "Correct the label, or give the data that the model was trained for."
            )

    def _ordered(self, where: str, names: Sequence[str]) -> list[str]:
        as_text, natural = sorted(names), sorted(sorted(names), key=natural_key)
        same = next((pair for pair in itertools.pairwise(natural) if _alike(*pair)), None)
        if self.timm and same is not None:
            raise DataError(
                f"{where}: the class folders {same[0]!r} and {same[1]!r} have no order in timm, which "
                "takes no notice of "
                f"capitals and leading zeros. Rename one, or say which is which class with {_MAP}."
            )
        if not self.timm and as_text != natural:
            raise DataError(
                f"{where}: as text the class folders {', '.join(as_text[:3])}, ... stand in another "
                "order (torchvision's) than by "
                f"their numbers (timm's: {', '.join(natural[:3])}, ...), and which of them the model was "
                "trained with is not known. "
                f"Say which folder is which class with {_MAP}, or pad the numbers with zeros."
            )
        return natural

    def _mapped(self, where: str, names: Sequence[str]) -> dict[str, int]:
        folders = self.folders or {}
        absent = [name for name in names if name not in folders]
        if absent:
            raise DataError(
                f"{where} has the class folder {absent[0]!r}, which the class map does not name. Add it "
                "to the file."
            )
        for name in names:
            self.require(f"The class map of {where}: the folder {name!r}", folders[name])
        return {name: folders[name] for name in names}


def read_class_map(path: str | Path) -> dict[str, int]:
    """Folder -> class of a JSON object, or of a CSV file with two columns and no header but `folder,class`.

    Raises:
        DataError: The file is missing or is neither; names what is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _json_pairs(text) if path.suffix.lower() == ".json" else _csv_pairs(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The class map {path} cannot be read ({getattr(error, 'strerror', None) or error})."
        ) from None
    except (ValueError, csv.Error) as error:
        raise DataError(
            f'The class map {path} cannot be read ({error}). Write JSON such as {{"cat": 0, "dog": 1}}, '
            "or a CSV file with the lines cat,0 and dog,1."
        ) from None
    found: dict[str, int] = {}
    for name, value in pairs:
        if name in found:
            raise DataError(f"The class map {path} names the folder {name!r} twice. Keep one.")
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise DataError(
                f"The class map {path} has the class {value!r} for {name!r}; classes are whole numbers "
                "from 0."
            )
        found[name] = value
    if not found:
        raise DataError(f"The class map {path} names no folder. Write one line for each.")
    return found


def _json_pairs(text: str) -> list[tuple[str, Any]]:
    data = json.loads(text, object_pairs_hook=list)
    if not text.lstrip().startswith("{"):
        raise ValueError("it is not an object")
    return list(data)


def _csv_pairs(text: str) -> list[tuple[str, Any]]:
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(io.StringIO(text, newline=""), strict=True)
        if row
    ]
    if rows and rows[0][-1:] and not rows[0][-1].lstrip("-").isdecimal():
        rows = rows[1:]
    odd = next((row for row in rows if len(row) != 2), None)
    if odd is not None:
        raise ValueError(f"the line {','.join(odd)!r} has not two fields")
    return [(name, int(value) if value.lstrip("-").isdecimal() else value) for name, value in rows]


def _alike(one: str, other: str) -> bool:
    return bool(natural_key(one) == natural_key(other))  # type: ignore[no-untyped-call]
