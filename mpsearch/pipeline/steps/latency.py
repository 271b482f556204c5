"""Step 2: what each candidate takes on this device: measured rows, whole-model runs, and the cost model that
puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpsearch.errors import OptionError, TableError
from mpsearch.hardware import Backend, LatencyTable, ModelRun, latency_costs, profile
from mpsearch.hardware.bench import TRIES
from mpsearch.hardware.cost_fit import fit_cost_model
from mpsearch.hardware.cost_model import Unit
from mpsearch.hardware.predict import RowPredictor
from mpsearch.hardware.profile import missing_cells
from mpsearch.hardware.table import require_writable
from mpsearch.hardware.whole import Kernels, WholeModel, measure_models, mixed_kernels
from mpsearch.hardware.wires import Wire, model_key
from mpsearch.pipeline.config import RunConfig, limits
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.energy import add_energy, require_counter
from mpsearch.pipeline.steps.engines import given_table
from mpsearch.pipeline.steps.fitted import require_trust, with_costs, without
from mpsearch.problem import FLOAT, Candidate, Problem

MODEL_SECONDS = 0.3
"""Time of measuring for each whole model, where the bench counts seconds."""
MIXED_RUNS = 24
"""Whole-model runs that a latency budget is predicted from; without one the uniform models are enough."""


@dataclass(frozen=True)
class Architecture:
    """What whole-model runs are of.

    Args:
        name: For people.
        wires: Between the units.
        build: Makes the whole model, with these kernels, ready to run.
    """

    name: str
    wires: tuple[Wire, ...]
    build: Callable[[Kernels], WholeModel]


def latency_table(
    problem: Problem, config: RunConfig, progress: Progress, at_most: int | None = None
) -> tuple[LatencyTable, Path]:
    """The table that was asked for, or this device's, with what it lacks measured now (at most so many
    rows).
    """
    backend, folder = backend_of(config), Path(config.tables)
    if config.table is not None:
        return _given_table(config, backend), Path(config.table)
    table = LatencyTable.open(folder, backend.device(), backend.name, backend.version, config.threads)
    widths = tuple((*choices, FLOAT) for choices in problem.candidates)
    if at_most is not None and not backend.bench().predicts_rows:
        raise OptionError(
            f"--at-most picks rows by a model of CPUs, and --target {config.target} is a GPU. Leave it "
            "out: every row is measured."
        )
    with progress.task("measure latencies that the table lacks") as advance:
        profile(
            problem.layers,
            widths,
            backend,
            table,
            folder,
            batch=config.batch,
            isolate=True,
            at_most=at_most,
            on_row=lambda done, total, _: advance(done, total),
        )
    return table, folder / table.file_name


CELL_SECONDS, RUN_SECONDS = 0.4, 3.0
"""What a row and a whole model take to measure, about."""


def lacking_seconds(problem: Problem, config: RunConfig) -> float:
    """What it takes, about, to measure what the table lacks for a model; 0 for a table that was given."""
    if not has_backend(config) or config.table is not None or config.deployment.elsewhere:
        return 0.0
    backend, folder = backend_of(config), Path(config.tables)
    table = LatencyTable.open(folder, backend.device(), backend.name, backend.version, config.threads)
    widths = tuple((*choices, FLOAT) for choices in problem.candidates)
    lacking = missing_cells(problem.layers, widths, backend, table, config.batch)
    runs = MIXED_RUNS if timed(config) else 3
    return CELL_SECONDS * len(lacking) + (RUN_SECONDS * runs if lacking else 0.0)


def require_tables(config: RunConfig) -> None:
    """Told before anything is loaded: that the target's device is missing, the table that was asked for
    cannot be used, or the folder of tables is none.

    Raises:
        TableError: The latter two.
        UserError: As `Backend.require`.
        BudgetError: A budget limits energy, and the device counts none.
    """
    if not has_backend(config):
        return
    if config.deployment.elsewhere:
        given_table(config)
        return
    backend_of(config).require()
    require_counter(config)
    folder = Path(config.tables)
    blocking = next(
        (place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None
    )
    if config.table is None and blocking is not None:
        raise TableError(
            f"{blocking} is a file; the latency tables are kept in a folder. Name another with --tables."
        )
    if config.table is not None:
        _given_table(config, backend_of(config))
    else:
        require_writable(folder)


def _given_table(config: RunConfig, backend: Backend) -> LatencyTable:
    device = backend.device()
    here = LatencyTable(device, backend.name, backend.version, config.threads)
    return LatencyTable.load(Path(str(config.table)), device, fits=here, allow_estimate=config.allow_estimate)


def has_backend(config: RunConfig) -> bool:
    """Whether the target's units can be timed; `packed` has a size alone."""
    return config.deployment.backend(config.threads) is not None


def backend_of(config: RunConfig) -> Backend:
    """The backend of a target. Raises OptionError where it has none."""
    backend = config.deployment.backend(config.threads)
    if backend is None:
        raise OptionError(
            f"--target {config.target} has no runtime that could be timed. Take another, such as "
            "--target ort-cpu."
        )
    return backend


def timed(config: RunConfig) -> bool:
    """Whether there is a budget on latency or energy, which whole models are measured for."""
    return limits(config, "latency_us", "energy_mj")


def add_latency(
    problem: Problem,
    config: RunConfig,
    table: LatencyTable,
    where: Path,
    architecture: Architecture,
    progress: Progress,
    at_least: int = 0,
) -> tuple[Problem, dict[str, Any]]:
    """Costs, conversions and the constant of the latency, from the cost model; it is fitted to `at_least` so
    many whole-model runs, or more if need be.

    Raises:
        InfeasibleError: A layer has no candidate with a usable row.
        TableError: The table lacks a float row; or there is a latency budget, and the latency of mixed
            assignments cannot be predicted well enough.
    """
    backend = backend_of(config)
    # a table that was given is not added to: what it lacks is predicted, if estimates are welcome
    predictor = RowPredictor(table.rows) if config.table is not None and config.allow_estimate else None
    costs = latency_costs(
        problem.layers, problem.candidates, backend, table, batch=config.batch, predictor=predictor
    )
    unusable = costs.unusable
    if costs.predicted:
        widest = max(spread for *_, spread in costs.predicted)
        progress.say(
            f"{len(costs.predicted)} latencies are not in {where} and are predicted, with standard "
            f"deviations of up to {widest:.0%}."
        )
    if unusable:
        problem = without(
            problem,
            [[i for i, value in enumerate(row) if math.isfinite(value)] for row in costs.rows],
            unusable,
        )
    kernels = _kernels(problem, backend)
    units = _units(problem, kernels, backend, table, where, predictor, config.batch)
    wires = [replace(wire, numel=wire.numel * config.batch) for wire in architecture.wires]
    runs = whole_runs(
        problem,
        units,
        table,
        where.parent if config.table is None else None,
        architecture,
        config,
        progress,
        at_least,
    )
    model = fit_cost_model(units, wires, runs, backend.bench().bytes_per_us)
    require_trust(model, config, "latency_us", progress)
    problem = with_costs(problem, "latency_us", model, kernels, costs.estimated)
    about: dict[str, Any] = {
        "device": table.device.to_json(),
        "backend": backend.name,
        "version": backend.version,
        "threads": config.threads,
        "batch": config.batch,
    }
    about |= {
        "table": str(where),
        "estimated": costs.estimated,
        "unusable": [list(u) for u in unusable],
        "unstable": [list(u) for u in costs.unstable],
    }
    about |= {"predicted": [list(p) for p in costs.predicted]}
    about |= {
        "model": dict(zip(model.names, model.values, strict=True)),
        "error": model.error.to_json() if model.error else None,
        "runs": len(runs),
    }
    about |= {"float_latency_us": next(run.latency_us for run in runs if set(run.kernels) == {"float"})}
    problem, energy = add_energy(problem, config, backend, table, where, kernels, wires, runs, progress)
    about |= energy
    return problem, about


def whole_runs(
    problem: Problem,
    units: Sequence[Unit],
    table: LatencyTable,
    folder: Path | None,
    architecture: Architecture,
    config: RunConfig,
    progress: Progress,
    at_least: int = 0,
) -> list[ModelRun]:
    """The whole-model runs of an architecture: the table's, and those it lacks, measured now and kept in it.

    The uniform models, and `MIXED_RUNS` in all where there is a latency budget: a run finds those of an
    earlier one, or of `mpsearch profile --models`. Of the latter those that do not hold still are measured
    again, and the steadiest reading is kept.

    Args:
        problem: For ties.
        units: Whose kernels are mixed.
        table: Where runs are kept; an estimate has none that count here.
        folder: Folder of the table; None where it is not to be written.
        architecture: What is measured.
        config: Settings.
        progress: Where progress goes.
        at_least: How many, without a latency budget too.
    """
    key = model_key(architecture.name, problem.layers, architecture.wires)
    choices = [sorted(unit.rows_us, key=lambda k: k != "float") for unit in units]
    uniform = {k for row in choices for k in row}
    count = max(len(uniform), at_least, MIXED_RUNS if timed(config) else 0)
    wanted = mixed_kernels(choices, problem.ties, count, seed=0)
    held = {} if table.estimated else dict(table.models)
    patient, bench = count > len(uniform), backend_of(config).bench(MODEL_SECONDS)

    def lacking() -> list[Kernels]:
        there = {run.kernels: run.status for run in held.values() if run.key[:2] == (key, config.batch)}
        return [
            kernels
            for kernels in wanted
            if kernels not in there or (patient and there[kernels] == "unstable")
        ]

    with progress.task("measure the whole model at mixed assignments") as advance:
        for _ in range(TRIES):
            asked = lacking()
            if not asked:
                break
            for done, run in enumerate(
                measure_models(key, asked, architecture.build, bench, batch=config.batch), start=1
            ):
                held[run.key] = min(
                    run, held.get(run.key, run), key=lambda r: (r.status == "unstable", r.spread)
                )
                if folder is not None and not table.estimated:
                    table.models[run.key] = held[run.key]
                    table.save(folder)
                advance(done, len(asked))
    return [
        run
        for run in (held[key, config.batch, kernels] for kernels in wanted)
        if run.status in ("ok", "unstable")
    ]


def _kernels(problem: Problem, backend: Backend) -> list[list[str]]:
    """The kernel that each candidate runs."""
    return [
        [str(backend.supports(layer, c).kernel) for c in row]
        for layer, row in zip(problem.layers, problem.candidates, strict=True)
    ]


def _units(
    problem: Problem,
    kernels: Sequence[Sequence[str]],
    backend: Backend,
    table: LatencyTable,
    where: Path,
    predictor: RowPredictor | None,
    batch: int,
) -> list[Unit]:
    """Rows and weight bytes of every kernel of every unit, float always among them: whole float models are
    measured too.
    """
    found = []
    for layer, row in zip(problem.layers, kernels, strict=True):
        choices = [Candidate.parse(name) for name in dict.fromkeys((*row, "float"))]
        costs = latency_costs([layer], [choices], backend, table, batch=batch, predictor=predictor)
        if costs.unusable:
            raise TableError(
                f"{where} has no row for {layer.name!r} in float, so its rows cannot be put together to "
                "a whole model. Measure it with `mpsearch profile`."
            )
        by_kernel = dict(zip(map(str, choices), costs.rows[0], strict=True))
        found.append(Unit(by_kernel, {str(c): backend.packed_bytes(layer, c) for c in choices}))
    return found
