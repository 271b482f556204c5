"""`mpsearch solve --max-drop`: the smallest or fastest assignment whose measured score keeps a floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpsearch.accelerator import exact_float32
from mpsearch.errors import InfeasibleError, OptionError, StudyError
from mpsearch.evaluate import metric_of
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.evaluation import Evaluation
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.scoring import Floor, Scoring
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.pipeline.steps.walk import Indices, Judge, Step, path_of, walk
from mpsearch.problem import Budget, Drop, Problem, below
from mpsearch.units import format_quantity
from mpsearch.usercode import OBJECT


@exact_float32()
def within_floor(
    folder: Path,
    problem: Problem,
    objective: str,
    budgets: Sequence[Budget],
    drop: Drop,
    resource: str,
    progress: Progress,
) -> dict[str, Any]:
    """Bisect over the exact front, each time by what is really measured: the study's metric, or the score of
    its task.

    Some 14 measurements, see `steps.walk`. Weights are rounded to nearest; reconstruction comes on top.

    Args:
        folder: Folder of a study; what is measured is kept in it.
        problem: Its problem, or that with fewer candidates.
        objective: Name of the score table.
        budgets: Absolute limits that are kept besides.
        drop: Allowed below the float model's score on the search images.
        resource: What is to be least.
        progress: Where progress goes.
    Returns: The assignment, its predicted costs, what was measured on search and evaluation images, every
        step, and a line for people.

    Raises:
        StudyError: No study is there, or it is of another model.
        OptionError: Its metric was given as an object, which is not here.
        InfeasibleError: Not even the least damage keeps the floor.
    """
    study = Study(folder)
    config = study.settled()
    _require_metric(folder, config)
    with study.busy():
        subject = load_subject(config, progress, metric=metric_of(config.metric))
        _require_same_layers(problem, subject, study)
        scoring = Scoring(subject, Evaluation(subject, subject.task, progress), study, progress)
        judge = Judge(problem, calibrate_subject(subject, config, progress, study), scoring)
        path, floor = path_of(problem, objective, budgets, resource), scoring.floor(drop)
        with progress.task("measure assignments") as advance:
            found, trail = walk(path, judge, floor.kept, advance)
        if found is None:
            raise InfeasibleError(
                f"A drop of {drop.text} is below the least reachable: {floor.below(trail[0].score)}, "
                f"measured where {objective} predicts the least damage. Allow more, raise the budgets, or "
                "add wider candidates with --bits."
            )
        return _result(judge, found, trail, floor, resource)


def _require_metric(folder: Path, config: RunConfig) -> None:
    if config.metric is not None and config.metric.startswith(OBJECT):
        raise OptionError(
            f"The metric of {folder} was given as an object in Python and is not here. Call mpsearch.search "
            "with it and max_drop."
        )


def _require_same_layers(problem: Problem, subject: Subject, study: Study) -> None:
    if {layer.name for layer in problem.layers} != {layer.name for layer in subject.graph.layers}:
        raise StudyError(
            f"The problem and the model of the study in {study.path} do not have the same layers. Name the "
            "study's own folder."
        )


def _result(judge: Judge, found: Indices, trail: list[Step], floor: Floor, resource: str) -> dict[str, Any]:
    splits, scoring, cost = judge.scoring.subject.splits, judge.scoring, judge.problem.cost(found)
    floats = {"search": floor.floats, "evaluation": scoring.of_float("evaluation")}
    scores = {part: judge.score(found, part) for part in floats}
    measured = {
        part: {
            "score": score if math.isfinite(score) else None,
            "drop": floats[part] - score if math.isfinite(score) else None,
            "images": len(splits.parts[part]),
        }
        for part, score in scores.items()
    }
    said = [
        f"{below(floor.name, floats[part], score)} on the {measured[part]['images']} {part} images"
        for part, score in scores.items()
    ]
    return {
        "assignment": judge.problem.assignment(found).to_json(),
        "indices": list(found),
        "predicted": cost.to_json(),
        "max_drop": floor.drop.text,
        "score": floor.name,
        "minimized": resource,
        **measured,
        "trail": [step.to_json(judge, floor) for step in trail],
        "told": (
            f"{format_quantity(getattr(cost, resource), resource)}: {', and '.join(said)}; {floor.drop.text} "
            f"below float was allowed on the search images; {len(trail)} assignments measured, rounded to "
            "nearest."
        ),
    }
