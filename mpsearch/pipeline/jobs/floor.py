"""`mpsearch solve --max-drop`: the smallest or fastest assignment whose measured accuracy keeps a floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mpsearch.accelerator import exact_float32
from mpsearch.data import SampleSet
from mpsearch.errors import BudgetError, InfeasibleError, OptionError, StudyError
from mpsearch.evaluate import AUTO, FastEvaluator, Metrics, compare, made
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.subject import Subject, calibrate_subject, load_subject
from mpsearch.problem import PEAKS, Assignment, Budget, Problem
from mpsearch.reconstruct import Calibration
from mpsearch.solvers import least_within, problem_front, solve
from mpsearch.units import format_quantity, parse_quantity

_LIMITS = 4096
"""Limits that are bisected where other budgets leave no front to go along."""

Indices = tuple[int, ...]


def drop_of(text: str) -> float:
    """`1%` -> 0.01. Raises BudgetError on anything but a share from above 0 to 100 %."""
    try:
        value, dimension = parse_quantity(text)
    except BudgetError:
        value, dimension = 0.0, ""
    if dimension != "fraction" or not 0 < value <= 1:
        raise BudgetError(
            f"{text!r} is no drop of accuracy. Write points of top-1 above 0, such as 1% or 0.5%."
        )
    return value


@exact_float32()
def within_floor(
    folder: Path,
    problem: Problem,
    objective: str,
    budgets: Sequence[Budget],
    drop: float,
    resource: str,
    progress: Progress,
) -> dict[str, Any]:
    """Bisect over the exact front, each time by what is really measured.

    The optima of the objective are walked, from the least damage towards the least of the resource, by
    halving: some 14 measurements. Accuracy need not fall evenly along them, so what is returned keeps the
    floor, as measured, but one that is cheaper and keeps it as well may exist. Weights are rounded to
    nearest; reconstruction comes on top. Without labels the share of images whose top class changes stands
    for the drop, which it is never below.

    Args:
        folder: Folder of a study; what is measured is kept in it.
        problem: Its problem, or that with fewer candidates.
        objective: Name of the score table.
        budgets: Absolute limits that are kept besides.
        drop: Allowed loss of top-1 on the search images, as a share.
        resource: What is to be least.
        progress: Where progress goes.
    Returns: The assignment, its predicted costs, what was measured on search and evaluation images, every
        step, and a line for people.

    Raises:
        StudyError: No study is there, or it is of another model.
        InfeasibleError: Not even the least damage keeps the floor.
    """
    study = Study(folder)
    config = study.settled()
    _require_classes(folder, config.task, config.task == AUTO or made(config.task).classes)
    with study.busy():
        subject = load_subject(config, progress)
        _require_classes(folder, subject.task_text, subject.task.classes)
        judge = _Judge(subject, calibrate_subject(subject, config, progress, study), problem, study)
        at, count = _walk(problem, objective, budgets, resource)
        with progress.task("measure assignments") as advance:
            found, trail = _bisect(
                at, count, judge, drop, lambda done: advance(done, int(np.ceil(np.log2(max(2, count)))) + 1)
            )
        if found is None:
            least = trail[0]
            raise InfeasibleError(
                f"A drop of {drop:.2%} is below the least reachable {least['drop']:.2%}, measured where "
                f"{objective} predicts the least damage. "
                "Allow more, raise the budgets, or add wider candidates with --bits."
            )
        return _result(judge, found, trail, drop, resource)


def _require_classes(folder: Path, task: str, classes: bool) -> None:
    if not classes:
        raise OptionError(
            f"--max-drop is a drop of top-1, and the task {task!r} of {folder} has no classes. Take "
            "--budget, or "
            "--prices to choose by."
        )


class _Judge:
    """Measures assignments on the search images; each once, and kept in the study's folder."""

    def __init__(self, subject: Subject, calibration: Calibration, problem: Problem, study: Study) -> None:
        if {layer.name for layer in problem.layers} != {layer.name for layer in subject.graph.layers}:
            raise StudyError(
                f"The problem and the model of the study in {study.path} do not have the same layers. "
                "Name the study's own folder."
            )
        self.problem, self._subject, self._calibration, self._study = problem, subject, calibration, study
        self._evaluators: dict[str, FastEvaluator] = {}

    def measured(self, indices: Indices, part: str = "search") -> dict[str, Any]:
        """Metrics on a part of the images, and the drop against the float model."""
        assignment = self.problem.assignment(indices)
        key = [
            self._subject.hashes,
            part,
            assignment.to_json(),
            self._calibration.weight_observer,
            self._calibration.input_observer,
            *self._subject.arithmetic,
        ]
        found: dict[str, Any] = self._study.cached("accuracy", key, lambda: self._measure(assignment, part))
        return found

    def _measure(self, assignment: Assignment, part: str) -> dict[str, Any]:
        here = self._subject.placed
        images: SampleSet = getattr(here, part)
        if part not in self._evaluators:
            self._evaluators[part] = FastEvaluator(here.module, self._calibration, images)
        evaluator = self._evaluators[part]
        metrics = compare(evaluator.logits(assignment), evaluator.float_logits, images.labels)
        return {"drop": _drop(metrics, evaluator.float_logits, images.labels), **metrics.to_json()}


def _drop(metrics: Metrics, float_logits: Tensor, labels: Tensor | None) -> float:
    if metrics.top1 is None:
        return 1 - metrics.agreement
    top1 = compare(float_logits, float_logits, labels).top1
    return (top1 or 0.0) - metrics.top1


def _walk(
    problem: Problem, objective: str, budgets: Sequence[Budget], resource: str
) -> tuple[Callable[[int], Indices], int]:
    """How many optima there are, from the least of the resource to the least damage, and what each is."""
    if resource not in problem.costs or resource in PEAKS:
        raise OptionError(
            f"The problem has no costs {resource}, so its least cannot be looked for. It has: "
            f"{', '.join(problem.costs)}."
        )
    if all(b.resource == resource for b in budgets):
        front = problem_front(problem, objective, resource, min((b.limit for b in budgets), default=None))
        return front.indices, len(front)
    low, high = (
        least_within(problem, budgets)[resource],
        getattr(solve(problem, objective, budgets).cost, resource),
    )
    limits = np.linspace(low, high, _LIMITS)
    return (
        lambda k: solve(problem, objective, [*budgets, Budget(resource, float(limits[k]), "")]).indices,
        len(limits),
    )


def _bisect(
    at: Callable[[int], Indices], count: int, judge: _Judge, drop: float, on_step: Callable[[int], None]
) -> tuple[Indices | None, list[dict[str, Any]]]:
    """The cheapest that was measured to keep the floor, None where the costliest does not; and every step."""
    trail: list[dict[str, Any]] = []

    def keeps(k: int) -> bool:
        measured = judge.measured(at(k))
        trail.append({"cost": judge.problem.cost(at(k)).to_json(), **measured})
        on_step(len(trail))
        return bool(measured["drop"] <= drop)

    if not keeps(count - 1):
        return None, trail
    low, high = -1, count - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return at(high), trail


def _result(
    judge: _Judge, found: Indices, trail: list[dict[str, Any]], drop: float, resource: str
) -> dict[str, Any]:
    search, held_out, cost = (
        judge.measured(found),
        judge.measured(found, "evaluation"),
        judge.problem.cost(found),
    )
    what = "top-1 drops by" if search["top1"] is not None else "without labels, the top class changes on"
    told = (
        f"{format_quantity(getattr(cost, resource), resource)}: {what} {search['drop']:.2%} on the "
        f"{search['images']} search images (at most {drop:.2%} was "
        f"allowed), and {held_out['drop']:.2%} on the {held_out['images']} evaluation images; "
        f"{len(trail)} assignments measured, rounded to nearest."
    )
    return {
        "assignment": judge.problem.assignment(found).to_json(),
        "indices": list(found),
        "predicted": cost.to_json(),
        "max_drop": drop,
        "minimized": resource,
        "search": search,
        "evaluation": held_out,
        "trail": trail,
        "told": told,
    }
