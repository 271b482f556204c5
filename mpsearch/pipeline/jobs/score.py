"""`mpsearch score`: the tables of objectives on a model, cached in a study's folder under the hash of what
they depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpsearch import files
from mpsearch.accelerator import describe_device, exact_float32, find_device
from mpsearch.errors import StudyError
from mpsearch.objectives import OBJECTIVES
from mpsearch.objectives.interacting import INTERACTING
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress, Silent
from mpsearch.pipeline.steps.costs import sized_problem
from mpsearch.pipeline.steps.learned import searched_calibration
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.scores import Scorer, interacts
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Problem
from mpsearch.reconstruct import Calibration

_DECIDE = (
    *("model", "model_args", "weights", "pretrained", "data", "calibration_data", "class_map"),
    *("calibration_images", "search_images", "evaluation_images"),
    *("bits", "floats", "a_bits", "layer_bits", "fix", "first_last_bits", "seed", "task", "batch_axis"),
    *("input_size", "mean", "std", "interpolation"),
)


@dataclass(frozen=True)
class Scored:
    """A model whose objectives are scored.

    Args:
        config: Settings; `objectives` as typed, options included.
        subject: Model and images.
        calibration: The states that the search would see.
        workshop: Finishes assignments.
        problem: Sizes, and a table for each objective under its name as typed, with its interactions where it
            has some.
        about: Objective as typed -> seconds, violations, unit.
    """

    config: RunConfig
    subject: Subject
    calibration: Calibration
    workshop: Workshop
    problem: Problem
    about: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The problem, which `mpsearch solve` reads, and how the tables came about."""
        return {
            **self.problem.to_json(),
            "objectives": self.about,
            "hashes": self.subject.hashes,
            "config": self.config.to_json(),
        }


@exact_float32()
def score_model(config: RunConfig, study: Study, progress: Progress | None = None) -> Scored:
    """Score every objective of `config`, or find its table in the study's folder, and write `scores.json`.

    Two objectives may differ in their options alone: tables are named as the objectives were typed. The
    folder may be that of a run of the same model and images, whose tables are then used.

    Raises:
        UserError: An objective or one of its options is unknown.
        StudyError: The folder belongs to another model, other images or other candidates.
    """
    progress = progress or Silent()
    for text in config.objectives:
        (INTERACTING if interacts(text) else OBJECTIVES).create(
            text
        )  # a slip is told before anything is loaded
    with study.busy():
        return score_held(config, study, progress)


def score_held(config: RunConfig, study: Study, progress: Progress) -> Scored:
    """The same for a caller that holds the folder."""
    claim(study, config)
    subject = load_subject(config, progress)
    workshop = Workshop(subject, calibrate_subject(subject, config, progress, study), config, study, progress)
    problem = sized_problem(subject, config)
    calibration = searched_calibration(problem, workshop)
    about: dict[str, dict[str, Any]] = {}
    scorer = Scorer(subject, calibration, config, study, progress)
    for text in dict.fromkeys(config.objectives):
        problem, about[text] = scorer.add(problem, text, text)
    scored = Scored(config, subject, calibration, workshop, problem, about)
    files.write_json(study.path / "scores.json", scored.to_json())
    return scored


def claim(study: Study, config: RunConfig) -> None:
    """Take a folder that is new, or that of the same model, images and candidates; objectives, budgets and
    the rest may differ.

    Raises: StudyError: It holds something else; names the settings that differ.
    """
    if not study.begun:
        study.describe(config, {"device": describe_device(find_device(config.device))})
        return
    held = study.config()
    differ = [name for name in _DECIDE if getattr(held, name) != getattr(config, name)]
    if differ:
        raise StudyError(
            f"{study.path} holds a study with other settings ({', '.join(differ)}). Give this one "
            "another name with --name."
        )


def score_rows(scored: Scored, text: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Header and rows of an objective's table for print: a line for each layer with a choice, a column for
    each candidate, `None` where it has none.
    """
    problem = scored.problem
    chosen = [i for i, choices in enumerate(problem.candidates) if problem.layers[i].weight_shape and choices]
    columns = list(dict.fromkeys(c for i in chosen for c in problem.candidates[i]))
    rows = []
    for i in chosen:
        at = dict(zip(problem.candidates[i], problem.scores[text][i], strict=True))
        rows.append((problem.layers[i].name, *(at.get(c) for c in columns)))
    return ("layer", *map(str, columns)), rows


LONG = ("objective", "layer", "candidate", "score", "weights", "activations")


def long_rows(scored: Scored) -> list[tuple[Any, ...]]:
    """`LONG`: one line for each entry of every table, units without a weight left out; what weights and
    inputs contribute where the objective tells.
    """
    problem = scored.problem
    return [
        (
            text,
            layer.name,
            str(candidate),
            problem.scores[text][i][c],
            *(_entry(scored.about[text].get(part), i, c) for part in LONG[-2:]),
        )
        for text in problem.scores
        for i, (layer, choices) in enumerate(zip(problem.layers, problem.candidates, strict=True))
        for c, candidate in enumerate(choices)
        if layer.weight_shape
    ]


def _entry(table: Sequence[Sequence[float]] | None, layer: int, candidate: int) -> float | None:
    return None if table is None else table[layer][candidate]
