"""Options of `mpsearch finetune` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpsearch.cli._reading import known
from mpsearch.named import require_data_name

StudyFolder = Annotated[
    Path | None,
    typer.Argument(
        help="Study whose assignment learns, with its model, images and settings. Without it: --model."
    ),
]
Point = Annotated[
    str | None,
    typer.Option(
        help=(
            "What of the study learns: best (without it), the number of a measured trial (7), a point of the "
            "exact front (front:12), or W4A8."
        )
    ),
]
LearningData = Annotated[
    str,
    typer.Option(
        callback=lambda text: known(text, require_data_name) or "",
        help="Images to learn from: folder, .zip, .npz, timm dataset name or digits.",
    ),
]
EvaluationData = Annotated[
    str | None,
    typer.Option(
        callback=lambda text: known(text, require_data_name),
        help="With --model: images that judge; without it the test part of --data, where it has one.",
    ),
]
Images = Annotated[int | None, typer.Option(help="At most so many images to learn from; all without it.")]
Width = Annotated[
    list[str] | None,
    typer.Option(
        help="With --model: bits of every weight, 2 to 8. NAME=6 for some units, NAME=A6 for their inputs."
    ),
]
InputWidth = Annotated[
    str, typer.Option(help="With --model: bits of every unit's input, 2 to 8; 16 leaves inputs float.")
]
Epochs = Annotated[int, typer.Option(help="Passes over the images.")]
Steps = Annotated[int | None, typer.Option(help="Steps in all, in place of --epochs.")]
BatchSize = Annotated[int, typer.Option(help="Images of a step.")]
Chunk = Annotated[int, typer.Option(help="Images that go through the network at once: bounds the memory.")]
LearningRate = Annotated[float, typer.Option(help="Learning rate of the parameters, at its highest.")]
StepLearningRate = Annotated[float, typer.Option(help="Learning rate of the logarithms of the step sizes.")]
LabelWeight = Annotated[
    float,
    typer.Option(help="Share of the labels in the loss, 0 to 1; the rest is what the float model says."),
]
Temperature = Annotated[float, typer.Option(help="Of the distillation.")]
Augmentation = Annotated[
    str, typer.Option("--augment", help="none, flip, shift, or several between commas: flip,shift.")
]
InputGrids = Annotated[
    str,
    typer.Option(
        help=(
            "Uniform grids of inputs: asymmetric, symmetric, or sensitive[:0.001] (asymmetric where a "
            "symmetric one costs more nats than that)."
        )
    ),
]
TimeLimit = Annotated[
    str | None, typer.Option(help="Time that it may take: 90s, 10min, 1h. It learns as many steps as fit.")
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset", help="A recipe in one word: q-mlp. Other options count above it; docs/presets.md."
    ),
]
Label = Annotated[
    str | None, typer.Option(help="Name of what comes out; the point, or the widths, without it.")
]
