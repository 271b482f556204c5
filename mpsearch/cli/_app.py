"""The application that every command joins."""

from __future__ import annotations

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Find how many bits each layer should have, and get the quantised model that keeps the promise.",
)
