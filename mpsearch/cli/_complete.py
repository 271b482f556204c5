"""How a shell asks for completions: by a variable of the environment, which its script sets."""

from __future__ import annotations

PROGRAM = "mpsearch"
COMPLETE = "_MPSEARCH_COMPLETE"


def prepare_completion() -> None:
    """Let typer know the shells, which it does by itself only where it adds options for them."""
    from typer.completion import get_completion_inspect_parameters

    get_completion_inspect_parameters()
