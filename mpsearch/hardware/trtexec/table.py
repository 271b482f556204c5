"""Builds of one model become a latency table: rows of units and groups, edges, the rest, and whole-model
runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch import files
from mpsearch.errors import TableError
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.hardware.rows import ModelRun, Row, row_key
from mpsearch.hardware.table import LatencyTable
from mpsearch.hardware.trtexec.account import Account, Entry, account
from mpsearch.hardware.trtexec.align import Signature, aligned, kernels_of_build, signature
from mpsearch.hardware.trtexec.builds import Build
from mpsearch.hardware.trtexec.engine import LEAST_COUNT
from mpsearch.hardware.trtexec.shapes import absorbed, kernel_of, row_kernel, unit_layer
from mpsearch.hardware.wires import Wire, model_key
from mpsearch.problem import Layer

BACKEND = "tensorrt"
METHOD = (
    "trtexec --separateProfileRun --useCudaGraph --noDataTransfers --useSpinWait: rows are median times of "
    "engine layers inside whole models, with what was fused into them; whole-model runs are medians of the "
    "two halves of the timing run. Kernels: float is half precision; >float is an integer kernel that "
    "writes float."
)
Cells = dict[tuple[str, str, str], list[tuple[float, Entry]]]


@dataclass(frozen=True)
class Network:
    """The model that builds are of.

    Args:
        name: For people.
        layers: Its units and the tensors whose precision is a choice.
        wires: Between them.
        asked: Build -> kernel asked for of each layer, where that is known; any other is a fall-back.
    """

    name: str
    layers: tuple[Layer, ...]
    wires: tuple[Wire, ...]
    asked: Mapping[str, tuple[str, ...]]

    @property
    def key(self) -> str:
        """What its whole-model runs are kept under."""
        return model_key(self.name, self.layers, self.wires)


@dataclass(frozen=True)
class Imported:
    """What was made of a folder of builds.

    Args:
        table: Rows and runs.
        accounts: Build -> what each of its layers is.
        runs: Build -> its whole-model run.
    """

    table: LatencyTable
    accounts: Mapping[str, Account]
    runs: Mapping[str, ModelRun]


def import_builds(
    builds: Sequence[Build],
    network: Network | None,
    *,
    date: str,
    device: DeviceIdentity | None = None,
    version: str | None = None,
    allow_estimate: bool = False,
) -> Imported:
    """The table of some builds.

    Args:
        builds: From `read_builds`.
        network: Their model; None takes each engine layer with a weight for a unit.
        date: UTC, ISO 8601.
        device: Where the files do not tell.
        version: Of TensorRT, where the files do not tell.
        allow_estimate: Take profiles of a single iteration.

    Raises:
        TableError: An engine is of another model; two builds cannot be told apart; a profile has one
            iteration; or nobody says what the device is.
    """
    device = device or builds[0].device
    if device is None:
        raise TableError(
            f"No file of {builds[0].name} tells the device. Keep trtexec's output beside them as "
            f"{builds[0].name}.log."
        )
    for build in builds:
        if build.count == 1 and not allow_estimate:
            raise TableError(
                f"The profile of {build.name} is of one iteration, which tells little of any layer. Profile "
                "again with --iterations=100 --duration=5, or pass --allow-estimate."
            )
    if version is None or builds[0].version != "unknown":
        version = builds[0].version
    table = LatencyTable(device, BACKEND, version, 1, method=METHOD, batch=builds[0].batch)
    cells: Cells = defaultdict(list)
    accounts, runs, owners = {}, {}, dict[object, str]()
    for build in builds:
        known = None if network is None else {layer.name for layer in network.layers}
        found = account(build.layers, known)
        if network is not None and not found.of("unit", "group"):
            found = account(build.layers)  # another exporter's names: by shape
        accounts[build.name] = found
        run = _collect(build, found, network, cells, date)
        if run.key in table.models:
            if network is None:
                raise TableError(
                    f"{owners[run.key]} and {build.name} have the same kernels in all units, and only the "
                    "model's graph tells what else differs, such as quantised residual branches. Name it "
                    "with --model and --data."
                )
            run = _joined(table.models[run.key], run)
        table.models[run.key] = runs[build.name] = run
        owners[run.key] = build.name
    rows = [_row(key, kernel, kind, held, date) for (key, kernel, kind), held in cells.items()]
    rows.sort(key=lambda row: row.usable)  # a fall-back in one engine hides no row that another has
    table.rows = {(row.key, row.kernel): row for row in rows}
    _require_one_model(runs)
    return Imported(table, accounts, runs)


def _collect(build: Build, found: Account, network: Network | None, cells: Cells, date: str) -> ModelRun:
    """Add the entries of a build to the cells, and return its run."""
    batch = build.batch
    for entry in found.of("edge"):
        engine = entry.layer
        types = f"{engine.input_type}>{engine.output_type}"
        cells[f"edge {engine.inputs[0].shape} {types}", _change(types), "edge"].append(
            (engine.median_us, entry)
        )
    for entry in found.of("other"):
        engine = entry.layer
        if engine.median_us > 0 and engine.inputs and engine.outputs:
            key = f"{engine.parameter_type or engine.kind} {engine.inputs[0].shape}>{engine.outputs[0].shape}"
            cells[f"{key} {engine.input_type}>{engine.output_type}", "other", "other"].append(
                (engine.median_us, entry)
            )
    if network is None:
        return _collect_unnamed(build, found, cells, date)
    entries = aligned(build.name, network.layers, found)
    kernels = kernels_of_build(network.layers, entries, found)
    asked = network.asked.get(build.name, kernels)
    missed, shared = set[str](), dict[int, list[Layer]]()
    for layer, want in zip(network.layers, asked, strict=True):
        if layer.name not in entries:
            continue
        entry = entries[layer.name]
        shared.setdefault(id(entry.layer), []).append(layer)
        if entry.role == "group":
            continue
        if kernel_of(entry.layer) != want:
            missed.add(layer.name)
        kernel = row_kernel(entry.layer) if layer.name not in missed else f"{want} fallback"
        cells[row_key(layer, batch), kernel, "layer"].append((entry.layer.median_us, entry))
    for entry in found.of("group"):
        held = shared.get(id(entry.layer), [])
        key = " + ".join(row_key(layer, batch) for layer in held) or f"block {entry.layer.name}"
        cells[key, kernel_of(entry.layer), "group"].append((entry.layer.median_us, entry))
    return _run(build, network.key, asked, "fallback" if missed else "ok", date)


def _collect_unnamed(build: Build, found: Account, cells: Cells, date: str) -> ModelRun:
    """As `_collect`, for units that are known by their shapes alone; they count in the order of these."""
    units: list[tuple[Signature, str]] = []
    for entry in found.of("unit"):
        layer = unit_layer(entry.layer)
        if layer is None:
            cells[f"block {entry.layer.name}", kernel_of(entry.layer), "group"].append(
                (entry.layer.median_us, entry)
            )
            continue
        units.append((signature(layer), kernel_of(entry.layer)))
        cells[row_key(layer, build.batch), row_kernel(entry.layer), "layer"].append(
            (entry.layer.median_us, entry)
        )
    for entry in found.of("group"):
        cells[f"block {entry.layer.name}", kernel_of(entry.layer), "group"].append(
            (entry.layer.median_us, entry)
        )
    units.sort()
    model = f"engine-{files.digest([s for s, _ in units])}"
    return _run(build, model, tuple(kernel for _, kernel in units), "ok", date)


def _change(types: str) -> str:
    """What an edge does to a tensor."""
    source, _, target = types.partition(">")
    if source != "int8" and target == "int8":
        return "quantize"
    return "dequantize" if source == "int8" and target != "int8" else "copy"


def _row(key: str, kernel: str, kind: str, held: Sequence[tuple[float, Entry]], date: str) -> Row:
    """One row of all layers of one shape and kernel: the mean of their medians, so that sums stay sums."""
    times = np.array([us for us, _ in held])
    count = min(entry.layer.count for _, entry in held)
    asked, _, fallback = kernel.partition(" ")
    status = "fallback" if fallback else "unstable" if count < LEAST_COUNT else "ok"
    low, high = np.percentile(times, (25, 75))
    layers = sorted({absorbed(entry.layer) for _, entry in held})
    ran = layers[0] + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")
    mean, size = float(times.mean()), held[0][1].layer.weight_bytes
    numbers = (mean, float(high - low), count, size)
    return Row(key, asked, status, *numbers, ran, 0.0, date, kind, float(times.min()), clock="gpu")


def _run(build: Build, model: str, kernels: tuple[str, ...], status: str, date: str) -> ModelRun:
    times = np.array(build.times_us)
    halves = tuple(float(np.median(half)) for half in np.array_split(times, 2))
    low, high = np.percentile(times, (25, 75))
    return ModelRun(model, build.batch, kernels, halves, float(high - low), 0.0, status, "gpu", date)


def _joined(first: ModelRun, second: ModelRun) -> ModelRun:
    passes = (*first.passes_us, *second.passes_us)
    return ModelRun(
        first.model,
        first.batch,
        first.kernels,
        passes,
        max(first.iqr_us, second.iqr_us),
        0.0,
        second.status,
        "gpu",
        second.date,
    )


def _require_one_model(runs: Mapping[str, ModelRun]) -> None:
    (first, run), *others = runs.items()
    for name, other in others:
        if other.model != run.model:
            raise TableError(
                f"{first} and {name} are engines of different models: their units differ in shape. Give "
                "each model a folder of its own."
            )
