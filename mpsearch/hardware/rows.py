"""What a latency table holds: measured cells and whole-model runs, and what makes one of them readable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mpsearch.errors import TableError
from mpsearch.problem import Layer

STATUSES = ("ok", "unstable", "fallback", "wrong", "unsupported", "crash")
"""Only `ok` and `unstable` (right, but its spread stayed too wide after every try) are ever a latency."""
USABLE = ("ok", "unstable")
KINDS = ("layer", "group", "edge", "other")
CLOCKS = ("cpu", "wall", "gpu")


@dataclass(frozen=True)
class Row:
    """One measured cell.

    Args:
        key: Everything that decides the kernel: operator, shapes, attributes, bias, batch.
        kernel: Candidate that was timed; of an edge, what the tensor becomes (`quantize`, `dequantize`,
            `copy`).
        status: One of `STATUSES`.
        median_us: For one call.
        iqr_us: Distance of the quartiles.
        repeats: Samples.
        weight_bytes: Bytes of the weight as this kernel holds it.
        executed: Operators that ran.
        relative_error: Against float64 arithmetic.
        date: UTC, ISO 8601.
        kind: `layer` (a unit), `group` (several units in one kernel, whose time is not divided), `edge` (a
            change of precision), `other` (what is not quantised).
        min_us: Least sample.
        rounds: Medians of the passes, in order, separated by blanks: how far two of the same lie apart.
        anchor_us: The fixed piece of work that was timed beside it; another anchor is another state of the
            machine.
        clock: `cpu` (time of the process), `wall`, or `gpu` (events around a CUDA graph).
        energy_mj: Energy of one call; None where the device counts none.
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
    kind: str = "layer"
    min_us: float = 0.0
    rounds: str = ""
    anchor_us: float = 0.0
    clock: str = "cpu"
    energy_mj: float | None = None

    @property
    def usable(self) -> bool:
        """Whether its time is a latency."""
        return self.status in USABLE

    @property
    def aa_error(self) -> float | None:
        """|a - b| / mean of its first two passes; None where there was one."""
        passes = [float(text) for text in self.rounds.split()]
        return abs(passes[0] - passes[1]) / (sum(passes[:2]) / 2) if len(passes) > 1 else None


@dataclass(frozen=True)
class ModelRun:
    """A whole model at one assignment, measured twice.

    Args:
        model: Name for people and digest of its layers and wiring, such as `resnet18-3f2a...`.
        batch: Images in a call.
        kernels: For each layer, in order, the candidate whose kernel was asked for.
        passes_us: Medians of interleaved passes, in order.
        iqr_us: Distance of the quartiles, the greatest of the passes.
        anchor_us: Time of the anchor, which shows the state of the machine meanwhile.
        status: `ok`, `unstable` (its spread stayed too wide), or `fallback` where other kernels ran than were
            asked; such a run teaches nothing.
        clock: Kind of clock, as of a row.
        date: UTC, ISO 8601.
        energies_mj: Energy of a call in each pass, where the device counts it; else empty.
    """

    model: str
    batch: int
    kernels: tuple[str, ...]
    passes_us: tuple[float, ...]
    iqr_us: float
    anchor_us: float
    status: str
    clock: str
    date: str
    energies_mj: tuple[float, ...] = ()

    @property
    def latency_us(self) -> float:
        """Mean of the passes."""
        return math.fsum(self.passes_us) / len(self.passes_us)

    @property
    def spread(self) -> float:
        """The greater of the quartiles' and the passes' distance, as a share of the latency."""
        return max(self.iqr_us, max(self.passes_us) - min(self.passes_us)) / self.latency_us

    @property
    def key(self) -> tuple[str, int, tuple[str, ...]]:
        """What two runs of the same have in common."""
        return self.model, self.batch, self.kernels

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`; energies only where there are some, so that lines of devices without
        are as they ever were.
        """
        return {name: value for name, value in asdict(self).items() if name != "energies_mj" or value}


ENERGY = "energy_mj"
"""Column that a table has only where a row has an energy, so that tables of other devices are as they ever
were.
"""
COLUMNS = tuple(f.name for f in fields(Row) if f.name != ENERGY)
_REALS = ("median_us", "iqr_us", "relative_error", "min_us", "anchor_us")
_WHOLE = ("repeats", "weight_bytes")
_REMOVE = "Remove the line, or measure again."


def row_key(layer: Layer, batch: int) -> str:
    """What decides a kernel but the candidate; the layer's name does not."""
    parts = [layer.op, "+".join("x".join(map(str, (s[0] * batch, *s[1:]))) for s in layer.input_shapes)]
    if layer.weight_shape:
        parts.append("w" + "x".join(map(str, layer.weight_shape)))
    if layer.conv is not None:
        c = layer.conv
        parts.append(
            f"s{c.stride[0]},{c.stride[1]} p{c.padding[0]},{c.padding[1]} "
            f"d{c.dilation[0]},{c.dilation[1]} g{c.groups}"
        )
    return " ".join([*parts, "bias" if layer.bias else "no bias"])


def read_row(where: str, record: Mapping[str | None, str | None]) -> Row:
    """A row from the texts of a CSV line. Raises TableError, naming `where` and the value."""
    if None in record or None in record.values():
        raise TableError(
            f"{where}, does not have {len(record)} fields: the file was cut off or edited. {_REMOVE}"
        )
    text = {c: str(record[c]) for c in COLUMNS}
    counted = {ENERGY: str(record[ENERGY])} if record.get(ENERGY) else {}
    try:
        numbers: dict[str, float] = {c: float(text[c]) for c in _REALS} | {c: int(text[c]) for c in _WHOLE}
        numbers |= {c: float(value) for c, value in counted.items()}
        [float(part) for part in text["rounds"].split()]
    except ValueError as error:
        raise TableError(f"{where}: {error}. {_REMOVE}") from None
    for column, value in numbers.items():
        if (
            not math.isfinite(value)
            or value < 0
            or (column == "median_us" and value == 0 and text["status"] in USABLE)
        ):
            raise TableError(
                f"{where}: {column} is {(text | counted)[column]}; it must be finite and positive. {_REMOVE}"
            )
    for column, known in (("status", STATUSES), ("kind", KINDS), ("clock", CLOCKS)):
        if text[column] not in known:
            raise TableError(f"{where}: {column} {text[column]!r} is none of {', '.join(known)}. {_REMOVE}")
    return Row(**{**text, **numbers})  # type: ignore[arg-type]


def read_run(where: str, data: Any) -> ModelRun:
    """A whole-model run from a line of JSON. Raises TableError, naming `where` and what is wrong."""
    names = {f.name for f in fields(ModelRun)} - {"energies_mj"}
    if not isinstance(data, dict) or set(data) - {"energies_mj"} != names:
        raise TableError(
            f"{where}, is not a whole-model run with the fields {', '.join(sorted(names))}. {_REMOVE}"
        )
    try:
        passes = {name: tuple(float(v) for v in data.get(name, ())) for name in ("passes_us", "energies_mj")}
        run = ModelRun(**{**data, "kernels": tuple(map(str, data["kernels"])), **passes})
        times = [*run.passes_us, *run.energies_mj, float(run.iqr_us), float(run.anchor_us)]
    except (TypeError, ValueError) as error:
        raise TableError(f"{where}: {error}. {_REMOVE}") from None
    if not run.passes_us or not all(math.isfinite(v) and v >= 0 for v in times) or min(run.passes_us) <= 0:
        raise TableError(
            f"{where}: the times are {list(data['passes_us'])}; they must be finite and positive. {_REMOVE}"
        )
    if run.status not in STATUSES or run.clock not in CLOCKS:
        raise TableError(f"{where}: status {run.status!r} or clock {run.clock!r} is not known. {_REMOVE}")
    return run
