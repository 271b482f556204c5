"""`mpsearch import`: an assignment from elsewhere, measured beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mpsearch.cli._app import command
from mpsearch.cli._options import (
    BatchAxis,
    Bits,
    CalibrationData,
    CalibrationImages,
    Data,
    Device,
    EvaluationImages,
    InputBits,
    Model,
    ModelArguments,
    Name,
    Objectives,
    Output,
    RandomWeights,
    SearchImages,
    Seed,
    TaskName,
    Weights,
)
from mpsearch.cli._reading import config_of, require_file, require_names, study_folder, study_name
from mpsearch.cli._show import Format, ProgressBars, print_rows, say


@command(
    "mpsearch import bit_config.py --from hawq:config=NAME --model resnet18 --data images/val",
    name="import",
)
def import_assignment(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The other tool's file. It is read as data, never run.")],
    importer: Annotated[
        str,
        typer.Option(
            "--from",
            help="mpsearch, hawq[:config=NAME], mct or modelopt; `mpsearch list importers` names them.",
        ),
    ],
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    data: Data = None,
    calibration_data: CalibrationData = None,
    calibration_images: CalibrationImages = 512,
    search_images: SearchImages = 256,
    evaluation_images: EvaluationImages = None,
    bits: Bits = None,
    a_bits: InputBits = "8",
    objective: Objectives = None,
    device: Device = "auto",
    seed: Seed = 0,
    task: TaskName = "auto",
    batch_axis: BatchAxis = 0,
    name: Name = None,
    output: Output = Format.table,
) -> None:
    """Score, weigh and measure an assignment from elsewhere, beside uniform ones and the optimum of the same
    bytes.
    """
    require_names(context.params)
    require_file(file)
    from mpsearch.deploy.imports import IMPORTERS
    from mpsearch.pipeline import DEFAULT_OBJECTIVES
    from mpsearch.pipeline.folder import Study
    from mpsearch.pipeline.jobs.imported import compare_import, open_workshop

    IMPORTERS.create(importer)  # before the model is loaded: a slip is told at once
    config = config_of(
        context, budgets=("8bits",), objectives=tuple(objective or DEFAULT_OBJECTIVES), target="packed"
    )
    study = Study(study_folder(name or study_name(model, ("import", file.stem))))
    with study.busy():
        study.claim(config)
        found = compare_import(file, importer, open_workshop(config, study, ProgressBars()))
    for note in found.imported.notes:
        say(note)
    _print(found, output)
    say(f"Assignment: {study.path / 'assignment.json'}; everything: {study.path / 'imported.json'}.")


def _print(found: Any, output: Format) -> None:
    if output is Format.json:
        print(
            json.dumps(
                {"notes": list(found.imported.notes), "measure": found.measure, "rows": list(found.rows)},
                indent=1,
            )
        )
        return
    header = (
        "",
        "size predicted",
        "size on disk",
        *(f"damage: {name}" for name in found.objectives),
        found.measure,
        "top-1",
        "agreement",
    )
    print_rows(header, [_cells(row, found.objectives) for row in found.rows], output)


def _cells(row: dict[str, Any], objectives: tuple[str, ...]) -> tuple[str, ...]:
    metrics, size = row["measured"]["metrics"], row["predicted"].get("size_bytes")
    damage = [f"{row['scores'][name]:.4g}" if name in row["scores"] else "" for name in objectives]
    top1 = "" if metrics["top1"] is None else f"{metrics['top1']:.2%}"
    predicted = "" if size is None else f"{size:,.0f} B"
    return (
        row["label"],
        predicted,
        f"{row['measured']['size_bytes']:,.0f} B",
        *damage,
        f"{metrics['kl']:.5f}",
        top1,
        f"{metrics['agreement']:.2%}",
    )
