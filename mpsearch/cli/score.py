"""`mpsearch score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from mpsearch.cli import _score_options as options
from mpsearch.cli._app import command
from mpsearch.cli._options import (
    BatchAxis,
    Bits,
    CalibrationData,
    CalibrationImages,
    ClassMap,
    Data,
    Device,
    FirstLastBits,
    Fix,
    InputBits,
    InputObserver,
    InputSize,
    Interpolation,
    Mean,
    Model,
    ModelArguments,
    Output,
    Quantize,
    RandomWeights,
    SearchImages,
    Seed,
    Smooth,
    Softmax,
    Std,
    TaskName,
    Weights,
)
from mpsearch.cli._reading import config_of, require_names, study_folder, study_name
from mpsearch.cli._show import Format, ProgressBars, print_rows, say


@command(
    "mpsearch score --model resnet18 --data images/val --objective sketch --objective fisher",
    "mpsearch score --model resnet18 --data images/val --validate",
)
def score(
    context: typer.Context,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    data: Data = None,
    calibration_data: CalibrationData = None,
    class_map: ClassMap = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    calibration_images: CalibrationImages = None,
    search_images: SearchImages = None,
    evaluation_images: options.EvaluationImages = None,
    bits: Bits = None,
    fix: Fix = None,
    a_bits: InputBits = "8",
    quantize: Quantize = "linear",
    smooth: Smooth = "none",
    input_observer: InputObserver = "mse",
    softmax: Softmax = "uniform",
    first_last_bits: FirstLastBits = None,
    objective: options.Objectives = None,
    validate: options.Validate = False,
    samples: options.Samples = 60,
    budgets: options.Levels = "5",
    local_steps: options.LocalSteps = 24,
    unseen_images: options.UnseenImages = 1000,
    device: Device = "auto",
    seed: Seed = 0,
    task: TaskName = "auto",
    batch_axis: BatchAxis = 0,
    name: options.Name = None,
    output: Output = Format.table,
) -> None:
    """Score every bit-width of every layer with each objective; with --validate, say which of them to
    trust.
    """
    require_names(context.params)
    folder = study_folder(name or study_name(model, ("score",)))
    from mpsearch.objectives import OBJECTIVES
    from mpsearch.pipeline.folder import Study
    from mpsearch.pipeline.jobs.score import score_model
    from mpsearch.pipeline.validation.validate import Effort, validate_objectives

    config = config_of(
        context, budgets=("8bits",), objectives=tuple(objective or OBJECTIVES.names()), target="packed"
    )
    study = Study(folder)
    try:
        if validate:
            _print_validation(
                validate_objectives(
                    config, study, Effort(samples, budgets, local_steps, unseen_images), ProgressBars()
                ),
                study.path,
                output,
            )
        else:
            _print_scores(score_model(config, study, ProgressBars()), study.path, output)
    except KeyboardInterrupt:
        say("\nInterrupted. The same command goes on where this one stopped.")
        raise


def _print_scores(scored: Any, folder: Path, output: Format) -> None:
    from mpsearch.pipeline.jobs.score import LONG, long_rows, score_rows

    if output is Format.json:
        print(json.dumps(scored.to_json(), indent=1))
    elif output is Format.csv:
        print_rows(LONG, long_rows(scored), output)
    for text, about in scored.about.items():
        say(f"{text} ({about['unit']}): {about['violations']} entries repaired, {about['seconds']:.1f} s.")
        if "interactions" in about:
            say(f"  and {about['interactions']} interactions, which are not in the rows that are printed.")
        for note in about.get("notes", ()):
            say(f"  {note}")
        if output is Format.table:
            header, rows = score_rows(scored, text)
            print_rows(
                header,
                [(row[0], *("" if v is None else f"{v:.4g}" for v in row[1:])) for row in rows],
                output,
            )
    say(f"Tables: {folder / 'scores.json'}; `mpsearch solve` reads it.")


def _print_validation(result: dict[str, Any], folder: Path, output: Format) -> None:
    from mpsearch.pipeline.validation.scorecard import LEGEND, UNSEEN, card, unseen_card

    if output is Format.json:
        print(json.dumps(result, indent=1))
    else:
        (header, rows), (unseen_header, unseen_rows) = card(result), unseen_card(result)
        if output is Format.csv:
            beside = {name: cells for name, *cells in unseen_rows}
            print_rows((*header, *unseen_header[1:]), [(*row, *beside[row[0]]) for row in rows], output)
        else:
            print_rows(header, list(rows), output)
            print_rows(unseen_header, list(unseen_rows), output)
        say(LEGEND)
        say(UNSEEN.format(images=result["images"]["unseen"]))
    say(
        f"{result['measured']} assignments measured. Everything: {folder / 'validation.json'}; for "
        f"people: {folder / 'validation.md'}."
    )
