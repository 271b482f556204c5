"""The assignment as a file for others: `assignment.json`, whose form `docs/assignment.schema.json` describes,
and the same as CSV.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpsearch.errors import UserError
from mpsearch.problem.assignment import Assignment, Candidate
from mpsearch.problem.layer import Layer

FORMAT, SCHEMA = "mpsearch-assignment", 1
COLUMNS = (
    "layer",
    "candidate",
    "w_bits",
    "a_bits",
    "number_format",
    "w_granularity",
    "op",
    "block",
    "weights",
    "macs",
    "size_bytes",
)
_LARGEST = 64 * 2**20  # bytes of a file that is read whole


def assignment_document(
    layers: Sequence[Layer],
    assignment: Assignment,
    *,
    size_bytes: Mapping[str, float] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `assignment.json` holds.

    Args:
        layers: L layers of the model, in order.
        assignment: A candidate for each.
        size_bytes: Layer -> bytes that it takes in the file, where known.
        about: Further entries, such as `budgets`, `predicted`, `measured`, `metrics` and `model`.
    """
    rows = [_row(layer, assignment[layer.name], (size_bytes or {}).get(layer.name)) for layer in layers]
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "assignment": assignment.to_json(),
        "layers": rows,
        **(about or {}),
    }


def assignment_csv(document: Mapping[str, Any]) -> str:
    """The layers of a document, one a line, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: "" if row[key] is None else row[key] for key in COLUMNS} for row in document["layers"]
    )
    return text.getvalue()


def read_assignment(path: Path) -> Assignment:
    """The assignment of an `assignment.json`, of a study's `best.json`, of a bare `{layer: candidate}`
    object, or of the CSV.

    Raises: UserError: The file is missing, is none of these, or names a candidate or a layer twice or
        wrongly.
    """
    text = read_small_text(path)
    try:
        if path.suffix == ".csv":
            return _from_csv(text)
        data = json.loads(text, object_pairs_hook=_without_repeats)
        if isinstance(data, dict) and data.get("format", FORMAT) != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, not {FORMAT!r}")
        if isinstance(data, dict) and "format" in data and data.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {data.get('schema')!r}; this version of mpsearch reads {SCHEMA}")
        found = data["assignment"] if isinstance(data, dict) and "assignment" in data else data
        if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
            raise ValueError("it has no object of layer names and candidates")
        return Assignment.from_json(found)
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path} is not an assignment: {reason}. Write one with `mpsearch solve` or `run`; "
            "docs/assignment.schema.json has the form."
        ) from None


def read_small_text(path: Path) -> str:
    """Text of a file of at most 64 MiB. Raises UserError where it is missing, larger, or not UTF-8."""
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes; no assignment has more than {_LARGEST}. Name "
                "another file."
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Name a file that exists.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file. Name one in UTF-8.") from None


def _row(layer: Layer, candidate: Candidate, size: float | None) -> dict[str, Any]:
    return {
        "layer": layer.name,
        "candidate": str(candidate),
        "w_bits": candidate.w_bits,
        "a_bits": candidate.a_bits,
        "number_format": candidate.number_format,
        "w_granularity": None if candidate.is_float else candidate.w_granularity,
        "op": layer.op,
        "block": layer.block,
        "weights": layer.weight_numel,
        "macs": layer.macs,
        "size_bytes": None if size is None else int(size),
    }


def _from_csv(text: str) -> Assignment:
    rows = csv.DictReader(io.StringIO(text))
    if not {"layer", "candidate"} <= set(rows.fieldnames or ()):
        raise ValueError("its first line does not name the columns layer and candidate")
    pairs = _without_repeats([(row["layer"], row["candidate"]) for row in rows])
    if not pairs or not all(isinstance(v, str) for v in pairs.values()):
        raise ValueError("a line lacks its candidate, or there is no line")
    return Assignment.from_json(pairs)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is in it twice")
    return found
