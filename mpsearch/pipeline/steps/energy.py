"""The energy of what is chosen, where the target's device counts it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpsearch.deploy.targets import TargetRun
from mpsearch.errors import BudgetError, MpsearchError, TableError
from mpsearch.hardware import Backend, LatencyTable, ModelRun, energy_costs
from mpsearch.hardware.cost_fit import fit_cost_model
from mpsearch.hardware.cost_model import Unit
from mpsearch.hardware.wires import Wire
from mpsearch.pipeline.config import RunConfig, limits
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.fitted import require_trust, with_costs
from mpsearch.problem import Candidate, Problem


def require_counter(config: RunConfig) -> None:
    """Raises BudgetError where a budget limits energy and this machine's card counts none, before anything is
    loaded.
    """
    target = config.deployment
    backend = target.backend(config.threads)
    if (
        limits(config, "energy_mj")
        and target.measures_energy
        and backend is not None
        and not backend.bench().counts_energy
    ):
        raise BudgetError(
            f"{backend.device().name} has no counter of energy, so a budget in mJ cannot be verified. "
            "Limit size, latency or bit operations."
        )


def add_energy(
    problem: Problem,
    config: RunConfig,
    backend: Backend,
    table: LatencyTable,
    where: Path,
    kernels: Sequence[Sequence[str]],
    wires: Sequence[Wire],
    runs: Sequence[ModelRun],
    progress: Progress,
) -> tuple[Problem, dict[str, Any]]:
    """Costs, conversions and the constant of the energy, from the cost model fitted to the energies of
    whole-model runs.

    Args:
        problem: Whose every candidate has a latency.
        config: Settings.
        backend: The target's.
        table: Rows with energies.
        where: File of the table, for messages.
        kernels: For each layer, the kernel of each of its candidates.
        wires: Between the units.
        runs: Whole-model runs.
        progress: Where progress goes.
    Returns: And what study.json says of it; the problem as it is, and nothing, where an energy is not known
        and no budget needs it.

    Raises: TableError: A budget limits energy, and a row or the runs have none, or it cannot be predicted
        well enough.
    """
    units, lacking = _energies(problem, backend, table, kernels, config.batch)
    lacking += [] if all(run.energies_mj for run in runs) else ["whole models"]
    if lacking:
        if not limits(config, "energy_mj"):
            return problem, {}
        raise TableError(
            f"{where} has no energy of "
            f"{', '.join(lacking[:5])}{' and others' if len(lacking) > 5 else ''}, and a budget limits "
            "it. Leave out "
            "--table to measure here, or remove the table, which is then measured again."
        )
    bytes_per_mj = backend.bench().bytes_per_mj
    assert bytes_per_mj is not None  # rows have energies
    model = fit_cost_model(
        units, wires, [replace(run, passes_us=run.energies_mj, iqr_us=0.0) for run in runs], bytes_per_mj
    )
    require_trust(model, config, "energy_mj", progress)
    floats = next(run.energies_mj for run in runs if set(run.kernels) == {"float"})
    fitted = {
        "model": dict(zip(model.names, model.values, strict=True)),
        "error": model.error.to_json() if model.error else None,
    }
    about = {"energy": fitted, "float_energy_mj": math.fsum(floats) / len(floats)}
    return with_costs(problem, "energy_mj", model, kernels, table.estimated), about


def _energies(
    problem: Problem, backend: Backend, table: LatencyTable, kernels: Sequence[Sequence[str]], batch: int
) -> tuple[list[Unit], list[str]]:
    """Energies of every kernel of every unit, float always among them, in the place of latencies; and which
    are not known.
    """
    units, lacking = [], []
    for layer, row in zip(problem.layers, kernels, strict=True):
        choices = [Candidate.parse(name) for name in dict.fromkeys((*row, "float"))]
        energies = energy_costs([layer], [choices], backend, table, batch)[0]
        lacking += [
            f"{layer.name} {c}" for c, mj in zip(choices, energies, strict=True) if not math.isfinite(mj)
        ]
        by_kernel = dict(zip(map(str, choices), energies, strict=True))
        units.append(Unit(by_kernel, {str(c): backend.packed_bytes(layer, c) for c in choices}))
    return units, lacking


def energy_of(run: TargetRun, config: RunConfig) -> dict[str, Any]:
    """What is kept of a measured model beside its latency. Raises MpsearchError where a budget limits energy
    and the card counted none.
    """
    if run.energy_mj is None and limits(config, "energy_mj"):
        raise MpsearchError(
            "The card counted no energy while the model ran, and a budget limits it. See that nvidia-smi "
            "runs, and run again; what is done is kept."
        )
    energy = {} if run.energy_mj is None else {"energy_mj": run.energy_mj}
    return {**energy, **({"trouble": list(run.trouble)} if run.trouble else {})}
