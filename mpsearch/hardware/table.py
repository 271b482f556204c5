"""Latency tables: a CSV of measured rows with a JSON of identity beside it, tied to one device, backend, version and thread count."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mpsearch import files
from mpsearch.errors import DeviceMismatchError, TableError
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.problem import Candidate, Layer

SCHEMA = 1
STATUSES = ("ok", "fallback", "wrong")
METHOD = "random data; 3 warm-ups; samples of at least 1 ms for 0.25 s; median and interquartile range; process CPU time at one thread, else wall clock"
_AGAIN = "Restore it, or remove it and measure again."


@dataclass(frozen=True)
class Row:
    """One measured cell.

    Args:
        key: Everything that decides the kernel: operator, shapes, attributes, bias, batch.
        kernel: Candidate that was timed.
        status: `ok`; `fallback` (another kernel than asked ran) and `wrong` (its numbers are off) are never used as a latency.
        median_us: For one call.
        iqr_us: Distance of the quartiles.
        repeats: Samples.
        weight_bytes: Of the weight as this kernel holds it.
        executed: Operators that ran.
        relative_error: Against float64 arithmetic.
        date: UTC, ISO 8601.
    """

    key: str
    kernel: str
    status: str
    median_us: float
    iqr_us: float
    repeats: int
    weight_bytes: int
    executed: str
    relative_error: float
    date: str


_COLUMNS = tuple(f.name for f in fields(Row))


def row_key(layer: Layer, batch: int) -> str:
    """What decides a kernel but the candidate; the layer's name does not."""
    parts = [layer.op, "+".join("x".join(map(str, (s[0] * batch, *s[1:]))) for s in layer.input_shapes)]
    if layer.weight_shape:
        parts.append("w" + "x".join(map(str, layer.weight_shape)))
    if layer.conv is not None:
        c = layer.conv
        parts.append(f"s{c.stride[0]},{c.stride[1]} p{c.padding[0]},{c.padding[1]} d{c.dilation[0]},{c.dilation[1]} g{c.groups}")
    return " ".join([*parts, "bias" if layer.bias else "no bias"])


@dataclass
class LatencyTable:
    """Rows of one device, backend, version and thread count.

    Args:
        device: Who was measured.
        backend: Its name.
        version: Of the runtime library.
        threads: Of the runtime's pool.
        rows: By (key, kernel).
        estimated: Whether the rows are another device's, taken as an estimate because the user said so.
    """

    device: DeviceIdentity
    backend: str
    version: str
    threads: int
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    estimated: bool = False

    @property
    def file_name(self) -> str:
        """`<device>__<backend>__<version>.csv`; more than one thread is part of the backend's name."""
        backend = self.backend if self.threads == 1 else f"{self.backend}-t{self.threads}"
        return f"{self.device.slug}__{backend}__{self.version}.csv"

    def get(self, layer: Layer, kernel: Candidate, batch: int = 1) -> Row | None:
        """The row of a cell, whatever its status; None where it was not measured."""
        return self.rows.get((row_key(layer, batch), str(kernel)))

    def save(self, folder: Path) -> Path:
        """Write the table, together with rows that another writer saved there meanwhile (ours win). Raises TableError on an estimate."""
        if self.estimated:
            raise TableError("A table of another device is an estimate here, and is not saved as this device's. Measure here with `mpsearch profile`.")
        path = folder / self.file_name
        with _locked(folder):
            if path.is_file():
                self.rows = {**LatencyTable.load(path, self.device).rows, **self.rows}
            text = io.StringIO()
            writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for _, row in sorted(self.rows.items()))
            about = {"schema": SCHEMA, "device": self.device.to_json(), "backend": self.backend, "version": self.version, "threads": self.threads}
            files.write_json(path.with_suffix(".json"), {**about, "method": METHOD})
            files.write_text(path, text.getvalue())
        return path

    @classmethod
    def open(cls, folder: Path, device: DeviceIdentity, backend: str, version: str, threads: int) -> LatencyTable:
        """The table of this device in a folder, or an empty one. Raises TableError where there is one that cannot be read."""
        table = cls(device, backend, version, threads)
        path = folder / table.file_name
        return cls.load(path, device) if path.is_file() else table

    @classmethod
    def load(cls, path: Path, device: DeviceIdentity, *, allow_estimate: bool = False) -> LatencyTable:
        """Read and check a table.

        Args:
            path: The CSV; its JSON lies beside it.
            device: This device.
            allow_estimate: Take another device's table; every row is then an estimate.

        Raises:
            TableError: A file is missing, cut off or malformed; says where.
            DeviceMismatchError: It was measured on another device.
        """
        about = _identity(path.with_suffix(".json"))
        measured = DeviceIdentity.from_json(about["device"])
        if measured != device and not allow_estimate:
            raise DeviceMismatchError(
                f"{path} was measured on {measured}; this device is {device}. Leave out --table to measure here, or pass --allow-estimate."
            )
        rows = {(row.key, row.kernel): row for row in _rows(path)}
        return cls(measured, str(about["backend"]), str(about["version"]), int(about["threads"]), rows, measured != device)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time in a folder; the system releases the lock when its holder dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _identity(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text())
        if about["schema"] != SCHEMA:
            raise TableError(f"{path} has schema {about['schema']!r}; this version of mpsearch reads {SCHEMA}. {_AGAIN}")
        missing = {"name", "architecture", "cores", "flags", "system"} - set(about["device"]) or {"backend", "version", "threads"} - set(about)
        if missing:
            raise TableError(f"{path} lacks {min(missing)!r}. {_AGAIN}")
        DeviceIdentity.from_json(about["device"]), int(about["threads"])
    except FileNotFoundError:
        raise TableError(f"There is no {path}, which says on what device the table beside it was measured. {_AGAIN}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"{path} is not the identity of a latency table ({type(error).__name__}: {error}). {_AGAIN}") from None
    return about  # type: ignore[no-any-return]


def _rows(path: Path) -> list[Row]:
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [c for c in _COLUMNS if c not in (reader.fieldnames or [])]
            if missing:
                raise TableError(f"{path} lacks the column {missing[0]!r}. A latency table has {', '.join(_COLUMNS)}. {_AGAIN}")
            return [_row(path, number, record) for number, record in enumerate(reader, start=2)]
    except FileNotFoundError:
        raise TableError(f"There is no latency table {path}. Measure one with `mpsearch profile`.") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{path} is not a CSV file: {error}. {_AGAIN}") from None


def _row(path: Path, number: int, record: dict[str, str | None]) -> Row:
    where = f"{path}, line {number}"
    if None in record or any(record[c] is None for c in _COLUMNS):
        raise TableError(f"{where}, does not have {len(_COLUMNS)} fields: the file was cut off or edited. Remove the line, or measure again.")
    text = {c: str(record[c]) for c in _COLUMNS}
    try:
        numbers = {c: float(text[c]) for c in ("median_us", "iqr_us", "relative_error")} | {c: int(text[c]) for c in ("repeats", "weight_bytes")}
    except ValueError as error:
        raise TableError(f"{where}: {error}. Remove the line, or measure again.") from None
    for column, value in numbers.items():
        if not math.isfinite(value) or value < 0 or (column == "median_us" and value == 0):
            raise TableError(f"{where}: {column} is {text[column]}; it must be finite and positive. Remove the line, or measure again.")
    if text["status"] not in STATUSES:
        raise TableError(f"{where}: status {text['status']!r} is none of {', '.join(STATUSES)}. Remove the line, or measure again.")
    return Row(**{**text, **numbers})  # type: ignore[arg-type]
