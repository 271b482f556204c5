"""`mpsearch finetune`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mpsearch.cli import _finetune_options as options
from mpsearch.cli._app import command
from mpsearch.cli._given import began, expand, is_given
from mpsearch.cli._options import (
    CalibrationImages,
    ClassMap,
    Device,
    EvaluationImages,
    FirstLastBits,
    Fix,
    InputObserver,
    InputSize,
    Interpolation,
    Mean,
    Model,
    ModelArguments,
    Name,
    Output,
    Quantize,
    RandomWeights,
    Seed,
    Smooth,
    Softmax,
    Std,
    TaskName,
    Threads,
    Weights,
)
from mpsearch.cli._reading import config_of, study_folder, study_name
from mpsearch.cli._run_options import Iterations, Method, Target
from mpsearch.cli._show import Format, ProgressBars, print_rows, say
from mpsearch.efforts import format_duration, parse_duration
from mpsearch.errors import OptionError
from mpsearch.presets import preset_of

if TYPE_CHECKING:
    from mpsearch.pipeline import RunConfig
    from mpsearch.pipeline.folder import Study
    from mpsearch.pipeline.steps.subject import Subject
    from mpsearch.pipeline.steps.tuning import Tuning
    from mpsearch.problem import Assignment

_OF_TUNING = {
    *("study", "point", "data", "images", "epochs", "steps", "batch_size", "chunk", "learning_rate"),
    *("step_learning_rate", "label_weight", "temperature", "augment", "input_grids", "time_limit", "label"),
    *("preset", "device", "output"),
}
"""Options that say how it learns; all others are settings of the study."""
_ANY = (2, 3, 4, 5, 6, 7, 8)


@command(
    "mpsearch finetune studies/default-4bits --data images/train",
    "mpsearch finetune --preset q-mlp --bits 4 --a-bits 4 --model qmlp_cifar --weights q.safetensors "
    "--data train.zip --evaluation-data test.zip",
)
def finetune(
    context: typer.Context,
    data: options.LearningData,
    study: options.StudyFolder = None,
    point: options.Point = None,
    bits: options.Width = None,
    a_bits: options.InputWidth = "8",
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    evaluation_data: options.EvaluationData = None,
    evaluation_images: EvaluationImages = None,
    calibration_images: CalibrationImages = None,
    class_map: ClassMap = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    images: options.Images = None,
    epochs: options.Epochs = 3,
    steps: options.Steps = None,
    batch_size: options.BatchSize = 128,
    chunk: options.Chunk = 64,
    learning_rate: options.LearningRate = 2e-4,
    step_learning_rate: options.StepLearningRate = 1e-3,
    label_weight: options.LabelWeight = 0.0,
    temperature: options.Temperature = 2.0,
    augment: options.Augmentation = "none",
    input_grids: options.InputGrids = "asymmetric",
    time_limit: options.TimeLimit = None,
    preset: options.PresetName = None,
    first_last_bits: FirstLastBits = None,
    fix: Fix = None,
    quantize: Quantize = "linear",
    smooth: Smooth = "none",
    input_observer: InputObserver = "mse",
    softmax: Softmax = "uniform",
    method: Method = "gptq",
    iterations: Iterations = None,
    target: Target = "ort-cpu",
    threads: Threads = 1,
    device: Device = "auto",
    seed: Seed = 0,
    task: TaskName = "auto",
    name: Name = None,
    label: options.Label = None,
    output: Output = Format.table,
) -> None:
    """Let a quantised model learn as a whole (straight-through gradients, learned steps, the float model as
    teacher), and write it as an artifact. The same command goes on where it was interrupted.
    """
    if preset is not None:
        expand(context, preset, preset_of(preset, "finetune"))
    limit = None if time_limit is None else parse_duration(time_limit)
    if study is None:
        tuning, config, folder = _of_model(context)
    else:
        tuning, config, folder = _of_study(context, study)
    _finish(context, tuning, config, folder, limit)


def _finish(
    context: typer.Context, tuning: Tuning, config: RunConfig, folder: Study, limit: float | None
) -> None:
    """All of it, and what is told."""
    from mpsearch.pipeline.jobs.finetune import finetune_assignment
    from mpsearch.pipeline.steps.clock import Clock

    clock = Clock(limit, began())
    try:
        with folder.busy():
            if context.params["study"] is None:
                folder.claim(replace(config, bits=_ANY, a_bits=(8,)))
            result = finetune_assignment(
                tuning, _assignment_of(context, config, folder.path), config, folder, ProgressBars(), clock
            )
    except KeyboardInterrupt:
        say("\nInterrupted. The same command goes on from the last checkpoint.")
        raise
    _print(result, context.params["output"])
    _tell(result, folder.path)


def _of_study(context: typer.Context, path: Path) -> tuple[Tuning, RunConfig, Study]:
    """Of a point of a study, whose settings stay as they are."""
    from mpsearch.pipeline.folder import Study
    from mpsearch.pipeline.jobs.points import require_points

    given = [n for n in context.params if is_given(context, n) and n not in _OF_TUNING]
    if given:
        flags = ", ".join(f"--{n.replace('_', '-')}" for n in given)
        raise OptionError(
            f"{flags} would change the settings of the study {path}, which stay as they are. Leave "
            f"{'it' if len(given) == 1 else 'them'} out, or leave the study out and name --model."
        )
    study, point = Study(path), context.params["point"] or "best"
    config = study.settled()
    if point == "float":
        raise OptionError("--point float has nothing that is quantised. Name another, such as best or W4A8.")
    require_points(path, [point])  # before the model is loaded: a slip is told at once
    if is_given(context, "device"):
        config = replace(config, device=context.params["device"])
    return _tuning(context, point.replace(":", "-")), config, study


def _of_model(context: typer.Context) -> tuple[Tuning, RunConfig, Study]:
    """Of a model at one width; its study knows no width, so that several may lie in it."""
    from mpsearch.pipeline.folder import Study

    given = context.params
    if given["model"] is None:
        raise OptionError(
            "There is nothing to fine-tune. Name the folder of a study, or a model with --model and --bits."
        )
    if given["point"] is not None:
        raise OptionError(
            f"--point {given['point']} is a point of a study, and none is named. Give its folder, or --bits."
        )
    judge, learn = given["evaluation_data"], given["data"]
    if judge is None and given["evaluation_images"] is None and not _has_parts(learn):
        raise OptionError(
            f"Nothing is left to judge the result: {learn} is to be learned from. Give --evaluation-data, or "
            "--evaluation-images N to keep so many of them out."
        )
    config = config_of(
        context, budgets=("8bits",), data=judge or learn, calibration_data=None if judge is None else learn
    )
    if len(config.bits) != 1 or len(config.a_bits) != 1 or config.floats:
        raise OptionError(
            "Fine-tuning needs one width for weights and one for inputs. Give such as --bits 4 --a-bits 4; a "
            "mixed assignment is that of a study, whose folder is named in place of --model."
        )
    folder = study_folder(given["name"] or study_name(given["model"], ("finetune",)))
    return _tuning(context, f"W{config.bits[0]}A{config.a_bits[0]}"), config, Study(folder)


def _has_parts(data: str) -> bool:
    """Whether a source has images of its own that judge."""
    from mpsearch.data import has_parts

    return has_parts(data)


def _tuning(context: typer.Context, label: str) -> Tuning:
    from mpsearch.pipeline.steps.tuning import Tuning
    from mpsearch.reconstruct.finetune import FinetuneConfig

    given = context.params
    label = given["label"] or label
    if Path(label).name != label or label in (".", ".."):
        raise OptionError(
            f"--label {label!r} is no name of a folder. Write a name without slashes, such as mine."
        )
    names = ("epochs", "steps", "batch_size", "chunk", "learning_rate", "step_learning_rate")
    settings = FinetuneConfig(
        **{n: given[n] for n in (*names, "label_weight", "temperature", "seed")},
    )
    augment = tuple(part for part in given["augment"].split(",") if part and part != "none")
    return Tuning(label, given["data"], given["images"], augment, given["input_grids"], settings)


def _assignment_of(context: typer.Context, config: RunConfig, path: Path) -> Callable[[Subject], Assignment]:
    """What gives the bits of every unit, when the model is known."""
    from mpsearch.pipeline.jobs.finetune import uniform_assignment
    from mpsearch.pipeline.jobs.points import assignment_at

    if context.params["study"] is None:
        return lambda subject: uniform_assignment(subject, config)
    return lambda subject: assignment_at(path, subject, context.params["point"] or "best")


def _print(result: dict[str, Any], output: Format) -> None:
    if output is Format.json:
        print(json.dumps(result, indent=1))
        return
    labelled = any(row["metrics"]["top1"] is not None for row in result["rows"])
    timed = any("latency_us" in row for row in result["rows"])
    header = (
        "",
        "size on disk",
        *(["ms measured"] if timed else []),
        *(["top-1", "standard error"] if labelled else []),
        result["measure"],
    )
    print_rows(header, [_cells(row, labelled, timed) for row in result["rows"]], output)


def _cells(row: dict[str, Any], labelled: bool, timed: bool) -> tuple[str, ...]:
    metrics, size = row["metrics"], f"{row['size_bytes']:,.0f} B"
    cells = [row["label"], f"({size})" if row["label"] == "float" else size]
    if timed:
        cells.append(f"{row['latency_us'] / 1e3:.3f}" if "latency_us" in row else "")
    if labelled:
        error = math.sqrt(metrics["top1"] * (1 - metrics["top1"]) / metrics["images"])
        cells += [f"{metrics['top1']:.2%}", f"{error:.2%}"]
    return (*cells, f"{metrics['kl']:.5f}")


def _tell(result: dict[str, Any], path: Path) -> None:
    about, label = result["artifact"], result["label"]
    say(
        f"Learned {result['settings']['steps']:,} steps from {result['data']['images']:,} images in "
        f"{format_duration(result['learned_s'])}: this is training, not post-training quantisation."
    )
    say(f"Artifact: {Path(about['packed']).parent}; it was read back, and computes the same to the bit.")
    say(f"Export it elsewhere: mpsearch export {path} --point finetuned:{label} --target openvino")
