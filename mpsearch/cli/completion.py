"""`mpsearch completion`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from mpsearch.cli._app import command
from mpsearch.cli._complete import COMPLETE, PROGRAM


class Shell(StrEnum):
    """Shells whose completion can be written."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"
    powershell = "powershell"


@command(
    'eval "$(mpsearch completion bash)"',
    "mpsearch completion zsh > ~/.zfunc/_mpsearch",
    "mpsearch completion fish > ~/.config/fish/completions/mpsearch.fish",
)
def completion(shell: Annotated[Shell, typer.Argument(help="Whose script is printed.")]) -> None:
    """Print a script that lets a shell complete commands and options."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    print(get_completion_script(prog_name=PROGRAM, complete_var=COMPLETE, shell=shell.value))
