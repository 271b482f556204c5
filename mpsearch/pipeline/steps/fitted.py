"""A fitted cost model as costs of a problem: its rows, its constant, its conversions; and whether it is good
enough for a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mpsearch.errors import InfeasibleError, TableError
from mpsearch.hardware.cost_model import CostModel
from mpsearch.pipeline.config import RunConfig, limits
from mpsearch.pipeline.progress import Progress
from mpsearch.problem import Problem

_NAMES = {"latency_us": "latency", "energy_mj": "energy"}


def with_costs(
    problem: Problem, resource: str, model: CostModel, kernels: Sequence[Sequence[str]], estimated: bool
) -> Problem:
    """The problem with a resource as the model has it.

    Args:
        problem: L layers.
        resource: `latency_us` or `energy_mj`; the model's rows are in its unit.
        model: Model of the L units.
        kernels: For each layer, the kernel of each of its candidates.
        estimated: Whether the rows are another device's, or predicted.
    """
    conversions = model.conversions(kernels)
    return replace(
        problem,
        costs={
            **problem.costs,
            resource: tuple(tuple(model.row(i, kernel) for kernel in row) for i, row in enumerate(kernels)),
        },
        constants={**problem.constants, resource: model.other_us},
        conversions={**problem.conversions, resource: conversions} if conversions else problem.conversions,
        estimated=(*problem.estimated, resource) if estimated else problem.estimated,
    )


def require_trust(model: CostModel, config: RunConfig, resource: str, progress: Progress) -> None:
    """Say how well a resource is predicted where a budget limits it. Raises TableError where that is not well
    enough, unless estimates are welcome.
    """
    if not limits(config, resource) or model.error is None:
        return
    name = _NAMES[resource]
    if model.error.trusted:
        progress.say(f"{name.capitalize()} of mixed assignments is predicted within {model.error}.")
        return
    said = (
        f"The {name} of mixed assignments cannot be predicted well enough for a budget on it: {model.error}."
    )
    if not config.allow_estimate:
        raise TableError(
            f"{said} Measure on a quieter machine, or pass --allow-estimate: what is chosen is measured "
            "whole before it is written."
        )
    progress.say(
        f"{said} Going on with --allow-estimate: what is chosen is measured whole before it is written."
    )


def without(problem: Problem, kept: list[list[int]], unusable: Sequence[tuple[str, str, str]]) -> Problem:
    """The problem without candidates that have no latency.

    Args:
        problem: L layers.
        kept: For each, positions of the candidates that it keeps.
        unusable: Layer, candidate and why, of the others.
    Raises: InfeasibleError: A layer keeps none.
    """
    for layer, at in zip(problem.layers, kept, strict=True):
        if not at:
            why = next((w for name, _, w in unusable if name == layer.name), "not measured")
            raise InfeasibleError(
                f"Layer {layer.name!r} has no candidate with a measured latency ({why}). Measure it, or "
                "run with --target packed."
            )

    def pick(table: Any) -> Any:
        return tuple(tuple(row[i] for i in at) for row, at in zip(table, kept, strict=True))

    return replace(
        problem, candidates=pick(problem.candidates), costs={r: pick(t) for r, t in problem.costs.items()}
    )
