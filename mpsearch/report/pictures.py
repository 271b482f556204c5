"""`write_pictures`: the figures of a report as PNG and SVG, for papers and slides.

Plotly draws in a browser, so an installed Chrome or Chromium is started once, without a window, on a page
that draws all of them and writes them into its own text. A picture is the very figure of the report, and no
package is needed.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mpsearch import files
from mpsearch.errors import MpsearchError, UserError
from mpsearch.report.figures import FIGURES
from mpsearch.report.page import DAMAGE, embedded
from mpsearch.report.points import points_of
from mpsearch.report.saved import damaged, read_saved

WIDTH, SCALE = 900, 2
"""Pixels of a figure, and of the PNG for each of them."""
BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
)
"""Where one is looked for."""
TIMEOUT_S = 300.0
"""For all pictures, on a machine that has other work."""
_BUDGET_MS = 120_000
"""Time of the page, which passes as fast as there is work."""
_DRAWN = re.compile(r'<pre id="drawn">(.*?)</pre>', re.DOTALL)
_PAGE = """<!doctype html><meta charset="utf-8"><body><pre id="drawn"></pre>
<script type="application/json" id="wanted">%s</script><script>%s</script>
<script>
(async () => {
  const wanted = JSON.parse(document.getElementById("wanted").textContent), drawn = {};
  for (const [name, figure] of Object.entries(wanted.figures)) {
    for (const format of ["svg", "png"]) {
      const scale = format === "png" ? wanted.scale : 1, height = figure.layout.height;
      const options = {format, width: wanted.width, height, scale};
      drawn[`${name}.${format}`] = await Plotly.toImage(figure, options);
    }
  }
  document.getElementById("drawn").textContent = JSON.stringify(drawn);
})();
</script></body>"""


def write_pictures(study_path: Path, folder: Path, browser: Path | None = None) -> list[Path]:
    """Write `<figure>.svg` and `<figure>.png` for each figure that the study has.

    Args:
        study_path: Folder of a finished study.
        folder: Where they go; made where it is missing.
        browser: Chrome or Chromium; None to look for one.

    Returns: The files.

    Raises:
        StudyError: The study is missing, unfinished or damaged.
        UserError: There is no such browser.
        MpsearchError: The browser drew nothing.
    """
    study_path, folder = Path(study_path), Path(folder)
    saved = read_saved(study_path)
    try:
        points = points_of(saved)
        made = {name: figure for name, make in FIGURES.items() if (figure := make(saved, points)) is not None}
    except DAMAGE as error:
        raise damaged(study_path, error) from error
    program = found_browser(browser)
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, data in _drawn(made, program).items():
            (folder / name).write_bytes(data)
            written.append(folder / name)
    return written


def found_browser(asked: Path | None = None) -> str:
    """The program. Raises UserError where there is none."""
    found = next(filter(None, map(shutil.which, [str(asked)] if asked else BROWSERS)), None)
    if found is None:
        what = f"{asked} is no program" if asked else "neither is on the path"
        raise UserError(
            f"Figures are drawn by Chrome or Chromium, and {what}. Install one, such as with apt-get install "
            "chromium, or name it with --browser FILE."
        )
    return found


def _drawn(made: Mapping[str, go.Figure], browser: str) -> dict[str, bytes]:
    """File name -> what is to be in it. Raises MpsearchError where the browser fails."""
    figures = {name: json.loads(_on_white(figure).to_json(engine="json")) for name, figure in made.items()}
    wanted = embedded({"figures": figures, "width": WIDTH, "scale": SCALE})
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "figures.html"
        page.write_text(_PAGE % (wanted, get_plotlyjs()), encoding="utf-8")
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        flags = ["--headless", "--disable-gpu", *root, f"--user-data-dir={place}/profile"]
        command = [browser, *flags, f"--virtual-time-budget={_BUDGET_MS}", "--dump-dom", page.as_uri()]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _failed(browser, error) from error
    found = _DRAWN.search(ran.stdout)
    if ran.returncode or found is None or not found[1]:
        said = ran.stderr.strip().splitlines()
        raise _failed(browser, said[-1] if said else f"exit code {ran.returncode}")
    held: dict[str, str] = json.loads(html.unescape(found[1]))
    return {name: _data(url) for name, url in held.items()}


def _failed(browser: str, why: Any) -> MpsearchError:
    return MpsearchError(
        f"{browser} drew no figures ({why}). Name another Chrome or Chromium with --browser FILE; the report "
        "itself needs none."
    )


def _data(url: str) -> bytes:
    """What a data URL holds."""
    head, _, body = url.partition(",")
    return base64.b64decode(body) if head.endswith(";base64") else unquote_to_bytes(body)


def _on_white(figure: go.Figure) -> go.Figure:
    """A copy for paper: on white ground, in dark ink."""
    copy = go.Figure(figure)
    copy.update_layout(paper_bgcolor="#ffffff", plot_bgcolor="#ffffff", font={"color": "#1b2430"})
    copy.update_layout(margin={"l": 20, "r": 20, "t": 40, "b": 20})
    return copy
