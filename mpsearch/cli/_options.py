"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from mpsearch.cli._reading import device_name, known
from mpsearch.cli._show import Format
from mpsearch.named import require_data_name, require_metric_name, require_model_name

MODEL = "Model"
IMAGES_AND_TASK = "Images and task"
BITS_AND_GRIDS = "Bits and grids"
SEARCH = "Search"
FINISH = "Finish"
MEASURING_AND_DEVICE = "Measuring and device"
"""Groups of options in the help, behind those that are used most."""

Model = Annotated[
    str | None,
    typer.Option(
        callback=lambda text: known(text, require_model_name),
        help=(
            "timm name, hf:ID_OR_FOLDER (transformers), file.py:function (which is run), an exported program "
            "(.pt2) or an ONNX file. Without it: resnet34 fitted on digits."
        ),
    ),
]
ModelArguments = Annotated[
    list[str] | None,
    typer.Option(
        help="KEY=VALUE for the model's constructor; VALUE is JSON. May be repeated.", rich_help_panel=MODEL
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Safetensors file or state dict (.pt); without it timm's pretrained weights are downloaded."
    ),
]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights", help="Keep the random weights of timm's constructor.", rich_help_panel=MODEL
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        callback=lambda text: known(text, require_data_name),
        help=(
            "Folder or .zip of class folders, COCO's or VOC's boxes or masks (coco:DIR, voc:DIR, "
            "masks:DIR where "
            "in doubt), .npz, texts (.csv, .jsonl), timm dataset name, digits, or file.py:function (a "
            "Dataset, a "
            "DataLoader or any iterable of samples): evaluation images, or all images."
        ),
    ),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        callback=lambda text: known(text, require_data_name),
        help="Source of the calibration and search images.",
        rich_help_panel=IMAGES_AND_TASK,
    ),
]
ClassMap = Annotated[
    str | None,
    typer.Option(
        help=(
            "JSON or CSV file, folder to class index, where the order of class folders is not that of "
            "the model's outputs."
        ),
        rich_help_panel=IMAGES_AND_TASK,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="Folder or id of the tokenizer that reads the texts of --data.", rich_help_panel=IMAGES_AND_TASK
    ),
]
TextLength = Annotated[
    int | None,
    typer.Option(
        help="Tokens of each text. Those of the longest without it, 128 at most.",
        rich_help_panel=IMAGES_AND_TASK,
    ),
]
CalibrationImages = Annotated[
    int | None,
    typer.Option(
        help="Images for ranges, objectives and reconstruction: 512, or a share of fewer images.",
        rich_help_panel=IMAGES_AND_TASK,
    ),
]
SearchImages = Annotated[
    int | None,
    typer.Option(
        help="Images for the loss that the search measures. 256, or a share where there are fewer.",
        rich_help_panel=IMAGES_AND_TASK,
    ),
]
EvaluationImages = Annotated[
    int | None,
    typer.Option(
        help="Images for the accuracy that is reported; all that are left without it.",
        rich_help_panel=IMAGES_AND_TASK,
    ),
]
Bits = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            "Weight bits a unit may have: 2-8 (all of them without it), or 2,4,8; 2..8,float where it may "
            "stay float too. NAME=2..6 for some units, NAME=A4..8 for their inputs. May be repeated."
        ),
        rich_help_panel=BITS_AND_GRIDS,
    ),
]
Fix = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            "NAME=W8A8 or NAME=float: a unit's only choice; NAME may be a pattern. May be repeated, the "
            "last counts."
        ),
        rich_help_panel=BITS_AND_GRIDS,
    ),
]
InputBits = Annotated[
    str,
    typer.Option(
        help=(
            "Bits of every unit's input, 2 to 8; 4..8 or 4,8 searches them beside the weights'; 16 leaves "
            "inputs float and quantises weights alone."
        ),
        rich_help_panel=BITS_AND_GRIDS,
    ),
]
Quantize = Annotated[
    str,
    typer.Option(
        help=(
            "What is quantised beside weights: linear (the inputs of layers), matmul (both products of "
            "attention "
            "too) or full (also what softmax, GELU and layer norms read, and residual sums; --target packed)."
        ),
        rich_help_panel=BITS_AND_GRIDS,
    ),
]
Smooth = Annotated[
    str,
    typer.Option(
        help=(
            "Move outlier channels behind layer norms into the weights first: none, smoothquant, or sqb, "
            "which "
            "centres them too."
        ),
        rich_help_panel=BITS_AND_GRIDS,
    ),
]
InputObserver = Annotated[
    str,
    typer.Option(
        help=(
            "Grids of inputs: minmax, mse, percentile[:99.9], opt_m (uniform or two steps) or auto, the "
            "last two "
            "by the damage at each unit's output."
        ),
        rich_help_panel=BITS_AND_GRIDS,
    ),
]
Softmax = Annotated[
    str,
    typer.Option(
        help=(
            "Grid of the probabilities of attention: uniform (the input observer's), log2, two_region or "
            "auto."
        ),
        rich_help_panel=BITS_AND_GRIDS,
    ),
]
FirstLastBits = Annotated[
    int | None,
    typer.Option(
        help="Fix the first and the last unit, weights and inputs, at these bits.",
        rich_help_panel=BITS_AND_GRIDS,
    ),
]
Objectives = Annotated[
    list[str] | None, typer.Option(help="NAME[:option=value,...]. May be repeated.", rich_help_panel=SEARCH)
]
TaskName = Annotated[
    str,
    typer.Option(
        "--task",
        help=(
            "How outputs are compared: classification, detection:decode=file.py:function, segmentation, "
            "regression, embedding, span or outputs, with :option=value, or file.py:Class. By the outputs "
            "without it."
        ),
        rich_help_panel=IMAGES_AND_TASK,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        callback=lambda text: known(text, require_metric_name),
        help=(
            "file.py:function (which is run), called with (model, samples): one number, higher is better. "
            "samples gives batches (inputs, labels)."
        ),
        rich_help_panel=IMAGES_AND_TASK,
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        help="Channels, height and width that the model reads, such as 3,32,32, or 32 for both sides.",
        rich_help_panel=MODEL,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        help="Means of the normalisation, such as 0.5,0.5,0.5, of values in 0 to 1.", rich_help_panel=MODEL
    ),
]
Std = Annotated[
    str | None, typer.Option(help="Standard deviations of the normalisation.", rich_help_panel=MODEL)
]
Interpolation = Annotated[
    str | None,
    typer.Option(
        help="With which images are resized: bilinear, bicubic, nearest or lanczos.", rich_help_panel=MODEL
    ),
]
BatchAxis = Annotated[
    int, typer.Option(help="Axis of the samples in what the model reads and gives.", rich_help_panel=MODEL)
]
Tables = Annotated[str, typer.Option(help="Folder of latency tables.", rich_help_panel=MEASURING_AND_DEVICE)]
Threads = Annotated[
    int, typer.Option(help="CPU threads of the runtime that is timed.", rich_help_panel=MEASURING_AND_DEVICE)
]
Seed = Annotated[
    int, typer.Option(help="Random seed of splits, sampler and reconstruction.", rich_help_panel=SEARCH)
]
CallBatch = Annotated[
    int,
    typer.Option(
        help="Images in a call whose latency (and energy) is measured, predicted and limited.",
        rich_help_panel=MEASURING_AND_DEVICE,
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the study's folder below studies/.")]
Storage = Annotated[
    str | None,
    typer.Option(
        help=(
            "Where trials are kept: postgresql://USER@HOST/DATABASE for several hosts. Without it, a "
            "journal in the study's folder."
        ),
        rich_help_panel=SEARCH,
    ),
]


Device = Annotated[
    str,
    typer.Option(
        callback=device_name,
        help="What computes: auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1 or mps.",
        rich_help_panel=MEASURING_AND_DEVICE,
    ),
]
Output = Annotated[Format, typer.Option("--format", help="Format of the results on stdout.")]
