"""Settings of `mpsearch run` in a TOML file: read as if they were typed, and written for every study."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mpsearch.errors import OptionError, UnknownNameError

if TYPE_CHECKING:
    from mpsearch.pipeline import RunConfig

NAME = "config.toml"
_NOT_SETTINGS = ("resume", "quiet", "verbose", "help", "dry-run")


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take a file's settings for options that are not typed.

    Args:
        context: Of the command, whose options the keys are: `budget`, `calibration-images` or
            `calibration_images`.
        path: The file; None for none.

    Raises:
        UnknownNameError: A key is none of the command's options.
        OptionError: There is no such file, it is no TOML, or a value is not of its option's kind.
    """
    if path is None:
        return None
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise OptionError(
            f"There is no file {path}. Give a TOML file of settings, such as settings.toml; a study's folder "
            f"goes on with --resume {path}."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(
            f'{path} cannot be read as TOML ({error}). Write one setting a line, such as budget = "15MB".'
        ) from None
    options = _options(context)
    context.default_map = {}
    for key, value in held.items():
        flag = key.replace("_", "-")
        if flag not in options:
            hint = "They are the options of `mpsearch run`."
            raise UnknownNameError(f"setting of {path}", key, options, hint)
        option = options[flag]
        context.default_map[option.name] = _as_typed(f"{path}: {key}", value, option)
    return path


def _options(context: typer.Context) -> dict[str, Any]:
    """Long name without dashes -> the option."""
    found = {}
    for option in context.command.params:
        names = [text[2:] for text in option.opts if text.startswith("--")]
        if names and names[0] not in _NOT_SETTINGS:
            found[names[0]] = option
    return found


def _as_typed(where: str, value: Any, option: Any) -> Any:
    """A value as the command line gives it: flags as they are, anything else as text.

    Raises: OptionError: It is not of the option's kind.
    """
    if getattr(option, "is_flag", False):
        if not isinstance(value, bool):
            raise OptionError(f"{where} is {value!r}; it must be true or false.")
        return value
    if option.name == "model_arg" and isinstance(value, dict):
        return [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in value.items()]
    each = value if isinstance(value, list) else [value]
    if any(isinstance(part, bool) or not isinstance(part, str | int | float) for part in each):
        raise OptionError(f"{where} is {value!r}; it must be a text, a number, or a list of them.")
    if not getattr(option, "multiple", False) or not all(isinstance(part, str) for part in each):
        text = ",".join(map(str, each))
        return [text] if getattr(option, "multiple", False) else text
    return each


def config_text(config: RunConfig, name: str, storage: str | None = None, workers: int = 1) -> str:
    """Settings as TOML, each with its value, so that `mpsearch run FILE` does the same.

    Args:
        config: The settings.
        name: Of the study's folder.
        storage: Where its trials are; None for the folder.
        workers: Processes that measure.
    """
    bits = ",".join(map(str, config.bits)) + (",float" if config.floats else "")
    held: dict[str, Any] = {
        "budget": list(config.budgets),
        "name": name,
        "storage": storage,
        "workers": workers,
        "bits": [bits, *config.layer_bits],
        "a-bits": ",".join(map(str, config.a_bits)),
        "fix": list(config.fix),
        "objective": list(config.objectives),
        "random-weights": not config.pretrained,
        **{key: _joined(getattr(config, key.replace("-", "_"))) for key in ("input-size", "mean", "std")},
    }
    other = {
        *("budgets", "pretrained", "bits", "floats", "layer_bits", "objectives"),
        *("model_args", "kept_images"),
    }
    for field, value in config.to_json().items():
        if field not in other and field.replace("_", "-") not in held:
            held[field.replace("_", "-")] = value
    lines = [f"{key} = {_toml(value)}" for key, value in held.items() if value not in (None, [])]
    if config.model_args:
        pairs = config.model_args.items()
        lines += ["", "[model-arg]", *(f"{_toml(k)} = {_toml(_argument(v))}" for k, v in pairs)]
    head = "# All settings of this study, presets included: `mpsearch run THIS_FILE` does the same."
    return "\n".join([head, *lines, ""])


def _joined(numbers: tuple[float, ...] | None) -> str | None:
    return None if numbers is None else ",".join(map(str, numbers))


def _argument(value: Any) -> str:
    """What is typed behind `--model-arg KEY=` for a value."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except json.JSONDecodeError:  # it is read as the text that it is
            return value
    return json.dumps(value)


def _toml(value: Any) -> str:
    """A text, number, truth or list as TOML, which writes these as JSON does."""
    return json.dumps(value, ensure_ascii=False)
