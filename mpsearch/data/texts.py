"""Texts of a `.csv` or `.jsonl` file as a Hugging Face tokenizer reads them: samples by the names of the
model's arguments.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mpsearch.errors import DataError, MissingExtraError
from mpsearch.foreign import first_line
from mpsearch.named import HUGGING_FACE

LONGEST = 128
"""Tokens of a text, where nothing is said and the longest has more."""
_NEEDED = (
    "It needs rows with text, perhaps pair (a second text) and label (a whole number, or a class's name)"
)


class Texts(Sequence[dict[str, Any]]):
    """N texts.

    Attributes:
        name: File, length, and how many texts were cut, for people.
    """

    def __init__(self, name: str, fields: Mapping[str, torch.Tensor], labels: Sequence[int] | None) -> None:
        self.name, self._fields, self._labels = name, dict(fields), labels

    def __len__(self) -> int:
        """N."""
        return len(next(iter(self._fields.values())))

    def __getitem__(self, index: Any) -> Any:
        """The arguments of a model for one text, and its label under `labels`."""
        found: dict[str, Any] = {key: value[index] for key, value in self._fields.items()}
        return found if self._labels is None else {**found, "labels": self._labels[index]}


def read_texts(
    spec: str, tokenizer: str | None, length: int | None = None, classes: Mapping[str, int] | None = None
) -> Texts:
    """Texts as tokens, padded and cut to one length.

    Args:
        spec: File, `.csv` with a header or `.jsonl`.
        tokenizer: Folder or id of a tokenizer; `hf:` before it is left out.
        length: Tokens of each; None for those of the longest text, at most `LONGEST`.
        classes: Name of a label -> class; labels are whole numbers without it.
    Raises: DataError: No tokenizer, or a file that cannot be read. MissingExtraError: transformers is
        missing.
    """
    rows, read = _rows(Path(spec)), _tokenizer(spec, tokenizer)
    texts, pairs = [row["text"] for row in rows], [row.get("pair") for row in rows]
    given = (texts, pairs) if pairs[0] is not None else (texts,)
    try:
        lengths = [len(ids) for ids in read(*given)["input_ids"]]
        size = length or min(max(lengths), LONGEST, int(read.model_max_length))
        found = read(*given, padding="max_length", truncation=True, max_length=size, return_tensors="pt")
    except Exception as error:  # a tokenizer may raise anything on what it does not take
        raise DataError(
            f"The tokenizer {tokenizer} does not take the texts of {spec}: {first_line(error)} Give the "
            "one that the "
            "model was trained with."
        ) from error
    cut = sum(one > size for one in lengths)
    lost = f", {cut} of {len(rows)} texts cut; --text-length keeps more" if cut else ""
    about = f"{spec} ({size} tokens each{lost})"
    return Texts(about, dict(found), _labels(spec, rows, classes))


def require_texts(spec: str, tokenizer: str | None) -> None:
    """Raises DataError where the file has no texts, or no tokenizer was named; nothing is tokenised."""
    _rows(Path(spec))
    _require_tokenizer(spec, tokenizer)


def _require_tokenizer(spec: str, tokenizer: str | None) -> str:
    if tokenizer is None:
        raise DataError(
            f"{spec} holds texts. Name the tokenizer of the model, a folder or an id, with --tokenizer."
        )
    return tokenizer.removeprefix(HUGGING_FACE)


def _tokenizer(spec: str, name: str | None) -> Any:
    place = _require_tokenizer(spec, name)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "Reading texts", error) from None
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=Path(place).is_dir())
    except Exception as error:  # the hub and the readers raise errors of several libraries
        raise DataError(
            f"The tokenizer {name} cannot be loaded: {first_line(error)} Give an id, or a folder of "
            "save_pretrained."
        ) from error


def _rows(path: Path) -> list[dict[str, str]]:
    """Non-empty, each with a text. Raises DataError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix.lower() == ".jsonl":
                rows = [json.loads(line) for line in stream if line.strip()]
            else:
                rows = list(csv.DictReader(stream, strict=True))
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}). {_NEEDED}.") from None
    for place, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
            raise DataError(f"{path}: row {place} has no text. {_NEEDED}.")
        if set(row) != set(rows[0]):
            raise DataError(f"{path}: row {place} has other fields than the first. {_NEEDED}.")
    if not rows:
        raise DataError(f"{path} has no rows. {_NEEDED}.")
    return rows


def _labels(
    spec: str, rows: Sequence[Mapping[str, Any]], classes: Mapping[str, int] | None
) -> list[int] | None:
    if "label" not in rows[0]:
        return None
    found = []
    for place, row in enumerate(rows, start=1):
        text = str(row["label"]).strip()
        if classes is not None and text in classes:
            found.append(classes[text])
        elif text.isdecimal() and classes is None:
            found.append(int(text))
        else:
            raise DataError(
                f"{spec}: row {place} has the label {text!r}. Labels are whole numbers from 0, or names "
                "of which "
                "--class-map FILE says which is which class."
            )
    return found
