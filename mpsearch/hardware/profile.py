"""Measuring the rows of a table that are missing, and reading costs from it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mpsearch.errors import TableError
from mpsearch.hardware.backends import Backend
from mpsearch.hardware.measure import time_callable
from mpsearch.hardware.table import LatencyTable, Row, row_key
from mpsearch.problem import Candidate, Layer

Rows = tuple[tuple[float, ...], ...]


def profile(
    layers: Sequence[Layer],
    candidates: Sequence[Sequence[Candidate]],
    backend: Backend,
    table: LatencyTable,
    folder: Path,
    *,
    batch: int = 1,
    seconds: float = 0.25,
    on_row: Callable[[int, int, str], None] | None = None,
) -> LatencyTable:
    """Measure what the table lacks; identical shapes are one row. Saved after every row, so an interrupt costs one.

    Args:
        layers: L units.
        candidates: For each its choices; what is timed is the kernel that each runs.
        backend: The runtime.
        table: Of this device and backend; rows are added to it.
        folder: Where it is saved.
        batch: Images in a call.
        seconds: Of measuring for each row.
        on_row: Progress: rows done, rows to measure, which.
    """
    if backend.on_gpu:  # a clock of the host would time how long a kernel takes to be queued
        raise TableError(f"{backend.name} runs on a GPU, which `mpsearch profile` cannot time. Run benchmarks/h200.sh on the machine that has it.")
    wanted: dict[tuple[str, str], tuple[Layer, Candidate]] = {}
    for layer, choices in zip(layers, candidates, strict=True):
        for candidate in choices:
            kernel = backend.supports(layer, candidate).kernel
            if kernel is not None and table.get(layer, kernel, batch) is None:
                wanted.setdefault((row_key(layer, batch), str(kernel)), (layer, kernel))
    for done, (key, (layer, kernel)) in enumerate(wanted.items(), start=1):
        table.rows[key] = _measure(layer, kernel, backend, batch, seconds)
        table.save(folder)
        if on_row is not None:
            on_row(done, len(wanted), f"{layer.name} {kernel}")
    return table


def _measure(layer: Layer, kernel: Candidate, backend: Backend, batch: int, seconds: float) -> Row:
    cell = backend.build(layer, kernel, batch)
    status = "wrong" if not cell.relative_error <= cell.tolerance else "ok" if cell.as_asked else "fallback"
    timing = time_callable(cell.run, threads=backend.threads, seconds=seconds)
    weight_bytes = layer.weight_numel * (4 if kernel.is_float else 1) + (0 if kernel.is_float or not layer.weight_shape else 4 * layer.weight_shape[0])
    return Row(
        row_key(layer, batch),
        str(kernel),
        status,
        timing.median_us,
        timing.iqr_us,
        timing.repeats,
        weight_bytes,
        " ".join(cell.executed),
        cell.relative_error if math.isfinite(cell.relative_error) else sys.float_info.max,  # a table holds finite numbers
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


@dataclass(frozen=True)
class LatencyCosts:
    """What a table says of a model.

    Args:
        rows: `L x C_l` in microseconds; infinite where a candidate has no usable row.
        unusable: (layer, candidate, why) of those.
        estimated: Whether the table is another device's.
    """

    rows: Rows
    unusable: tuple[tuple[str, str, str], ...]
    estimated: bool


def latency_costs(layers: Sequence[Layer], candidates: Sequence[Sequence[Candidate]], backend: Backend, table: LatencyTable, *, batch: int = 1) -> LatencyCosts:
    """Latency of every unit at every candidate, over all its calls; a fall-back or a wrong row is never a latency."""
    rows, unusable = [], []
    for layer, choices in zip(layers, candidates, strict=True):
        row = []
        for candidate in choices:
            support = backend.supports(layer, candidate)
            found = None if support.kernel is None else table.get(layer, support.kernel, batch)
            if found is not None and found.status == "ok":
                row.append(found.median_us * layer.calls)
                continue
            why = support.reason if support.kernel is None else "not measured" if found is None else f"{found.status}: ran {found.executed}"
            unusable.append((layer.name, str(candidate), why))
            row.append(math.inf)
        rows.append(tuple(row))
    return LatencyCosts(tuple(rows), tuple(unusable), table.estimated)
