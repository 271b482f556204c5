"""Latency tables: measured rows (CSV), whole-model runs (JSON lines) and an identity (JSON) of one device,
backend, version and thread count.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import io
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mpsearch import files
from mpsearch.errors import DeviceMismatchError, TableError
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.hardware.rows import COLUMNS, ENERGY, ModelRun, Row, read_row, read_run, row_key
from mpsearch.problem import Candidate, Layer

SCHEMA = 2
_AGAIN = "Restore it, or remove it and measure again."
_SOFTWARE = ("numpy", "onnx", "mpsearch")


@dataclass
class LatencyTable:
    """Rows and whole-model runs of one device, backend, version and thread count.

    Args:
        device: Who was measured.
        backend: Its name.
        version: Version of the runtime library.
        threads: Threads of the runtime's pool.
        rows: By (key, kernel).
        estimated: Whether the rows are another device's or another version's, taken as an estimate because
            the user said so.
        models: Whole-model runs, by their key.
        method: How it was measured, for people.
        batch: Images in a call, of rows and runs alike, where rows were measured in whole models; else 1.
        published: Where it is from, if others have measured and published it: `repository`, `commit`, `path`,
            `licence`, `method`, `samples`. It is only ever an estimate.
    """

    device: DeviceIdentity
    backend: str
    version: str
    threads: int
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    estimated: bool = False
    models: dict[tuple[str, int, tuple[str, ...]], ModelRun] = field(default_factory=dict)
    method: str = ""
    batch: int = 1
    published: dict[str, Any] | None = None

    @property
    def file_name(self) -> str:
        """`<device>__<backend>__<version>.csv`; more than one thread is part of the backend's name."""
        backend = self.backend if self.threads == 1 else f"{self.backend}-t{self.threads}"
        return f"{self.device.slug}__{backend}__{self.version}.csv"

    def get(self, layer: Layer, kernel: Candidate, batch: int = 1) -> Row | None:
        """The row of a cell, whatever its status; None where it was not measured."""
        return self.rows.get((row_key(layer, batch), str(kernel)))

    def save(self, folder: Path) -> Path:
        """Write the table, together with what another writer saved there meanwhile (ours wins). Raises
        TableError on an estimate, and where a published table and a measured one would be merged.
        """
        if self.estimated:
            raise TableError(
                "A table of another device or version is an estimate here, and is not saved as this "
                "one's. Measure here with `mpsearch profile`."
            )
        path = folder / self.file_name
        with _locked(folder):
            if path.is_file():
                held = LatencyTable.load(path, self.device, allow_estimate=True)
                if held.published != self.published:
                    raise TableError(
                        f"{path} is {_origin(held)}, and what is to be saved is {_origin(self)}: the two are "
                        "never merged. Keep them in different folders, with --tables."
                    )
                self.rows, self.models = {**held.rows, **self.rows}, {**held.models, **self.models}
            files.write_json(path.with_suffix(".json"), self._about())
            if self.models:
                lines = [json.dumps(run.to_json(), allow_nan=False) for _, run in sorted(self.models.items())]
                files.write_text(models_path(path), "\n".join(lines) + "\n")
            files.write_text(path, self._csv())
        return path

    def _csv(self) -> str:
        text = io.StringIO()
        energy = (ENERGY,) if any(row.energy_mj is not None for row in self.rows.values()) else ()
        writer = csv.DictWriter(text, COLUMNS + energy, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asdict(row) for _, row in sorted(self.rows.items()))
        return text.getvalue()

    def _about(self) -> dict[str, Any]:
        about = {
            "schema": SCHEMA,
            "device": self.device.to_json(),
            "backend": self.backend,
            "version": self.version,
            "threads": self.threads,
        }
        about |= {"batch": self.batch} if self.batch != 1 else {}
        if self.published is not None:
            return {**about, "method": self.method, "published": self.published}
        return {**about, "software": software(), "method": self.method}

    @classmethod
    def open(
        cls, folder: Path, device: DeviceIdentity, backend: str, version: str, threads: int
    ) -> LatencyTable:
        """The table of this device in a folder, or an empty one. Raises TableError where there is one that
        cannot be read.
        """
        table = cls(device, backend, version, threads)
        path = folder / table.file_name
        return cls.load(path, device, fits=table) if path.is_file() else table

    @classmethod
    def load(
        cls,
        path: Path,
        device: DeviceIdentity | None,
        *,
        fits: LatencyTable | None = None,
        allow_estimate: bool = False,
    ) -> LatencyTable:
        """Read and check a table.

        Args:
            path: The CSV; its JSON, and its whole-model runs if any, lie beside it.
            device: This device; None where the table is asked for as that of another.
            fits: A table, such as an empty one, whose backend, version and threads it must have; None where
                they do not matter.
            allow_estimate: Take the table of another device or version; every row is then an estimate.

        Raises:
            TableError: A file is missing, cut off or malformed, or of another backend; says where.
            DeviceMismatchError: It was measured on another device, by another version or with other threads.
        """
        if not path.is_file():
            raise TableError(
                f"There is no latency table {path}. Name the .csv that `mpsearch profile` wrote."
            )
        about = _identity(path.with_suffix(".json"))
        table = cls(
            DeviceIdentity.from_json(about["device"]),
            str(about["backend"]),
            str(about["version"]),
            int(about["threads"]),
        )
        if fits is not None and fits.backend != table.backend:
            raise TableError(
                f"{path} is a table of the backend {table.backend}; {fits.backend} was asked for. Give "
                f"its own table, or --target {table.backend}."
            )
        table.batch, table.published = int(about.get("batch", 1)), about.get("published")
        differs = differences(table, device, fits)
        if differs and not allow_estimate:
            raise DeviceMismatchError(
                f"{path} {'; it '.join(differs)}. Leave out --table to measure here, or pass "
                "--allow-estimate."
            )
        table.method = str(about.get("method", ""))
        table.rows = {(row.key, row.kernel): row for row in _rows(path)}
        table.models = {run.key: run for run in _runs(models_path(path))}
        table.estimated = bool(differs)
        return table


def differences(table: LatencyTable, device: DeviceIdentity | None, fits: LatencyTable | None) -> list[str]:
    """Why the rows of a table are not what this device and this runtime would measure; empty where they
    are.
    """
    found = []
    if table.published is not None:
        where = " ".join(str(table.published.get(k, "")) for k in ("repository", "commit")).strip()
        found.append(f"was measured and published by others ({where}), and is an estimate anywhere")
    if device is not None and table.device != device:
        found.append(f"was measured on {table.device}; this device is {device}")
    if fits is not None and table.version != fits.version:
        found.append(f"was measured with {table.backend} {table.version}; the version here is {fits.version}")
    if fits is not None and table.threads != fits.threads:
        found.append(f"was measured with {table.threads} threads; {fits.threads} were asked for")
    return found


def _origin(table: LatencyTable) -> str:
    return "measured" if table.published is None else "published by others"


def models_path(path: Path) -> Path:
    """Where the whole-model runs of a table are."""
    return path.with_name(path.name.removesuffix(".csv") + ".models.jsonl")


def software() -> dict[str, str]:
    """Versions that are noted beside the runtime's own."""
    found = {"python": platform.python_version()}
    for package in _SOFTWARE:
        with contextlib.suppress(
            importlib.metadata.PackageNotFoundError
        ):  # a source tree that is not installed
            found[package] = importlib.metadata.version(package)
    return found


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time in a folder; the system releases the lock when its holder dies."""
    with contextlib.ExitStack() as stack:
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context((folder / ".lock").open("w"))
        files.lock(held, wait=True)
        yield


def require_writable(folder: Path) -> None:
    """Raises MpsearchError where no table can be saved in a folder: told before hours of measuring."""
    with _locked(folder), files.replacing(folder / ".lock") as beside:
        beside.write_text("")


def _identity(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text())
        if about["schema"] != SCHEMA:
            raise TableError(
                f"{path} has schema {about['schema']!r}; this version of mpsearch reads {SCHEMA}. {_AGAIN}"
            )
        missing = {"name", "architecture", "cores", "flags", "system"} - set(about["device"]) or {
            "backend",
            "version",
            "threads",
        } - set(about)
        if missing:
            raise TableError(f"{path} lacks {min(missing)!r}. {_AGAIN}")
        DeviceIdentity.from_json(about["device"]), int(about["threads"])
    except FileNotFoundError:
        raise TableError(
            f"There is no {path}, which says on what device the table beside it was measured. {_AGAIN}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(
            f"{path} is not the identity of a latency table ({type(error).__name__}: {error}). {_AGAIN}"
        ) from None
    return about  # type: ignore[no-any-return]


def _rows(path: Path) -> list[Row]:
    try:
        text = path.read_text()
        if text and not text.endswith("\n"):  # a number may have lost its last digits, and would still be one
            raise TableError(
                f"{path}, line {text.count(chr(10)) + 1}, has no end: the file was cut off. Remove the "
                "line, or measure again."
            )
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
        if missing:
            raise TableError(
                f"{path} lacks the column {missing[0]!r}. A latency table has {', '.join(COLUMNS)}. {_AGAIN}"
            )
        return [read_row(f"{path}, line {number}", record) for number, record in enumerate(reader, start=2)]
    except FileNotFoundError:
        raise TableError(f"There is no latency table {path}. Measure one with `mpsearch profile`.") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{path} is not a CSV file: {error}. {_AGAIN}") from None


def _runs(path: Path) -> list[ModelRun]:
    if not path.is_file():
        return []
    found = []
    try:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            found.append(read_run(f"{path}, line {number}", json.loads(line)))
    except (ValueError, UnicodeDecodeError) as error:
        raise TableError(
            f"{path}, line {len(found) + 1}, is not JSON ({error}): the file was cut off or edited. "
            "Remove the line, or measure again."
        ) from None
    return found
