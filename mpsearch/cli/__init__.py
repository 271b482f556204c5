"""The command line: parse, call the pipeline, print, exit code; nothing else. One file for each command.

Data goes to stdout, talk and progress to stderr. Exit codes: 0, 1 (failed), 2 (usage), 3 (infeasible), 130
(interrupted, resumable).
"""

from __future__ import annotations

import importlib
import os
import sys

import typer

from mpsearch.allocator import keep_freed_memory
from mpsearch.cli._app import app
from mpsearch.cli._complete import COMPLETE, prepare_completion
from mpsearch.cli._show import is_verbose, talk
from mpsearch.errors import MpsearchError, UserError
from mpsearch.files import refusal
from mpsearch.spinning import spin_briefly

_COMMANDS = (
    *(
        "run",
        "finetune",
        "solve",
        "report",
        "compare",
        "export",
        "bench",
        "dashboard",
        "profile",
        "score",
        "imports",
        "worker",
    ),
    *("lists", "doctor", "completion"),
)
"""Modules, in the order of their commands in the help; each joins the application."""
for _name in _COMMANDS:
    importlib.import_module(f"mpsearch.cli.{_name}")


def main() -> None:
    """Entry point: errors become one line and an exit code."""
    keep_freed_memory()
    spin_briefly()
    if COMPLETE in os.environ:
        prepare_completion()
    try:
        code = app(standalone_mode=False)
        if isinstance(code, int) and code:  # typer returns the code of an interruption that it has caught
            sys.exit(code)
    except MpsearchError as error:
        if is_verbose():
            talk.print_exception()
        said = error.as_flags() if isinstance(error, UserError) else str(error)
        talk.print(f"Error: {said}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # who reads the results has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        talk.print(
            f"Error: {refusal(error)}", style="bold red", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if hasattr(error, "show") and hasattr(
            error, "exit_code"
        ):  # click's usage errors know how to show themselves
            error.show()
            sys.exit(error.exit_code)
        raise


__all__ = ["app", "main"]
