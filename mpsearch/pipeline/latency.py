"""Step 2: what each candidate takes on this device: measured rows, whole-model runs, and the cost model that puts them together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpsearch.errors import InfeasibleError, TableError
from mpsearch.hardware import BACKENDS, Backend, LatencyTable, ModelRun, identity, latency_costs, profile
from mpsearch.hardware.bench import TRIES
from mpsearch.hardware.cost_model import CostModel, Unit, fit_cost_model
from mpsearch.hardware.predict import RowPredictor
from mpsearch.hardware.whole import Kernels, WholeModel, measure_models, mixed_kernels
from mpsearch.hardware.wires import Wire, model_key
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.progress import Progress
from mpsearch.problem import Budget, Candidate, Problem

FLOAT = Candidate.parse("float")
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


def latency_table(problem: Problem, config: RunConfig, progress: Progress, at_most: int | None = None) -> tuple[LatencyTable, Path]:
    """The table that was asked for, or this device's, with what it lacks measured now (at most so many rows)."""
    backend, device, folder = backend_of(config), identity(), Path(config.tables)
    if config.table is not None:
        return _given_table(config, backend), Path(config.table)
    table = LatencyTable.open(folder, device, backend.name, backend.version, config.threads)
    widths = tuple((*choices, FLOAT) for choices in problem.candidates)
    with progress.task("measure latencies that the table lacks") as advance:
        profile(problem.layers, widths, backend, table, folder, isolate=True, at_most=at_most, on_row=lambda done, total, _: advance(done, total))
    return table, folder / table.file_name


def require_tables(config: RunConfig) -> None:
    """Raises TableError where the table that was asked for cannot be used, or the folder of tables is none: told before anything is loaded."""
    if config.target == "packed":
        return
    folder = Path(config.tables)
    blocking = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
    if config.table is None and blocking is not None:
        raise TableError(f"{blocking} is a file; the latency tables are kept in a folder. Name another with --tables.")
    if config.table is not None:
        _given_table(config, backend_of(config))


def _given_table(config: RunConfig, backend: Backend) -> LatencyTable:
    device = identity()
    here = LatencyTable(device, backend.name, backend.version, config.threads)
    return LatencyTable.load(Path(str(config.table)), device, fits=here, allow_estimate=config.allow_estimate)


def backend_of(config: RunConfig) -> Backend:
    """The runtime of a target."""
    return BACKENDS.create(f"{config.target}:threads={config.threads}")


def timed(config: RunConfig) -> bool:
    """Whether there is a budget on latency."""
    return any(Budget.parse(text).resource == "latency_us" for text in config.budgets)


def add_latency(
    problem: Problem, config: RunConfig, table: LatencyTable, where: Path, architecture: Architecture, progress: Progress, at_least: int = 0
) -> tuple[Problem, dict[str, Any]]:
    """Costs, conversions and the constant of the latency, from the cost model; it is fitted to `at_least` so many whole-model runs, or more if need be.

    Raises:
        InfeasibleError: A layer has no candidate with a usable row.
        TableError: The table lacks a float row; or there is a latency budget, and the latency of mixed assignments cannot be predicted well enough.
    """
    backend = backend_of(config)
    # a table that was given is not added to: what it lacks is predicted, if estimates are welcome
    predictor = RowPredictor(table.rows) if config.table is not None and config.allow_estimate else None
    costs = latency_costs(problem.layers, problem.candidates, backend, table, predictor=predictor)
    unusable = costs.unusable
    if costs.predicted:
        widest = max(spread for *_, spread in costs.predicted)
        progress.say(f"{len(costs.predicted)} latencies are not in {where} and are predicted, with standard deviations of up to {widest:.0%}.")
    if unusable:
        problem = _without(problem, [[i for i, value in enumerate(row) if math.isfinite(value)] for row in costs.rows], unusable)
    kernels = _kernels(problem, backend)
    units = _units(problem, kernels, backend, table, where, predictor)
    runs = whole_runs(problem, units, table, where.parent if config.table is None else None, architecture, config, progress, at_least)
    model = fit_cost_model(units, architecture.wires, runs)
    _require_trust(model, config, progress)
    rows = tuple(tuple(model.row(i, kernel) for kernel in row) for i, row in enumerate(kernels))
    conversions = model.conversions(kernels)
    about: dict[str, Any] = {"device": table.device.to_json(), "backend": backend.name, "version": backend.version, "threads": config.threads}
    about |= {"table": str(where), "estimated": costs.estimated, "unusable": [list(u) for u in unusable], "unstable": [list(u) for u in costs.unstable]}
    about |= {"predicted": [list(p) for p in costs.predicted]}
    about |= {"model": dict(zip(model.names, model.values, strict=True)), "error": model.error.to_json() if model.error else None, "runs": len(runs)}
    about |= {"float_latency_us": next(run.latency_us for run in runs if set(run.kernels) == {"float"})}
    return (
        replace(
            problem,
            costs={**problem.costs, "latency_us": rows},
            constants={**problem.constants, "latency_us": model.other_us},
            conversions={**problem.conversions, "latency_us": conversions} if conversions else problem.conversions,
            estimated=("latency_us",) if costs.estimated else (),
        ),
        about,
    )


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

    The uniform models, and `MIXED_RUNS` in all where there is a latency budget: a run finds those of an earlier one, or of `mpsearch profile --models`.
    Of the latter those that do not hold still are measured again, and the steadiest reading is kept.

    Args:
        problem: For ties.
        units: Whose kernels are mixed.
        table: Where runs are kept; an estimate has none that count here.
        folder: Of the table; None where it is not to be written.
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
    patient = count > len(uniform)

    def lacking() -> list[Kernels]:
        there = {run.kernels: run.status for run in held.values() if run.key[:2] == (key, 1)}
        return [kernels for kernels in wanted if kernels not in there or (patient and there[kernels] == "unstable")]

    with progress.task("measure the whole model at mixed assignments") as advance:
        for _ in range(TRIES):
            asked = lacking()
            if not asked:
                break
            for done, run in enumerate(measure_models(key, asked, architecture.build, threads=config.threads), start=1):
                held[run.key] = min(run, held.get(run.key, run), key=lambda r: (r.status == "unstable", r.spread))
                if folder is not None and not table.estimated:
                    table.models[run.key] = held[run.key]
                    table.save(folder)
                advance(done, len(asked))
    return [run for run in (held[key, 1, kernels] for kernels in wanted) if run.status in ("ok", "unstable")]


def _require_trust(model: CostModel, config: RunConfig, progress: Progress) -> None:
    if not timed(config) or model.error is None:
        return
    if model.error.trusted:
        progress.say(f"Latency of mixed assignments is predicted within {model.error}.")
        return
    said = f"The latency of mixed assignments cannot be predicted well enough for a budget on it: {model.error}."
    if not config.allow_estimate:
        raise TableError(f"{said} Measure on a quieter machine, or pass --allow-estimate: what is chosen is measured whole before it is written.")
    progress.say(f"{said} Going on with --allow-estimate: what is chosen is measured whole before it is written.")


def _kernels(problem: Problem, backend: Backend) -> list[list[str]]:
    """The kernel that each candidate runs."""
    return [[str(backend.supports(layer, c).kernel) for c in row] for layer, row in zip(problem.layers, problem.candidates, strict=True)]


def _units(
    problem: Problem, kernels: Sequence[Sequence[str]], backend: Backend, table: LatencyTable, where: Path, predictor: RowPredictor | None
) -> list[Unit]:
    """Rows and weight bytes of every kernel of every unit, float always among them: whole float models are measured too."""
    found = []
    for layer, row in zip(problem.layers, kernels, strict=True):
        choices = [Candidate.parse(name) for name in dict.fromkeys((*row, "float"))]
        costs = latency_costs([layer], [choices], backend, table, predictor=predictor)
        if costs.unusable:
            raise TableError(
                f"{where} has no row for {layer.name!r} in float, so its rows cannot be put together to a whole model. Measure it with `mpsearch profile`."
            )
        by_kernel = dict(zip(map(str, choices), costs.rows[0], strict=True))
        found.append(Unit(by_kernel, {str(c): backend.packed_bytes(layer, c) for c in choices}))
    return found


def _without(problem: Problem, kept: list[list[int]], unusable: Sequence[tuple[str, str, str]]) -> Problem:
    for layer, at in zip(problem.layers, kept, strict=True):
        if not at:
            why = next((w for name, _, w in unusable if name == layer.name), "not measured")
            raise InfeasibleError(f"Layer {layer.name!r} has no candidate with a measured latency ({why}). Measure it, or run with --target packed.")

    def pick(table: Any) -> Any:
        return tuple(tuple(row[i] for i in at) for row, at in zip(table, kept, strict=True))

    return replace(problem, candidates=pick(problem.candidates), costs={r: pick(t) for r, t in problem.costs.items()})
