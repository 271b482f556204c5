"""Measuring cells into a table and a log of readings: random order, two passes, an anchor in between, again where the card did not hold still."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpsearch.errors import MpsearchError, TableError
from mpsearch.hardware.backends import Backend, Cell
from mpsearch.hardware.gpu.measure import ForeignProcessError, GpuSettings, GraphTimer, Monitor, Reading, read_cell
from mpsearch.hardware.rows import row_key
from mpsearch.problem import Candidate, Layer

SCHEMA = 1
Key = tuple[str, str]
Cells = Mapping[Key, tuple[Layer, Candidate]]


@dataclass(frozen=True)
class GpuRow:
    """What is known of one cell: all its readings, not only the ones that count.

    Args:
        key: `table.row_key` of the unit. kernel: Candidate that was timed.
        status: `ok`, `unstable` (right, but no reading without trouble), `fallback`, `wrong` or `crash`.
        executed: Kernels that ran, or what the crash said.
        relative_error: Against float64. weight_bytes: Of the packed weight.
        readings: One for each pass that counts; of an unstable cell the steadiest. rejected: Readings that were taken again.
        anchor_us: Of the anchor before the last reading.
        date: UTC, ISO 8601.
    """

    key: str
    kernel: str
    status: str
    executed: str
    relative_error: float
    weight_bytes: int
    readings: tuple[Reading, ...]
    rejected: tuple[Reading, ...]
    anchor_us: float
    date: str

    @property
    def usable(self) -> bool:
        """Whether its time is a latency."""
        return self.status in ("ok", "unstable") and bool(self.readings)

    @property
    def median_us(self) -> float:
        """Mean of the passes' medians."""
        return math.fsum(r.median_us for r in self.readings) / len(self.readings)

    @property
    def energy_mj(self) -> float | None:
        """Mean of the passes' energies of a call; None where the card did not count."""
        known = [r.energy_mj for r in self.readings if r.energy_mj is not None]
        return math.fsum(known) / len(known) if known else None

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        many = {name: [r.to_json() for r in getattr(self, name)] for name in ("readings", "rejected")}
        return {"schema": SCHEMA, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **many}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GpuRow:
        """Inverse of `to_json`. Raises ValueError on another schema."""
        if data.pop("schema", None) != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        many = {name: tuple(Reading.from_json(r) for r in data[name]) for name in ("readings", "rejected")}
        return cls(**{**data, **many})


@dataclass
class GpuLog:
    """Rows in a file of JSON lines, appended one by one: an interrupt costs the cell it was on.

    Args:
        path: Of the file.
        rows: By key and kernel; a later line of the same wins.
    """

    path: Path
    rows: dict[Key, GpuRow] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> GpuLog:
        """Read a log; empty where there is no file. Raises TableError on a line that cannot be read."""
        log = cls(path)
        if path.is_file():
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                try:
                    row = GpuRow.from_json(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise TableError(
                        f"{path}, line {number}: {error}. The file was cut off or edited; remove the line, and the cell is measured again."
                    ) from None
                log.rows[row.key, row.kernel] = row
        return log

    def add(self, row: GpuRow) -> None:
        """Keep a row, on disk first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row.to_json(), allow_nan=False) + "\n")
        self.rows[row.key, row.kernel] = row


def cells_of(layers: Sequence[Layer], candidates: Sequence[Candidate], backend: Backend, batch: int) -> dict[Key, tuple[Layer, Candidate]]:
    """Each shape and kernel once, under its key."""
    found: dict[Key, tuple[Layer, Candidate]] = {}
    for layer in layers:
        for candidate in candidates:
            kernel = backend.supports(layer, candidate).kernel
            if kernel is not None:
                found.setdefault((row_key(layer, batch), str(kernel)), (layer, kernel))
    return found


@dataclass
class GpuProfiler:
    """Measures cells on one card.

    Args:
        backend: Builds them.
        timer: CUDA. monitor: NVML.
        anchor: A fixed piece of work; another time of it is another state of the card.
        settings: How.
        seed: Of the order.
        clock: Gives the date; a test gives its own.
    """

    backend: Backend
    timer: GraphTimer
    monitor: Monitor
    anchor: Cell
    settings: GpuSettings = field(default_factory=GpuSettings)
    seed: int = 0
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def profile(
        self, cells: Cells, log: GpuLog, batch: int, on_row: Callable[[int, int, str], None] | None = None, deadline: Callable[[], bool] = lambda: False
    ) -> int:
        """Measure what the log lacks or has as crashed.

        Every cell is read twice, in two passes over random orders; a reading with trouble is taken again at the end of the queue.

        Args:
            cells: By key.
            log: Rows are added as they are finished.
            batch: Images in a call.
            on_row: Progress: rows done, rows in all, which.
            deadline: Whether time is up: it is asked between cells, and what is measured is kept.

        Returns: Cells that are left.
        Raises: ForeignProcessError: Somebody else computes on the card.
        """
        wanted = [key for key in cells if key not in log.rows or log.rows[key].status == "crash"]
        group, done, size = list(wanted), 0, self.settings.anchor_every
        random.Random(self.seed).shuffle(group)
        for start in range(0, len(group), size):
            if deadline():
                break
            for row in self._group({key: cells[key] for key in group[start : start + size]}, batch, deadline):
                log.add(row)
                done += 1
                if on_row is not None:
                    on_row(done, len(wanted), f"{cells[row.key, row.kernel][0].name} {row.kernel}: {row.status}")
        return len(wanted) - done

    def _group(self, cells: Cells, batch: int, deadline: Callable[[], bool]) -> list[GpuRow]:
        """Some cells between two readings of the anchor, all of them again if it has moved in between."""
        work: dict[Key, _Work] = {}
        for _ in range(self.settings.tries):
            before = read_cell(self.anchor, self.timer, self.monitor, self.settings).median_us
            work = {key: _Work(work[key].readings if key in work else []) for key in cells}
            self._passes(cells, work, batch, deadline)
            after = read_cell(self.anchor, self.timer, self.monitor, self.settings).median_us
            steady = abs(after - before) <= self.settings.anchor_moved * before
            if steady or deadline():
                break
        return [self._row(key, cells[key], work[key], before, steady) for key in cells if work[key].finished(self.settings.tries)]

    def _passes(self, cells: Cells, work: dict[Key, _Work], batch: int, deadline: Callable[[], bool]) -> None:
        order = list(cells)
        draw = random.Random(self.seed + 1)
        queue: deque[Key] = deque()
        for _ in range(2):
            draw.shuffle(order)
            queue.extend(order)
        while queue and not deadline():
            key = queue.popleft()
            held = work[key]
            if held.cell is None and held.crash is None:
                self._build(cells[key], held, batch)
            if held.cell is None or not held.right:
                continue
            try:
                reading = read_cell(held.cell, self.timer, self.monitor, self.settings)
            except ForeignProcessError:
                raise
            except Exception as error:  # CUDA's errors have no common class
                held.crash, held.cell = _said(error), None
                continue
            (held.rejected if reading.trouble else held.good).append(reading)
            if reading.trouble and len(held.rejected) < self.settings.tries:
                queue.append(key)

    def _build(self, cell: tuple[Layer, Candidate], held: _Work, batch: int) -> None:
        try:
            held.cell = self.backend.build(*cell, batch)
        except MpsearchError:
            raise
        except Exception as error:  # a kernel that does not compile or launch is a row that says so
            held.crash = _said(error)

    def _row(self, key: Key, cell: tuple[Layer, Candidate], held: _Work, anchor_us: float, steady: bool) -> GpuRow:
        readings = held.good[:2]
        status = held.status
        if status == "ok" and (len(readings) < 2 or not steady):
            status = "unstable"
            readings = sorted([*held.good, *held.rejected], key=lambda r: r.iqr_us / r.median_us)[:2]
        error = math.nan if held.cell is None else held.cell.relative_error
        executed = held.crash or " ".join(held.cell.executed if held.cell is not None else ())
        numbers = (error if math.isfinite(error) else sys.float_info.max, self.backend.packed_bytes(*cell))
        kept = tuple(r for r in held.readings if all(r is not used for used in readings))
        return GpuRow(*key, status, executed, *numbers, tuple(readings), kept, anchor_us, self.clock().isoformat(timespec="seconds"))


@dataclass
class _Work:
    """A cell in the making."""

    earlier: list[Reading] = field(default_factory=list)
    rejected: list[Reading] = field(default_factory=list)
    good: list[Reading] = field(default_factory=list)
    cell: Cell | None = None
    crash: str | None = None

    @property
    def readings(self) -> list[Reading]:
        """All there are: `earlier` ones, beside which the anchor moved, those with trouble, the good ones."""
        return [*self.earlier, *self.rejected, *self.good]

    @property
    def right(self) -> bool:
        """Whether it runs what was asked, with right numbers: only then is it timed."""
        return self.cell is not None and self.cell.as_asked and self.cell.relative_error <= self.cell.tolerance

    @property
    def status(self) -> str:
        """As in `GpuRow`, but for `unstable`."""
        if self.cell is None:
            return "crash"
        return "ok" if self.right else "fallback" if self.cell.relative_error <= self.cell.tolerance else "wrong"

    def finished(self, tries: int) -> bool:
        """Whether there is all to say of it: not where time was up in the middle."""
        return self.crash is not None or (self.cell is not None and (not self.right or len(self.good) >= 2 or len(self.rejected) >= tries))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:160]


@dataclass(frozen=True)
class GpuCosts:
    """What a log says of a model.

    Args:
        latency_us: `L x C_l`; infinite where there is no usable row. energy_mj: The same of energy.
        unusable: (layer, candidate, why).
    """

    latency_us: tuple[tuple[float, ...], ...]
    energy_mj: tuple[tuple[float, ...], ...]
    unusable: tuple[tuple[str, str, str], ...]


def gpu_costs(layers: Sequence[Layer], candidates: Sequence[Sequence[Candidate]], backend: Backend, log: GpuLog, batch: int) -> GpuCosts:
    """Latency and energy of every unit at every candidate, over all its calls: the columns `latency_us` and `energy_mj` of a problem's costs."""
    latency, energy, unusable = [], [], []
    for layer, choices in zip(layers, candidates, strict=True):
        found = []
        for candidate in choices:
            support = backend.supports(layer, candidate)
            row = None if support.kernel is None else log.rows.get((row_key(layer, batch), str(support.kernel)))
            if row is not None and row.usable:
                found.append((row.median_us * layer.calls, math.inf if row.energy_mj is None else row.energy_mj * layer.calls))
                continue
            why = support.reason if support.kernel is None else "not measured" if row is None else f"{row.status}: {row.executed}"
            unusable.append((layer.name, str(candidate), why))
            found.append((math.inf, math.inf))
        latency.append(tuple(us for us, _ in found))
        energy.append(tuple(mj for _, mj in found))
    return GpuCosts(tuple(latency), tuple(energy), tuple(unusable))
