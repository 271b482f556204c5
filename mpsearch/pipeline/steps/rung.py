"""The finalists in closed form, before any of them learns by gradients: those that are clearly worse there
are left behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mpsearch.evaluate import clearly_lower
from mpsearch.pipeline.steps.search import Found, Indices
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Problem
from mpsearch.reconstruct import METHODS

BEHIND = 2.0
"""Standard errors of the paired difference on the search images from which on a finalist is clearly worse."""


def label_of(labels: Mapping[str, Indices], indices: Indices) -> str:
    """The first label of an assignment."""
    return next(name for name, held in labels.items() if held == indices)


def worth_learning(
    problem: Problem,
    labels: Mapping[str, Indices],
    order: Sequence[Indices],
    found: Found,
    workshop: Workshop,
) -> list[Indices]:
    """Of the finalists those that a method of gradients is to go on with, the best in closed form first.

    All of them, as they come, where the method is closed itself or does not start from the closed form, where
    one of them was asked for, and under a time limit, which ships the first at once.

    Args:
        problem: Its candidates.
        labels: Of the finalists.
        order: The finalists.
        found: By the search.
        workshop: Rounds and measures them.
    """
    config = workshop.config
    goes_on = config.steps > 0 and METHODS.create(config.method).goes_on
    if not goes_on or len(order) < 2 or found.asked_for is not None or config.time_limit is not None:
        return list(order)
    losses = {}
    for indices in order:
        label = f"{label_of(labels, indices)}, in closed form"
        losses[indices] = workshop.evaluation.search_losses(
            workshop.reconstructed(problem.assignment(indices), label, steps=0)
        )
    ranked = sorted(order, key=lambda indices: float(losses[indices].mean()))
    ahead = [i for i in ranked if not clearly_lower(losses[ranked[0]], losses[i], BEHIND)]
    behind = [label_of(labels, indices) for indices in ranked if indices not in ahead]
    if behind:
        workshop.progress.say(
            f"In closed form {label_of(labels, ranked[0])} is clearly better on the search images than "
            f"{', '.join(behind)}, which {'do' if len(behind) > 1 else 'does'} not learn."
        )
    return ahead
