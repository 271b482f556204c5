"""The application that every command joins."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from typer.models import OptionInfo

from mpsearch import __version__
from mpsearch.cli._show import talk_as

F = TypeVar("F", bound=Callable[..., Any])

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find how many bits each layer should have, and get the quantised model that keeps the promise.",
)

Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No talk and no progress: results and errors alone.", rich_help_panel="Talk"
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Also versions and settings, progress every 2 s without a terminal, tracebacks of errors.",
        rich_help_panel="Talk",
    ),
]


def command(*examples: str, name: str | None = None) -> Callable[[F], F]:
    """Add a command with `--quiet` and `--verbose`, and examples at the end of its help.

    Args:
        examples: Command lines, as typed; the shell's line for each.
        name: Of the command; that of the function without it.
    """
    epilog = "\n\n".join(["Examples:", *(f"  {example}".replace("[", r"\[") for example in examples)])

    def add(function: F) -> F:
        @functools.wraps(function)
        def talking(*args: Any, quiet: bool, verbose: bool, **options: Any) -> Any:
            talk_as(quiet=quiet, verbose=verbose)
            return function(*args, **options)

        given = inspect.signature(function, eval_str=True)
        extra = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
            for key, annotation in (("quiet", Quiet), ("verbose", Verbose))
        ]
        for parameter in (*given.parameters.values(), *extra):
            _name_values(parameter.annotation)
        talking.__signature__ = given.replace(parameters=[*given.parameters.values(), *extra])  # type: ignore[attr-defined]
        talking.__annotations__ = {**function.__annotations__, "quiet": Quiet, "verbose": Verbose}
        app.command(name, epilog=epilog)(talking)
        return function

    return add


def _name_values(annotation: Any) -> None:
    """Call an option's value `N`, `PATH` or `TEXT` in the help, where it says nothing; a flag has none."""
    base, *held = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    kinds = {base, *get_args(base)}
    for info in held:
        if isinstance(info, OptionInfo) and info.metavar is None and not any(map(_is_choice, kinds)):
            text = "N" if kinds & {int, float} else "PATH" if Path in kinds else "TEXT"
            info.metavar = "" if base is bool else text


def _is_choice(kind: Any) -> bool:
    return isinstance(kind, str) or (isinstance(kind, type) and issubclass(kind, Enum))


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mpsearch {__version__}")
        raise typer.Exit


@app.callback(
    epilog="\n\n".join(
        [
            "Examples:",
            "  mpsearch run --budget 15MB",
            "  mpsearch run --budget 5bits --model resnet18 --data images/val",
            "  mpsearch solve studies/default-15MB --budget 12MB",
        ]
    )
)
def about(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_tell_version, is_eager=True),
    ] = False,
) -> None:
    """Find how many bits each layer should have, and get the quantised model that keeps the promise."""
