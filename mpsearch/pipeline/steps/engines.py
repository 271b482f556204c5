"""Step 2 for a target that is built and timed on another machine: latencies by a table of engines, alone.

The table comes from `mpsearch profile --from`, or is one that others have published. Nothing is measured
here; but an assignment whose engine is in a measured table has been measured, and is held against the budget.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpsearch.errors import InfeasibleError, TableError
from mpsearch.hardware import LatencyTable
from mpsearch.hardware.cost_model import CostModel, Unit
from mpsearch.hardware.predict import RowPredictor
from mpsearch.hardware.rows import row_key
from mpsearch.hardware.trtexec import Network, fit_runs, network_units, write_manifest
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.fitted import with_costs, without
from mpsearch.problem import FLOAT, Budget, Candidate, Problem
from mpsearch.quant import UnitState
from mpsearch.solvers import reachable
from mpsearch.units import format_quantity

_HOW = (
    "Write engines with `mpsearch profile --target {0} --write DIR`, build them where the GPU is, and read "
    "what came back with `mpsearch profile --from trtexec:DIR`; or take a published table, such as those of "
    "latency_tables/published, with --allow-estimate."
)


@dataclass(frozen=True)
class Engines:
    """A table of engines, and the model that they are of.

    Args:
        table: Rows and whole engines.
        path: Its file.
        network: Model: the problem's layers, and the wires between them.
    """

    table: LatencyTable
    path: Path
    network: Network

    @property
    def origin(self) -> str:
        """Where the latencies are from, for people, in every place that shows one."""
        table, images = self.table, "one image" if self.table.batch == 1 else f"{self.table.batch} images"
        call = f"for {images} in a call"
        if table.published is None:
            return f"by engines timed on {table.device.name}, {table.backend} {table.version}, {call}"
        source = f"{table.published.get('repository')} @{table.published.get('commit')}"
        return (
            f"ESTIMATED by a PUBLISHED table ({source}; {table.device.name}; "
            f"{table.published.get('samples')}), {call}"
        )

    def kernels(self, states: Mapping[str, UnitState]) -> tuple[str, ...]:
        """What each layer of the network is to run; one without a state is float."""
        float_state = UnitState(FLOAT)
        return tuple(
            kernel_of(states.get(layer.name, float_state).candidate) for layer in self.network.layers
        )

    def write_builds(
        self, folder: Path, name: str, states: Mapping[str, UnitState], predicted_us: float | None
    ) -> None:
        """Say beside an engine's input what it is, so that its times are understood when they come back.

        Args:
            folder: Where the input is.
            name: Of the build.
            states: Of units and tensors.
            predicted_us: Latency that it is expected to have.
        """
        asked = replace(self.network, asked={name: self.kernels(states)})
        predicted = {} if predicted_us is None else {name: predicted_us}
        write_manifest(folder, asked, self.table.batch, predicted)

    def measured_us(self, states: Mapping[str, UnitState]) -> float | None:
        """Latency of the engine of these states, where it is in a measured table.

        Args:
            states: Of units and tensors; any other layer is float.
        """
        run = self.table.models.get((self.network.key, self.table.batch, self.kernels(states)))
        return None if run is None or self.table.published is not None else run.latency_us


def kernel_of(candidate: Candidate) -> str:
    """What an engine runs: a tensor without a weight is quantised as the units are that read it."""
    return (
        str(Candidate(8, candidate.a_bits)) if candidate == candidate.of_inputs != FLOAT else str(candidate)
    )


def given_table(config: RunConfig) -> LatencyTable:
    """The table that was named. Raises TableError or DeviceMismatchError."""
    if config.table is None:
        raise TableError(
            f"--target {config.target} is built and timed on another machine, so its latencies come from a "
            f"table; name it with --table. {_HOW.format(config.target)}"
        )
    table = LatencyTable.load(Path(config.table), None, allow_estimate=config.allow_estimate)
    backend = config.deployment.backend(config.threads)
    if backend is not None and table.backend != backend.name:
        raise TableError(
            f"{config.table} is a table of the backend {table.backend}, and --target {config.target} has "
            f"{backend.name}. {_HOW.format(config.target)}"
        )
    if config.batch not in (1, table.batch):
        raise TableError(
            f"{config.table} was measured with {table.batch} images in a call, and --batch {config.batch} is "
            f"asked for. Leave --batch out, or profile engines of --batch {config.batch}."
        )
    return table


def call_batch(config: RunConfig) -> int:
    """Images in a call that is timed: those of the settings; of the table where one was named of engines that
    are timed elsewhere.
    """
    if not config.deployment.elsewhere or config.table is None:
        return config.batch
    about = json.loads(Path(config.table).with_suffix(".json").read_text())
    return int(about.get("batch", 1))


def add_engines(
    problem: Problem, budgets: Sequence[Budget], config: RunConfig, engines: Engines, progress: Progress
) -> tuple[Problem, dict[str, Any]]:
    """Costs, conversions and the constant of the latency, from the cost model of the engines.

    Args:
        problem: Its layers are the network's.
        budgets: Absolute limits.
        config: Settings.
        engines: What is known.
        progress: Where progress goes.

    Raises:
        InfeasibleError: No assignment is predicted to keep the limit of latency; tells the least.
        TableError: The table does not know the model, or predicts it badly.
    """
    model, predicted = _model(engines, config)
    known = [
        [kernel_of(c) in unit.rows_us for c in row]
        for unit, row in zip(model.units, problem.candidates, strict=True)
    ]
    unusable = [
        (layer.name, str(c), "no engine has it")
        for layer, row, there in zip(problem.layers, problem.candidates, known, strict=True)
        for c, is_known in zip(row, there, strict=True)
        if not is_known
    ]
    if unusable:
        problem = without(problem, [[i for i, k in enumerate(row) if k] for row in known], unusable)
    kernels = [[kernel_of(c) for c in row] for row in problem.candidates]
    table = engines.table
    estimated = table.estimated or bool(predicted)
    problem = with_costs(problem, "latency_us", model, kernels, estimated)
    progress.say(f"Latencies are {engines.origin}; none is measured here.")
    _tell_error(model, predicted, config, progress)
    _require_reachable(problem, budgets, engines)
    about: dict[str, Any] = {
        "device": table.device.to_json(),
        "backend": table.backend,
        "version": table.version,
        "threads": 1,
        "batch": table.batch,
        "table": str(engines.path),
        "estimated": estimated,
        "origin": engines.origin,
        "published": table.published,
        "unusable": [list(u) for u in unusable],
        "unstable": [],
        "predicted": [list(p) for p in predicted],
        "model": dict(zip(model.names, model.values, strict=True)),
        "error": model.error.to_json() if model.error else None,
        "runs": 0 if model.error is None else model.error.runs,
    }
    if all("float" in unit.rows_us for unit in model.units):
        about["float_latency_us"] = model.predict(["float"] * len(problem.layers))
    return problem, about


def _model(engines: Engines, config: RunConfig) -> tuple[CostModel, list[tuple[str, str, float]]]:
    """The fitted model; or, from rows alone where no engine of the model was timed, the sum of these.

    Returns: The model; and unit, kernel and spread of every row that is predicted from others.
    """
    table, network = engines.table, engines.network
    runs = [r for r in table.models.values() if r.model == network.key and r.batch == table.batch]
    if runs:
        return fit_runs(network_units(network.layers, table), network.wires, table, runs), []
    if not config.allow_estimate:
        raise TableError(
            f"{engines.path} has no engine of {network.name} ({network.key}). {_HOW.format(config.target)} "
            "With --allow-estimate latencies are sums of rows, and of rows that are predicted from others."
        )
    units, predicted = _guessed(engines)
    return CostModel(tuple(units), network.wires, ("other",), (0.0,), None, (0.0, 0.0)), predicted


def _guessed(engines: Engines) -> tuple[list[Unit], list[tuple[str, str, float]]]:
    """Rows of every unit, those that the table lacks predicted from others of their kind."""
    table, units, predicted = engines.table, list[Unit](), list[tuple[str, str, float]]()
    guess = RowPredictor(table.rows)
    for layer in engines.network.layers:
        rows, sizes = {"float": 0.0}, {"float": 2 * layer.weight_numel, "W8A8": layer.weight_numel}
        if not layer.weight_shape and layer.op != "matmul":
            rows["W8A8"] = 0.0
        for kernel in sizes if layer.weight_shape else ():
            row = table.rows.get((row_key(layer, table.batch), kernel))
            found = guess.predict(layer, Candidate.parse(kernel), table.batch) if row is None else None
            if row is not None and row.usable:
                rows[kernel] = row.median_us * layer.calls
            elif found is not None:
                rows[kernel] = found.median_us * layer.calls
                predicted.append((layer.name, kernel, found.spread))
            elif kernel == "float":
                raise TableError(
                    f"{engines.path} has no row for {layer.name!r} ({row_key(layer, table.batch)}) in half "
                    "precision, and too few of its kind to predict one. Take a table of this model."
                )
        units.append(Unit(rows, {kernel: sizes[kernel] for kernel in rows}))
    return units, predicted


def _tell_error(
    model: CostModel, predicted: Sequence[tuple[str, str, float]], config: RunConfig, progress: Progress
) -> None:
    """Say how well engines are predicted. Raises TableError where it is not well enough, unless estimates are
    welcome.
    """
    if model.error is None:
        widest = max((spread for *_, spread in predicted), default=0.0)
        progress.say(
            f"No engine of this model was timed: a latency is the sum of its units' rows, {len(predicted)} "
            f"of them predicted from others (standard deviations of up to {widest:.0%}), without what lies "
            "between units."
        )
        return
    said = f"whole engines are predicted within {model.error}"
    if model.error.trusted:
        progress.say(f"{said[0].upper()}{said[1:]}.")
    elif config.allow_estimate:
        progress.say(f"{said[0].upper()}{said[1:]}, which is poor: build and time what is chosen.")
    else:
        raise TableError(
            f"Latency cannot be predicted well enough for a search: {said}. Time more engines, or pass "
            "--allow-estimate."
        )


def _require_reachable(problem: Problem, budgets: Sequence[Budget], engines: Engines) -> None:
    """Raises InfeasibleError, before anything is calibrated."""
    least, _ = reachable(problem)["latency_us"]
    for budget in budgets:
        if budget.resource == "latency_us" and budget.limit < least:
            raise InfeasibleError(
                f"Budget {budget.text} is below the least reachable latency, "
                f"{format_quantity(least, 'latency_us')}, {engines.origin}. Raise it.",
                {"latency_us": least},
            )


def say_of(problem: Problem, engines: Engines | None) -> str | None:
    """What every figure of latency of a run has to say; None where it was measured here."""
    return None if engines is None or "latency_us" not in problem.costs else engines.origin
