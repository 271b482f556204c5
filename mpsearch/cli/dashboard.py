"""`mpsearch dashboard`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from mpsearch.cli._app import command
from mpsearch.cli._show import say
from mpsearch.errors import MissingExtraError, StudyError
from mpsearch.named import require_study


@command("mpsearch dashboard studies/default-15MB", "mpsearch dashboard studies/default-15MB --port 9000")
def dashboard(
    study: Annotated[Path, typer.Argument(help="Folder of a study, finished or running.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address that it listens to; 127.0.0.1 is this machine alone.")
    ] = "127.0.0.1",
) -> None:
    """Show a study's trials in Optuna's dashboard, in a browser, until Ctrl-C."""
    require_study(study)
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise MissingExtraError("optuna-dashboard", "dashboard", "mpsearch dashboard")
    journal = newest_journal(study)
    from optuna_dashboard import run_server

    from mpsearch.study.sharing.journal import join_journal

    say(f"Trials of {journal} at http://{host}:{port} until Ctrl-C.")
    run_server(join_journal(journal), host=host, port=port)


def newest_journal(study: Path) -> Path:
    """The journal that was written last; a study has one for each set of limits that it searched under.

    Raises: StudyError: It has none: nothing was measured yet, or its trials are in a database.
    """
    found = sorted(study.glob("optuna-*.log"), key=lambda path: path.stat().st_mtime)
    if not found:
        where = (
            "its trials are in a database: run `optuna-dashboard` with its URL"
            if (study / "storage.json").is_file()
            else "no trial was measured in it yet"
        )
        raise StudyError(f"{study} has no journal of trials; {where}.")
    if len(found) > 1:
        say(f"There are {len(found)} journals, one for each set of limits; this is the last written.")
    return found[-1]
