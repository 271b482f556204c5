"""Step 2: the peak memory of activations, where a budget limits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mpsearch.deploy.memory import memory_rows, unit_nodes
from mpsearch.hardware import Backend
from mpsearch.pipeline.config import RunConfig, limits
from mpsearch.pipeline.progress import Progress
from mpsearch.problem import Problem


def limits_memory(config: RunConfig) -> bool:
    """Whether there is a budget on peak memory."""
    return limits(config, "memory_bytes")


def add_memory(
    problem: Problem, backend: Backend, float_model: Any, measured: dict[str, float], progress: Progress
) -> tuple[Problem, dict[str, Any]]:
    """Rows of peak memory: what is alive while each unit runs, scaled to what the uniform models were
    measured to take.

    Liveness knows tensors, not the scratch space of kernels. One factor for each kernel, from a whole model
    in that kernel, puts it where it was measured; what is chosen is measured whole again.

    Args:
        problem: Whose candidates get rows.
        backend: Tells which kernel a candidate runs.
        float_model: From `export_float`.
        measured: Kernel -> peak of the model that is uniform in it, in bytes.
        progress: Where progress goes.
    """
    kernels = [
        [str(backend.supports(layer, c).kernel) for c in row]
        for layer, row in zip(problem.layers, problem.candidates, strict=True)
    ]
    used = sorted({kernel for row in kernels for kernel in row})
    alive = memory_rows(float_model, problem.layers, [used] * len(problem.layers), unit_nodes(float_model))
    factors = {kernel: measured[kernel] / max(row[used.index(kernel)] for row in alive) for kernel in used}
    rows = tuple(
        tuple(row[used.index(k)] * factors[k] for k in names)
        for row, names in zip(alive, kernels, strict=True)
    )
    said = ", ".join(f"{kernel} {factor:.2f}" for kernel, factor in factors.items())
    progress.say(
        "Peak memory of activations is predicted by liveness, times what whole models take of it when "
        f"measured: {said}."
    )
    costs, constants = {**problem.costs, "memory_bytes": rows}, {**problem.constants, "memory_bytes": 0.0}
    return replace(problem, costs=costs, constants=constants), {
        "measured_bytes": measured,
        "factors": factors,
    }


def memory_kernels(problem: Problem, backend: Backend) -> Sequence[str]:
    """Kernels that some candidate runs, whose uniform models are measured."""
    return sorted(
        {
            str(backend.supports(layer, c).kernel)
            for layer, row in zip(problem.layers, problem.candidates, strict=True)
            for c in row
        }
    )
