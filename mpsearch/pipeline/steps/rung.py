"""Who of the finalists is finished, and who of them learns by gradients: those that are clearly worse, or not
clearly better than the optimum, before the costly step are left behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mpsearch.evaluate import clearly_lower
from mpsearch.pipeline.steps.search import Found, Indices
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Problem
from mpsearch.reconstruct import METHODS, Calibration

BEHIND = 2.0
"""Standard errors of the paired difference on the search images from which on a difference is clear."""


def label_of(labels: Mapping[str, Indices], indices: Indices) -> str:
    """The first label of an assignment."""
    return next(name for name, held in labels.items() if held == indices)


def worth_finishing(
    problem: Problem, order: Sequence[Indices], found: Found, searched: Calibration, workshop: Workshop
) -> list[Indices]:
    """Of the finalists those that are finished: of the study's best, what the search has seen clearly below
    the optimum. The best of many measurements is below it by chance; on five networks such finalists were no
    better than the optimum on average (benchmarks/results/few_bits.md).

    All of them with an effort that finishes ties too, or where one was asked for.

    Args:
        problem: Its candidates.
        order: The finalists.
        found: By the search.
        searched: The states that the search saw.
        workshop: Measures them.
    """
    if workshop.config.effort_settings.ties or found.asked_for is not None:
        return list(order)
    rivals = set(found.rivals.values()) - {found.greedy}
    kept = [indices for indices in order if indices not in rivals]
    if len(kept) == len(order):
        return kept

    def losses(indices: Indices) -> Tensor:
        return workshop.evaluation.search_losses(searched.states(problem.assignment(indices)))

    best = losses(found.optimum.indices)
    clear = [i for i in order if i in rivals and clearly_lower(losses(i), best, BEHIND)]
    if len(kept) + len(clear) < len(order):
        workshop.progress.say(
            "The best of the study is not clearly better than the exact optimum on the search images, and is "
            "not finished."
        )
    return [indices for indices in order if indices in kept or indices in clear]


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
