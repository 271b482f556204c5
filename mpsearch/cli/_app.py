"""The application that every command joins."""

from __future__ import annotations

from typing import Annotated

import typer

from mpsearch import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Find how many bits each layer should have, and get the quantised model that keeps the promise.",
)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mpsearch {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_tell_version, is_eager=True),
    ] = False,
) -> None:
    """Find how many bits each layer should have, and get the quantised model that keeps the promise."""
