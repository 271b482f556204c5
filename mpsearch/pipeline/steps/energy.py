"""What a run on a GPU has of its own: whether there is one, and the energy of what is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpsearch.deploy.triton_cuda import TritonRun
from mpsearch.errors import BudgetError, DeviceMismatchError, MissingExtraError, MpsearchError, OptionError, TableError
from mpsearch.hardware import Backend, ModelRun
from mpsearch.hardware.cost_model import Unit, fit_cost_model
from mpsearch.hardware.gpu import card as cards
from mpsearch.hardware.gpu import probe
from mpsearch.hardware.gpu.profile import GpuLog, gpu_costs
from mpsearch.hardware.gpu.table import log_path
from mpsearch.hardware.wires import Wire
from mpsearch.pipeline.config import RunConfig, limits
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.fitted import require_trust, with_costs
from mpsearch.problem import Candidate, Problem

BYTES_PER_US = 2e6
"""Memory that a GPU reads in a microsecond, for the prior of its cost model alone."""
BYTES_PER_MJ = 4e6
"""The same for a millijoule, at some 500 W."""


def require_gpu(config: RunConfig, backend: Backend) -> None:
    """What a run on a GPU needs, asked before anything is loaded.

    Raises:
        DeviceMismatchError: There is no GPU that runs the kernels.
        MissingExtraError: A package is missing.
        OptionError: More than one thread, which a GPU has no pool for.
        BudgetError: A budget on energy, and the card counts none.
    """
    why = probe.why_not((8, 0), "the Triton kernels")
    if why is not None:
        raise DeviceMismatchError(
            f"--target {config.target} cannot run here: {why.rstrip('.')}. Run it on a machine with an NVIDIA GPU of compute capability 8.0 or more, or "
            "take a CPU target such as --target ort-cpu."
        )
    if probe.why_not((8, 0), "the Triton kernels", ("triton",)) is not None:
        raise MissingExtraError("triton", "cuda", f"--target {config.target}")
    if config.threads != 1:
        raise OptionError(f"threads is {config.threads}, and --target {config.target} runs on a GPU, which has no pool of them. Leave --threads out.")
    from mpsearch.deploy.kernels import require_device

    card = cards.card()
    require_device(card.device)
    if limits(config, "energy_mj") and card.monitor.energy_mj() is None:
        raise BudgetError(f"{card.gpu.name} has no counter of energy, so a budget in mJ cannot be verified. Limit size, latency or bit operations.")


def add_energy(
    problem: Problem,
    config: RunConfig,
    backend: Backend,
    where: Path,
    kernels: Sequence[Sequence[str]],
    wires: Sequence[Wire],
    runs: Sequence[ModelRun],
    estimated: bool,
    progress: Progress,
) -> tuple[Problem, dict[str, Any]]:
    """Costs, conversions and the constant of the energy, from the cost model fitted to the energies of whole-model runs.

    Args:
        problem: Whose every candidate has a latency.
        config: Settings.
        backend: The GPU's.
        where: The latency table, beside which the readings lie.
        kernels: For each layer, the kernel of each of its candidates.
        wires: Between the units.
        runs: Whole-model runs.
        estimated: Whether the rows are another device's.
        progress: Where progress goes.
    Returns: And what study.json says of it; the problem as it is, and nothing, where an energy is not known and no budget needs it.

    Raises: TableError: A budget limits energy, and a row or the runs have none, or it cannot be predicted well enough.
    """
    units, lacking = _energies(problem, backend, GpuLog.open(log_path(where)), kernels)
    lacking += [] if all(run.energies_mj for run in runs) else ["whole models"]
    if lacking:
        if not limits(config, "energy_mj"):
            return problem, {}
        raise TableError(
            f"{log_path(where)} has no energy of {', '.join(lacking[:5])}{' and others' if len(lacking) > 5 else ''}, and a budget limits it. Leave out "
            "--table to measure here, or remove the readings and the table, which are then measured again."
        )
    model = fit_cost_model(units, wires, [replace(run, passes_us=run.energies_mj, iqr_us=0.0) for run in runs], BYTES_PER_MJ)
    require_trust(model, config, "energy_mj", progress)
    floats = next(run.energies_mj for run in runs if set(run.kernels) == {"float"})
    fitted = {"model": dict(zip(model.names, model.values, strict=True)), "error": model.error.to_json() if model.error else None}
    about = {"energy": fitted, "float_energy_mj": math.fsum(floats) / len(floats)}
    return with_costs(problem, "energy_mj", model, kernels, estimated), about


def _energies(problem: Problem, backend: Backend, log: GpuLog, kernels: Sequence[Sequence[str]]) -> tuple[list[Unit], list[str]]:
    """Energies of every kernel of every unit, float always among them, in the place of latencies; and which are not known."""
    units, lacking = [], []
    for layer, row in zip(problem.layers, kernels, strict=True):
        choices = [Candidate.parse(name) for name in dict.fromkeys((*row, "float"))]
        energies = gpu_costs([layer], [choices], backend, log, 1).energy_mj[0]
        lacking += [f"{layer.name} {c}" for c, mj in zip(choices, energies, strict=True) if not math.isfinite(mj)]
        by_kernel = dict(zip(map(str, choices), energies, strict=True))
        units.append(Unit(by_kernel, {str(c): backend.packed_bytes(layer, c) for c in choices}))
    return units, lacking


def energy_of(run: TritonRun, config: RunConfig) -> dict[str, Any]:
    """What is kept of a measured model beside its latency. Raises MpsearchError where a budget limits energy and the card counted none."""
    if run.energy_mj is None and limits(config, "energy_mj"):
        raise MpsearchError(
            "The card counted no energy while the model ran, and a budget limits it. See that nvidia-smi runs, and run again; what is done is kept."
        )
    energy = {} if run.energy_mj is None else {"energy_mj": run.energy_mj}
    return {**energy, "trouble": list(run.trouble)}
