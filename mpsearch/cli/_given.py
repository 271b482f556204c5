"""What the command line of this process says: which options were typed, what a preset adds, when it began."""

from __future__ import annotations

import time

import psutil
import typer

from mpsearch.cli._show import say
from mpsearch.presets import Preset


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was typed, or is in the file of settings."""
    return getattr(context.get_parameter_source(name), "name", "") in ("COMMANDLINE", "DEFAULT_MAP")


def expand(context: typer.Context, name: str, preset: Preset) -> None:
    """Set what a preset stands for, where the command line says nothing, and say so.

    Args:
        context: Options of the command.
        name: The preset's.
        preset: The preset.
    """
    with_budget = bool(context.params.get("budget"))
    alone = {} if with_budget else preset.without_budget
    for option, value in {**preset.options, **alone}.items():
        if not is_given(context, option):
            context.params[option] = list(value) if isinstance(value, tuple) else value
    say(f"Preset {name}: {preset.typed(with_budget=with_budget)}")


def began() -> float:
    """When this process began, as `time.monotonic()` counts: imports take part of a time limit too."""
    return time.monotonic() - (time.time() - float(psutil.Process().create_time()))
