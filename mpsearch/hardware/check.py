"""Whether latency tables can be read and fit this device and these versions: `mpsearch profile --check`."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpsearch.errors import DeviceMismatchError, MissingExtraError, TableError
from mpsearch.hardware.backends import BACKENDS
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.hardware.table import LatencyTable, differences


@dataclass(frozen=True)
class TableCheck:
    """What one table is worth here.

    Args:
        path: The CSV.
        verdict: `fits`, `estimate` (another device, version or thread count) or `damaged`.
        reasons: Why it does not fit.
        rows: Status -> how many rows.
        models: Whole-model runs.
        aa_error: Median over the rows of how far two passes of the same lay apart, a share; None where no row
            has two.
    """

    path: Path
    verdict: str
    reasons: tuple[str, ...]
    rows: dict[str, int]
    models: int
    aa_error: float | None


def check_tables(place: Path, device: DeviceIdentity, threads: int | None = None) -> list[TableCheck]:
    """Check a table, or every table of a folder.

    Args:
        place: A CSV, or a folder of them.
        device: This device's processor; tables of a GPU are compared with its GPU, where it has one.
        threads: That would be asked for; None takes the table's own.

    Raises: TableError: There is no table there.
    """
    paths = sorted(place.glob("*.csv")) if place.is_dir() else [place]
    if not paths or not all(path.is_file() for path in paths):
        raise TableError(f"There is no latency table in {place}. Measure one with `mpsearch profile`.")
    return [_check(path, device, threads) for path in paths]


def _check(path: Path, device: DeviceIdentity, threads: int | None) -> TableCheck:
    try:
        table = LatencyTable.load(path, device, allow_estimate=True)
    except TableError as error:
        return TableCheck(path, "damaged", (str(error),), {}, 0, None)
    version = _installed(table)
    if version is not None:
        with contextlib.suppress(DeviceMismatchError):  # what is not here is no other device's
            device = BACKENDS.create(table.backend).device()
    here = LatencyTable(device, table.backend, version or table.version, threads or table.threads)
    reasons = differences(table, device, here)
    if version is None:
        reasons.append(f"needs the backend {table.backend}, which is not installed here")
    apart = [row.aa_error for row in table.rows.values() if row.aa_error is not None]
    counts = dict(Counter(row.status for row in table.rows.values()))
    return TableCheck(
        path,
        "estimate" if reasons else "fits",
        tuple(reasons),
        counts,
        len(table.models),
        float(np.median(apart)) if apart else None,
    )


def _installed(table: LatencyTable) -> str | None:
    """The version of the table's runtime here; None where it is not installed."""
    if table.backend not in BACKENDS.names():
        return None
    try:
        return BACKENDS.create(table.backend).version
    except (MissingExtraError, ImportError):
        return None
