"""`mpsearch report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpsearch.cli._app import command
from mpsearch.named import require_study


@command(
    "mpsearch report studies/default-15MB",
    "mpsearch report studies/resnet50-5bits --figures figures",
)
def report(
    study: Annotated[Path, typer.Argument(help="Folder of a study.")],
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder to also write each figure to, as SVG and PNG; drawn by an installed Chrome or "
            "Chromium."
        ),
    ] = None,
    browser: Annotated[
        Path | None, typer.Option(help="Chrome or Chromium for --figures, where it is not on the path.")
    ] = None,
) -> None:
    """Write report.html again, from a study's saved results."""
    require_study(study)
    from mpsearch.report import write_pictures, write_report

    print(write_report(study))
    if figures is not None:
        for path in write_pictures(study, figures, browser):
            print(path)
