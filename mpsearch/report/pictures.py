"""`write_pictures`: the figures of a report as PNG and SVG, for papers and slides.

Plotly draws in a browser, and kaleido drives one that is installed. So a picture is the very figure of the
page, and nothing is drawn twice in two libraries.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import plotly.graph_objects as go

from mpsearch import files
from mpsearch.errors import MissingExtraError, MpsearchError
from mpsearch.report.figures import FIGURES
from mpsearch.report.page import DAMAGE
from mpsearch.report.points import points_of
from mpsearch.report.saved import damaged, read_saved

WIDTH, SCALE = 900, 2
"""Pixels of a figure, and of the PNG for each of them."""
FORMATS = ("svg", "png")
TIMEOUT_S = 300.0
"""For one picture, on a machine that has other work."""


def write_pictures(study_path: Path, folder: Path) -> list[Path]:
    """Write `<figure>.svg` and `<figure>.png` for each figure that the study has.

    Args:
        study_path: Folder of a finished study.
        folder: Where they go; made where it is missing.
    Returns: The files.

    Raises:
        StudyError: The study is missing, unfinished or damaged.
        MissingExtraError: kaleido is not installed.
        MpsearchError: There is no browser that it could drive.
    """
    study_path, folder = Path(study_path), Path(folder)
    saved = read_saved(study_path)
    try:
        points = points_of(saved)
        made = {name: figure for name, make in FIGURES.items() if (figure := make(saved, points)) is not None}
    except DAMAGE as error:
        raise damaged(study_path, error) from error
    if importlib.util.find_spec("kaleido") is None:
        raise MissingExtraError("kaleido", "figures", "--figures")
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(figure, folder / f"{name}.{form}") for name, figure in made.items() for form in FORMATS]
        _draw(jobs)
    return [path for _, path in jobs]


def _draw(jobs: list[tuple[go.Figure, Path]]) -> None:
    """All in one browser. Raises MpsearchError where none is there, or it fails."""
    import kaleido
    from choreographer.errors import BrowserFailedError, ChromeNotFoundError

    wanted = [
        {
            "fig": _on_white(figure).to_dict(),
            "path": str(path),
            "opts": {
                "format": path.suffix[1:],
                "width": WIDTH,
                "height": int(figure.layout.height),
                "scale": SCALE if path.suffix == ".png" else 1,
            },
        }
        for figure, path in jobs
    ]
    try:
        kaleido.write_fig_from_object_sync(
            wanted, cancel_on_error=True, kopts={"mathjax": False, "timeout": TIMEOUT_S}
        )  # without mathjax, which would be loaded from the web
    except (ChromeNotFoundError, BrowserFailedError) as error:
        raise MpsearchError(
            "--figures draws in Chrome or Chromium, and kaleido found none that starts "
            f"({type(error).__name__}). Install one, such as by `apt-get install chromium` or "
            "`plotly_get_chrome`, or name it in the environment variable BROWSER_PATH."
        ) from error


def _on_white(figure: go.Figure) -> go.Figure:
    """A copy for paper: on white ground, in dark ink."""
    copy = go.Figure(figure)
    copy.update_layout(paper_bgcolor="#ffffff", plot_bgcolor="#ffffff", font={"color": "#1b2430"})
    copy.update_layout(margin={"l": 20, "r": 20, "t": 40, "b": 20})
    return copy
