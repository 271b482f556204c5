"""The cost model of a network from a table of engines: units with their rows, tensors that cost nothing by
themselves, and wires between both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mpsearch.errors import TableError
from mpsearch.hardware.cost_fit import fit_cost_model
from mpsearch.hardware.cost_model import CONVERSION, CostModel, Unit
from mpsearch.hardware.rows import ModelRun, Row, row_key
from mpsearch.hardware.table import LatencyTable
from mpsearch.hardware.trtexec.align import TENSORS
from mpsearch.hardware.trtexec.shapes import LEAVES_FLOAT
from mpsearch.hardware.wires import Wire
from mpsearch.problem import Layer

BYTES_PER_US = 2e6
"""Memory that a GPU reads in a microsecond, where a table has no edge; for the prior alone."""
KERNELS = ("float", "W8A8")
"""What a unit or a tensor can be in a strongly typed engine."""
_BASELINE = "fp32"


def network_units(layers: Sequence[Layer], table: LatencyTable) -> list[Unit]:
    """What the cost model knows of each layer: its row in half precision and in int8, and in single
    precision where the table has it.

    An integer kernel that writes float stands in where every one of that shape does. A layer without a
    weight takes no time by itself: what its precision costs is in the wires. A unit that only runs inside a
    group has no time of its own either, and is told from whole engines by the bytes of its weight alone.

    Args:
        layers: Units and tensors.
        table: From `import_builds`.
    Raises: TableError: A unit has no row in half precision.
    """
    return [_unit(layer, table) for layer in layers]


def _unit(layer: Layer, table: LatencyTable) -> Unit:
    if not layer.weight_shape:
        kernels = KERNELS if layer.op in TENSORS else KERNELS[:1]
        return Unit(dict.fromkeys((*kernels, _BASELINE), 0.0), dict.fromkeys((*kernels, _BASELINE), 0))
    found = {kernel: row for kernel in (*KERNELS, _BASELINE) if (row := usable_row(layer, kernel, table))}
    if not found and any(row.kind == "group" for row in table.rows.values()):
        sizes = {
            "float": 2 * layer.weight_numel,
            "W8A8": layer.weight_numel,
            _BASELINE: 4 * layer.weight_numel,
        }
        return Unit(dict.fromkeys(sizes, 0.0), sizes)
    if not found:
        raise TableError(
            f"The table has no row for {layer.name!r} ({row_key(layer, table.batch)}). Profile engines of "
            "this model: `mpsearch profile --target tensorrt --write DIR` writes them."
        )
    return Unit(
        {kernel: row.median_us * layer.calls for kernel, row in found.items()},
        {kernel: row.weight_bytes for kernel, row in found.items()},
    )


def usable_row(layer: Layer, kernel: str, table: LatencyTable) -> Row | None:
    """The row of a unit at a kernel, or at the same one that writes float; None where neither is usable."""
    key = row_key(layer, table.batch)
    for name in (kernel, kernel + LEAVES_FLOAT):
        row = table.rows.get((key, name))
        if row is not None and row.usable:
            return row
    return None


def fit_network(
    layers: Sequence[Layer], wires: Sequence[Wire], table: LatencyTable, runs: Sequence[ModelRun]
) -> CostModel:
    """The cost model that is fitted to whole engines, its error stated from two of them on.

    Args:
        layers: Units and tensors.
        wires: With elements for one image.
        table: Their rows.
        runs: Of one batch; those with a kernel that a unit has no row for teach nothing and are left out.
    Raises: TableError: No run is left, or a unit has no row.
    """
    return fit_runs(network_units(layers, table), wires, table, runs)


def fit_runs(
    units: Sequence[Unit], wires: Sequence[Wire], table: LatencyTable, runs: Sequence[ModelRun]
) -> CostModel:
    """As `fit_network`, of units from `network_units`."""
    told = [
        run
        for run in runs
        if run.status in ("ok", "unstable")
        and all(kernel in unit.rows_us for unit, kernel in zip(units, run.kernels, strict=True))
    ]
    if not told:
        raise TableError(
            "The table has no run of a whole engine of this model. Profile one, such as the plain fp16 one."
        )
    whole = [replace(wire, numel=wire.numel * table.batch) for wire in wires]
    return fit_cost_model(units, whole, told, bytes_per_us(table), leave_one_out=True)


def bytes_per_us(table: LatencyTable) -> float:
    """Memory that a change of precision takes a microsecond for, as the table's edges tell: it sets the
    widths of the prior, and small tensors take the time of a launch.
    """
    rows = [row for row in table.rows.values() if row.kind == "edge" and row.kernel == "quantize"]
    elements = sum(math.prod(map(int, row.key.split()[1].split("x"))) for row in rows)
    return CONVERSION * elements / math.fsum(row.median_us for row in rows) if rows else BYTES_PER_US
