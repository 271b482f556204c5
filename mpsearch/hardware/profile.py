"""Measuring the rows of a table that are missing, and reading costs from it."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpsearch.hardware.backends import Backend
from mpsearch.hardware.bench import TRIES
from mpsearch.hardware.cell import CellTimer, IsolatedTimer
from mpsearch.hardware.predict import RowPredictor
from mpsearch.hardware.rows import Row, row_key
from mpsearch.hardware.table import LatencyTable
from mpsearch.problem import Candidate, Layer

Rows = tuple[tuple[float, ...], ...]
_AT_ONCE = 4
"""Rows that are measured between two looks at what the table can predict."""
Cells = dict[tuple[str, str], tuple[Layer, Candidate]]


def profile(
    layers: Sequence[Layer],
    candidates: Sequence[Sequence[Candidate]],
    backend: Backend,
    table: LatencyTable,
    folder: Path,
    *,
    batch: int = 1,
    seconds: float = 0.25,
    isolate: bool = False,
    at_most: int | None = None,
    on_row: Callable[[int, int, str], None] | None = None,
) -> LatencyTable:
    """Measure what the table lacks; identical shapes are one row. Saved after every row, so an interrupt
    costs one.

    Args:
        layers: L units.
        candidates: For each its choices; what is timed is the kernel that each runs.
        backend: The runtime.
        table: Latency table of this device and backend; rows are added to it.
        folder: Where it is saved.
        batch: Images in a call.
        seconds: Seconds of measuring for each row.
        isolate: Build and time in a process of its own, so that a kernel that crashes costs its row and
            nothing else.
        at_most: Rows to measure, those from which the others can be predicted best; None measures all, which
            is always better.
        on_row: Progress: rows done, rows to measure, which.
    """
    table.method = backend.bench().method
    left = missing_cells(layers, candidates, backend, table, batch)
    total = len(left) if at_most is None else min(at_most, len(left))
    done = 0
    while done < total:
        some = (
            left
            if total == len(left) and not done
            else _informative(left, table, min(_AT_ONCE, total - done), batch)
        )

        def tell(count: int, _: int, which: str, before: int = done) -> None:
            if on_row is not None:
                on_row(before + count, total, which)

        measure_cells(
            some, backend, table, folder, batch=batch, seconds=seconds, isolate=isolate, on_row=tell
        )
        done, left = done + len(some), {key: cell for key, cell in left.items() if key not in some}
    return table


def _informative(cells: Cells, table: LatencyTable, count: int, batch: int) -> Cells:
    """The cells to measure next, by what the table's rows say now."""
    picked = RowPredictor(table.rows).next_to_measure(cells.values(), count, batch)
    return {key: cell for key, cell in cells.items() if cell in picked}


def missing_cells(
    layers: Sequence[Layer],
    candidates: Sequence[Sequence[Candidate]],
    backend: Backend,
    table: LatencyTable,
    batch: int = 1,
) -> Cells:
    """The cells that a table has no row for, or one that crashed, as it may not again: each shape and kernel
    once, under its key.
    """
    found: Cells = {}
    for layer, choices in zip(layers, candidates, strict=True):
        for candidate in choices:
            kernel = backend.supports(layer, candidate).kernel
            if kernel is None:
                continue
            row = table.get(layer, kernel, batch)
            if row is None or row.status == "crash":
                found.setdefault((row_key(layer, batch), str(kernel)), (layer, kernel))
    return found


def measure_cells(
    cells: Cells,
    backend: Backend,
    table: LatencyTable,
    folder: Path,
    *,
    batch: int = 1,
    seconds: float = 0.25,
    isolate: bool = False,
    on_row: Callable[[int, int, str], None] | None = None,
) -> None:
    """Measure these cells into the table, as `profile` does.

    One that spreads, or beside which the machine's speed has drifted, goes to the end of the queue; after
    three tries the steadiest is kept as `unstable`.
    """
    queue, tries, done = deque(cells), dict.fromkeys(cells, 0), 0
    steadiest: dict[tuple[str, str], Row] = {}
    with contextlib.ExitStack() as stack:
        if cells:
            stack.enter_context(backend.bench().held())
        timer = stack.enter_context((IsolatedTimer if isolate else CellTimer)(backend, batch, seconds))
        while queue:
            key = queue.popleft()
            row, steady = timer.measure(*cells[key])
            tries[key] += 1
            if key not in steadiest or _spread(row) < _spread(steadiest[key]):
                steadiest[key] = row
            if row.usable and not steady:
                if tries[key] < TRIES:
                    queue.append(key)
                    continue
                row = replace(steadiest[key], status="unstable")
            table.rows[key] = row
            table.save(folder)
            done += 1
            if on_row is not None:
                on_row(done, len(cells), f"{cells[key][0].name} {cells[key][1]}")


def _spread(row: Row) -> float:
    return max(row.iqr_us / row.median_us, row.aa_error or 0.0) if row.usable else math.inf


@dataclass(frozen=True)
class LatencyCosts:
    """What a table says of a model.

    Args:
        rows: `L x C_l` in microseconds; infinite where a candidate has no usable row.
        unusable: (layer, candidate, why) of those.
        estimated: Whether the table is another device's or version's, or a row is predicted.
        unstable: (layer, candidate) whose row spread too widely at every try.
        predicted: (layer, candidate, standard deviation of the logarithm) that were not measured but
            predicted.
    """

    rows: Rows
    unusable: tuple[tuple[str, str, str], ...]
    estimated: bool
    unstable: tuple[tuple[str, str], ...] = ()
    predicted: tuple[tuple[str, str, float], ...] = ()


def latency_costs(
    layers: Sequence[Layer],
    candidates: Sequence[Sequence[Candidate]],
    backend: Backend,
    table: LatencyTable,
    *,
    batch: int = 1,
    predictor: RowPredictor | None = None,
) -> LatencyCosts:
    """Latency of every unit at every candidate, over all its calls; a fall-back or a wrong row is never a
    latency.

    Args:
        layers: L units.
        candidates: For each its choices.
        backend: The runtime.
        table: Latency table of this device and backend.
        batch: Images in a call.
        predictor: For cells that were never measured; None leaves them unusable.
    """
    rows, unusable, unstable, predicted = [], [], [], []
    for layer, choices in zip(layers, candidates, strict=True):
        row = []
        for candidate in choices:
            support = backend.supports(layer, candidate)
            found = None if support.kernel is None else table.get(layer, support.kernel, batch)
            if found is not None and found.usable:
                row.append(found.median_us * layer.calls)
                if found.status == "unstable":
                    unstable.append((layer.name, str(candidate)))
                continue
            if (
                found is None
                and support.kernel is not None
                and predictor is not None
                and (guess := predictor.predict(layer, support.kernel, batch))
            ):
                row.append(guess.median_us * layer.calls)
                predicted.append((layer.name, str(candidate), guess.spread))
                continue
            why = (
                support.reason
                if support.kernel is None
                else "not measured"
                if found is None
                else f"{found.status}: ran {found.executed}"
            )
            unusable.append((layer.name, str(candidate), why))
            row.append(math.inf)
        rows.append(tuple(row))
    return LatencyCosts(
        tuple(rows), tuple(unusable), table.estimated or bool(predicted), tuple(unstable), tuple(predicted)
    )


def energy_costs(
    layers: Sequence[Layer],
    candidates: Sequence[Sequence[Candidate]],
    backend: Backend,
    table: LatencyTable,
    batch: int = 1,
) -> Rows:
    """Energy of every unit at every candidate, over all its calls.

    Args:
        layers: L units.
        candidates: For each its choices.
        backend: The runtime.
        table: Table of this device and backend.
        batch: Images in a call.
    Returns: `L x C_l` in millijoules; infinite where there is no usable row with an energy.
    """

    def energy(layer: Layer, candidate: Candidate) -> float:
        kernel = backend.supports(layer, candidate).kernel
        row = None if kernel is None else table.get(layer, kernel, batch)
        return (
            math.inf
            if row is None or not row.usable or row.energy_mj is None
            else row.energy_mj * layer.calls
        )

    return tuple(
        tuple(energy(layer, c) for c in choices) for layer, choices in zip(layers, candidates, strict=True)
    )
