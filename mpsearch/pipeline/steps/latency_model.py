"""The cost model that puts rows together to the latency of a whole model, fitted to whole-model runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpsearch.errors import TableError
from mpsearch.hardware import Backend, LatencyTable, ModelRun, latency_costs
from mpsearch.hardware.bench import TRIES
from mpsearch.hardware.cost_fit import fit_cost_model
from mpsearch.hardware.cost_model import CostModel, Unit
from mpsearch.hardware.predict import RowPredictor
from mpsearch.hardware.profile import LatencyCosts
from mpsearch.hardware.whole import Kernels, WholeModel, measure_models, mixed_kernels
from mpsearch.hardware.wires import Wire, model_key
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.energy import add_energy
from mpsearch.pipeline.steps.fitted import require_trust, with_costs, without
from mpsearch.pipeline.steps.latency import backend_of, mixed_runs
from mpsearch.problem import Candidate, Problem

MODEL_SECONDS = 0.3
"""Time of measuring for each whole model, where the bench counts seconds."""


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
    if costs.predicted:
        widest = max(spread for *_, spread in costs.predicted)
        progress.say(
            f"{len(costs.predicted)} latencies are not in {where} and are predicted, with standard "
            f"deviations of up to {widest:.0%}."
        )
    if costs.unusable:
        usable = [[i for i, value in enumerate(row) if math.isfinite(value)] for row in costs.rows]
        problem = without(problem, usable, costs.unusable)
    kernels = _kernels(problem, backend)
    units = _units(problem, kernels, backend, table, where, predictor, config.batch)
    wires = [replace(wire, numel=wire.numel * config.batch) for wire in architecture.wires]
    folder = where.parent if config.table is None else None
    runs = whole_runs(problem, units, table, folder, architecture, config, progress, at_least)
    model = fit_cost_model(units, wires, runs, backend.bench().bytes_per_us)
    require_trust(model, config, "latency_us", progress)
    problem = with_costs(problem, "latency_us", model, kernels, costs.estimated)
    about: dict[str, Any] = {
        "device": table.device.to_json(),
        "backend": backend.name,
        "version": backend.version,
    }
    about |= {"threads": config.threads, "batch": config.batch, "table": str(where)}
    about |= {**_about_rows(costs), **_about_model(model, runs)}
    problem, energy = add_energy(problem, config, backend, table, where, kernels, wires, runs, progress)
    return problem, about | energy


def _about_rows(costs: LatencyCosts) -> dict[str, Any]:
    """Whether the rows are estimates, and which of them are none or no good."""
    return {
        "estimated": costs.estimated,
        "unusable": [list(u) for u in costs.unusable],
        "unstable": [list(u) for u in costs.unstable],
        "predicted": [list(p) for p in costs.predicted],
    }


def _about_model(model: CostModel, runs: Sequence[ModelRun]) -> dict[str, Any]:
    """The cost model, its error, and what it was fitted to."""
    return {
        "model": dict(zip(model.names, model.values, strict=True)),
        "error": model.error.to_json() if model.error else None,
        "runs": len(runs),
        "float_latency_us": next(run.latency_us for run in runs if set(run.kernels) == {"float"}),
    }


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

    The uniform models, and `mixed_runs` in all where there is a latency budget: a run finds those of an
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
    count = max(len(uniform), at_least, mixed_runs(config))
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
