"""A fitted cost model as costs of a problem: its rows, its constant, its conversions; and whether it is good
enough for a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpsearch.errors import TableError
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
