"""Options that several commands have, and what their texts mean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from mpsearch.accelerator import find_device
from mpsearch.cli._show import Format
from mpsearch.errors import OptionError, UserError
from mpsearch.named import require_data_name, require_model_name

if TYPE_CHECKING:
    from mpsearch.pipeline import RunConfig

N = TypeVar("N", int, float)


def known(text: str | None, require: Callable[[str], None]) -> str | None:
    """The text, of which `require` finds no fault: told while options are read, before torch is imported."""
    if text is not None:
        require(text)
    return text


Model = Annotated[
    str | None,
    typer.Option(
        callback=lambda text: known(text, require_model_name),
        help=(
            "timm name, file.py:function (which is run), or an exported program (.pt2). Without it: resnet34 "
            "fitted on digits."
        ),
    ),
]
ModelArguments = Annotated[
    list[str] | None,
    typer.Option(help="KEY=VALUE for the model's constructor; VALUE is JSON. May be repeated."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Safetensors file or state dict (.pt); without it timm's pretrained weights are downloaded."
    ),
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Keep the random weights of timm's constructor.")
]
Data = Annotated[
    str | None,
    typer.Option(
        callback=lambda text: known(text, require_data_name),
        help=(
            "Folder, .zip, .npz, timm dataset name, digits, or file.py:function (a Dataset, a DataLoader or "
            "any "
            "iterable of samples): evaluation images, or all images."
        ),
    ),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        callback=lambda text: known(text, require_data_name),
        help="Source of the calibration and search images.",
    ),
]
ClassMap = Annotated[
    str | None,
    typer.Option(
        help=(
            "JSON or CSV file, folder to class index, where the order of class folders is not that of "
            "the model's outputs."
        )
    ),
]
CalibrationImages = Annotated[
    int | None,
    typer.Option(
        help="Images for ranges, objectives and reconstruction. 512, or a share where there are fewer images."
    ),
]
SearchImages = Annotated[
    int | None,
    typer.Option(help="Images for the loss that the search measures. 256, or a share where there are fewer."),
]
EvaluationImages = Annotated[
    int | None, typer.Option(help="Images for the accuracy that is reported; all that are left without it.")
]
Bits = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            "Weight bits a unit may have: 2-8 (all of them without it), or 2,4,8; 2..8,float where it may "
            "stay float too. NAME=2..6 for some units, NAME=A4..8 for their inputs. May be repeated."
        )
    ),
]
Fix = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            "NAME=W8A8 or NAME=float: a unit's only choice; NAME may be a pattern. May be repeated, the "
            "last counts."
        )
    ),
]
InputBits = Annotated[
    str,
    typer.Option(
        help=(
            "Bits of every unit's input, 2 to 8; 4..8 or 4,8 searches them beside the weights'; 16 leaves "
            "inputs float and quantises weights alone."
        )
    ),
]
Quantize = Annotated[
    str,
    typer.Option(
        help=(
            "What is quantised beside weights: linear (the inputs of layers), matmul (both products of "
            "attention "
            "too) or full (also what softmax, GELU and layer norms read, and residual sums; --target packed)."
        )
    ),
]
Smooth = Annotated[
    str,
    typer.Option(
        help=(
            "Move outlier channels behind layer norms into the weights first: none, smoothquant, or sqb, "
            "which "
            "centres them too."
        )
    ),
]
InputObserver = Annotated[
    str,
    typer.Option(
        help=(
            "Grids of inputs: minmax, mse, percentile[:99.9], opt_m (uniform or two steps) or auto, the "
            "last two "
            "by the damage at each unit's output."
        )
    ),
]
Softmax = Annotated[
    str,
    typer.Option(
        help=(
            "Grid of the probabilities of attention: uniform (the input observer's), log2, two_region or "
            "auto."
        )
    ),
]
FirstLastBits = Annotated[
    int | None, typer.Option(help="Fix the first and the last unit, weights and inputs, at these bits.")
]
Objectives = Annotated[list[str] | None, typer.Option(help="NAME[:option=value,...]. May be repeated.")]
TaskName = Annotated[
    str,
    typer.Option(
        "--task",
        help=(
            "How outputs are compared: classification, segmentation, regression, embedding, span or outputs, "
            "with :option=value, or file.py:Class. By the outputs without it."
        ),
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        help="Channels, height and width that the model reads, such as 3,32,32, or 32 for both sides."
    ),
]
Mean = Annotated[
    str | None, typer.Option(help="Means of the normalisation, such as 0.5,0.5,0.5, of values in 0 to 1.")
]
Std = Annotated[str | None, typer.Option(help="Standard deviations of the normalisation.")]
Interpolation = Annotated[
    str | None, typer.Option(help="With which images are resized: bilinear, bicubic, nearest or lanczos.")
]
BatchAxis = Annotated[int, typer.Option(help="Axis of the samples in what the model reads and gives.")]
Tables = Annotated[str, typer.Option(help="Folder of latency tables.")]
Threads = Annotated[int, typer.Option(help="CPU threads of the runtime that is timed.")]
Seed = Annotated[int, typer.Option(help="Random seed of splits, sampler and reconstruction.")]
Name = Annotated[str | None, typer.Option(help="Name of the study's folder below studies/.")]
Storage = Annotated[
    str | None,
    typer.Option(
        help=(
            "Where trials are kept: postgresql://USER@HOST/DATABASE for several hosts. Without it, a "
            "journal in the study's folder."
        )
    ),
]


def device_name(text: str | None) -> str | None:
    """The text, where it names a device that is there: told before anything but torch is imported."""
    if text not in (None, "auto", "cpu"):
        find_device(text)
    return text


Device = Annotated[
    str,
    typer.Option(
        callback=device_name,
        help="What computes: auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1 or mps.",
    ),
]
Output = Annotated[Format, typer.Option("--format", help="Format of the results on stdout.")]


def config_of(context: typer.Context, **settings: Any) -> RunConfig:
    """What the options of a command ask for.

    Args:
        context: Its options by name; those that are no fields of `RunConfig` are left out.
        settings: Fields that the command decides itself.
    """
    from mpsearch.pipeline import RunConfig

    given = context.params
    widths, floats, rules = split_bits(given.get("bits"))
    same = {field.name: given[field.name] for field in fields(RunConfig) if field.name in given}
    renamed = {
        "model_args": model_arguments(given.get("model_arg") or []),
        "pretrained": not given.get("random_weights"),
        "bits": widths,
        "floats": floats,
        "a_bits": bit_widths(given.get("a_bits", "8")),
        "layer_bits": rules,
        "fix": tuple(given.get("fix") or ()),
        "input_size": numbers_of("--input-size", given.get("input_size"), int),
        "mean": numbers_of("--mean", given.get("mean"), float),
        "std": numbers_of("--std", given.get("std"), float),
    }
    return RunConfig(**{**same, **renamed, **settings})


def numbers_of(flag: str, text: str | None, kind: type[N]) -> tuple[N, ...] | None:
    """Numbers between commas. Raises OptionError where they are none."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        example = "3,32,32" if kind is int else "0.5,0.5,0.5"
        raise OptionError(
            f"Cannot read {flag} {text!r}. Write numbers between commas, such as {example}."
        ) from None


def model_arguments(pairs: list[str]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(
                f"Cannot read the model argument {pair!r}. Write KEY=VALUE, such as --model-arg "
                "num_classes=10."
            )
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def split_bits(texts: list[str] | None) -> tuple[tuple[int, ...], bool, tuple[str, ...]]:
    """What every unit may have, whether it may stay float, and the rules for units by name."""
    general = [text for text in texts or () if "=" not in text]
    asked = general[-1] if general else "2-8"
    widths = asked.removesuffix(",float")
    return bit_widths(widths), widths != asked, tuple(text for text in texts or () if "=" in text)


def bit_widths(text: str) -> tuple[int, ...]:
    try:
        if match := re.fullmatch(r"(\d+)(?:-|\.\.)(\d+)", text):
            if int(match[1]) > int(match[2]):
                raise OptionError(
                    f"Cannot read the bit-widths {text!r}: the lower comes first. Write "
                    f"{match[2]}-{match[1]}."
                )
            if int(match[2]) > 8:
                raise OptionError(
                    f"Cannot read the bit-widths {text!r}: each must be 2 to 8. Write 2-8 or 2,4,8."
                )
            return tuple(range(int(match[1]), int(match[2]) + 1))
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise OptionError(f"Cannot read the bit-widths {text!r}. Write 2-8, 2,4,8 or 2..8,float.") from None


def require_file(path: Path) -> None:
    """Raises UserError where there is none: told before a model is loaded."""
    if not path.is_file():
        raise UserError(f"There is no file {path}. Name one that exists.")


def study_folder(name: str) -> Path:
    """Below `studies/`. Raises OptionError where a name leads out of it."""
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
        raise OptionError(
            f"--name {name!r} leads out of studies/. Write a name such as mine, or leave it out."
        )
    return Path("studies") / name


def study_name(model: str | None, budgets: tuple[str, ...]) -> str:
    base = "default" if model is None else model.rpartition(":")[2]
    return re.sub(r"[^A-Za-z0-9.%_-]+", "-", "-".join((base, *budgets)))
