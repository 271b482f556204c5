"""`mpsearch profile --from trtexec:DIR`: a latency table from engines that were built and timed elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mpsearch.errors import TableError
from mpsearch.hardware.cost_model import CostModel
from mpsearch.hardware.table import require_writable
from mpsearch.hardware.trtexec import (
    Build,
    Imported,
    Network,
    fit_network,
    import_builds,
    read_manifest,
    read_predictions,
)
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.network import network_of


@dataclass(frozen=True)
class Compared:
    """A build as the fitted cost model has it.

    Args:
        name: Of the build.
        measured_us: Median of the whole model.
        predicted_us: What was predicted when its input was written; else by the model that was fitted to all
            builds; None where the network is not known.
        before: Whether it was predicted before it was built.
        share: Sum of the profile's layers over the measured median.
    """

    name: str
    measured_us: float
    predicted_us: float | None
    share: float
    before: bool = False


@dataclass(frozen=True)
class TrtexecTable:
    """What an import gave.

    Args:
        imported: Table and accounts.
        path: The table's file.
        builds: By name.
        model: The cost model; None where the network is not known.
    """

    imported: Imported
    path: Path
    builds: tuple[Compared, ...]
    model: CostModel | None


def import_trtexec(
    folder: Path,
    builds: Sequence[Build],
    config: RunConfig | None,
    tables: Path,
    progress: Progress,
    allow_estimate: bool = False,
) -> TrtexecTable:
    """Read a folder of builds into this folder of tables.

    Args:
        folder: Where trtexec's files are.
        builds: What `read_builds` has read there.
        config: Model and images; None where `builds.json` says what was built, or each engine layer is to be
            taken for a unit.
        tables: Folder of latency tables.
        progress: Where progress goes.
        allow_estimate: Take profiles of a single iteration.
    Raises: TableError: A file is bad, or the engines are of another model.
    """
    network, batch = read_manifest(folder) or (None, builds[0].batch)
    if batch != builds[0].batch:
        raise TableError(
            f"The engines of {folder} take {builds[0].batch} images in a call, and its builds.json says "
            f"{batch}. Build them by its build.sh as it is."
        )
    require_writable(tables)
    if network is None and config is not None:
        network = network_of(load_subject(config, progress, labelled=False))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    imported = import_builds(builds, network, date=date, allow_estimate=allow_estimate)
    model = None if network is None else _fitted(imported, network)
    found, expected = [], read_predictions(folder)
    for build in builds:
        run = imported.runs[build.name]
        known = model is not None and all(
            kernel in unit.rows_us for unit, kernel in zip(model.units, run.kernels, strict=True)
        )
        predicted = model.predict(run.kernels) if model is not None and known else None
        before = expected.get(build.name)
        told = predicted if before is None else before
        share = build.total_us / build.median_us
        found.append(Compared(build.name, build.median_us, told, share, before is not None))
    return TrtexecTable(imported, imported.table.save(tables), tuple(found), model)


def _fitted(imported: Imported, network: Network) -> CostModel:
    return fit_network(network.layers, network.wires, imported.table, list(imported.table.models.values()))
