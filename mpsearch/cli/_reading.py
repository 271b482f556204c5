"""What the texts of options mean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from mpsearch.accelerator import find_device
from mpsearch.errors import OptionError, UserError
from mpsearch.members import PLACES, aliases_at, names_at, observer_names, require_name, sampler_names
from mpsearch.pipeline.settings import Settings
from mpsearch.usercode import names_code

if TYPE_CHECKING:
    from mpsearch.pipeline import RunConfig

N = TypeVar("N", int, float)


def known(text: str | None, require: Callable[[str], None]) -> str | None:
    """The text, of which `require` finds no fault: told while options are read, before torch is imported."""
    if text is not None:
        require(text)
    return text


def device_name(text: str | None) -> str | None:
    """The text, where it names a device that is there: told before anything but torch is imported."""
    if text not in (None, "auto", "cpu"):
        find_device(text)
    return text


def require_names(given: Mapping[str, Any]) -> None:
    """Raises UnknownNameError where an option names a member that no registry has: told before torch is
    imported.

    Args:
        given: Options of a command by name; those that are not there are passed over.
    """
    objectives = [*names_at(PLACES["objectives"]), *names_at(PLACES["interacting"])]
    targets = [*names_at(PLACES["targets"]), *aliases_at(PLACES["targets"])]
    task = given.get("task")
    named: Sequence[tuple[str, Any, Sequence[str]]] = (
        ("objective", given.get("objective"), objectives),
        ("deployment target", given.get("target"), targets),
        ("reconstruction method", given.get("method"), names_at(PLACES["methods"])),
        ("sampler", given.get("sampler"), sampler_names()),
        ("importer", given.get("importer"), names_at(PLACES["importers"])),
        ("observer", given.get("input_observer"), ["opt_m", "auto", *observer_names()]),
        ("task", None if task is None or names_code(task) else task, ["auto", *names_at(PLACES["tasks"])]),
    )
    for kind, texts, known_names in named:
        for text in texts if isinstance(texts, list | tuple) else [texts] if texts is not None else []:
            require_name(kind, text, known_names)


def config_of(context: typer.Context, **settings: Any) -> RunConfig:
    """What the options of a command ask for.

    Args:
        context: Its options by name; those that are no fields of `RunConfig` are left out.
        settings: Fields that the command decides itself.
    """
    given = context.params
    require_names(given)
    widths, floats, rules = split_bits(given.get("bits"))
    same = {field.name: given[field.name] for field in fields(Settings) if field.name in given}
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
    asked = {**same, **renamed, **settings}
    Settings(**asked)  # what is wrong by itself is told before torch is imported
    from mpsearch.pipeline import RunConfig

    return RunConfig(**asked)


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
