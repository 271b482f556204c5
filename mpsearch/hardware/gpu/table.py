"""The latency table of a GPU: its rows are those of the log of readings, which lies beside it and knows their energy too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from mpsearch.hardware.backends import Backend
from mpsearch.hardware.gpu.card import Card
from mpsearch.hardware.gpu.profile import GpuLog, GpuProfiler, GpuRow
from mpsearch.hardware.profile import missing_cells
from mpsearch.hardware.rows import Row
from mpsearch.hardware.table import LatencyTable
from mpsearch.problem import Candidate, Layer

METHOD = (
    "random data; a CUDA graph of calls on rotating copies of weights and input, together over twice the L2 cache, timed by events; two passes in random "
    "order, the anchor (a product of 4096 x 4096 matrices) before and after every few cells; readings are taken again where the card was slowed down, its "
    "clock moved or they spread; energy by NVML's counter, whole board; all readings in the .jsonl beside"
)


def log_path(table: Path) -> Path:
    """Where the readings of a table are."""
    return table.with_name(table.name.removesuffix(".csv") + ".jsonl")


def gpu_table(
    layers: Sequence[Layer],
    candidates: Sequence[Sequence[Candidate]],
    backend: Backend,
    table: LatencyTable,
    folder: Path,
    card: Card,
    on_row: Callable[[int, int, str], None] | None = None,
) -> LatencyTable:
    """Measure what the table lacks, at batch 1, into its log of readings and then into it; identical shapes are one row.

    Args:
        layers: L units.
        candidates: For each its choices; what is timed is the kernel that each runs.
        backend: One that is `on_gpu`.
        table: Of this card and backend; rows are added to it.
        folder: Where it is saved.
        card: Where it is measured.
        on_row: Progress: rows done, rows to measure, which.
    Raises: ForeignProcessError: Somebody else computes on the card; what was measured before is kept.
    """
    log = GpuLog.open(log_path(folder / table.file_name))
    table.method = METHOD
    missing = missing_cells(layers, candidates, backend, table)
    if missing:
        profiler = GpuProfiler(backend, card.timer, card.monitor, card.anchor, card.settings)
        profiler.profile(missing, log, 1, on_row)  # but what the log has already
    table.rows |= {key: table_row(row) for key, row in log.rows.items()}
    table.save(folder)
    return table


def table_row(row: GpuRow) -> Row:
    """A row of the log as a table has it; its passes are kept apart."""
    medians = [r.median_us for r in row.readings]
    return Row(
        row.key,
        row.kernel,
        row.status,
        math.fsum(medians) / len(medians) if medians else 0.0,
        max((r.iqr_us for r in row.readings), default=0.0),
        sum(r.repeats for r in row.readings),
        row.weight_bytes,
        row.executed,
        row.relative_error,
        row.date,
        min_us=min((r.min_us for r in row.readings), default=0.0),
        rounds=" ".join(f"{us:.6g}" for us in medians),
        anchor_us=row.anchor_us,
        clock="gpu",
    )
