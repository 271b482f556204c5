"""`mpsearch report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpsearch.cli._app import app


@app.command()
def report(study: Annotated[Path, typer.Argument(help="Folder of a study.")]) -> None:
    """Write report.html again, from a study's saved results."""
    from mpsearch.report import write_report

    print(write_report(study))
