"""Pictures of a report for README and the documentation, by a headless Chromium.

`python scripts/screenshots.py studies/default-15MB` writes docs/assets/report.png and front.png (a desktop,
light) and report-phone.png (a phone, dark).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ASSETS = Path(__file__).resolve().parent.parent / "docs" / "assets"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@dataclass(frozen=True)
class Shot:
    """One picture.

    Args:
        name: File in docs/assets.
        width, height: Of the window, in CSS pixels.
        scale: Pixels for each.
        dark: Whether the page is shown in its dark colours.
        part: The id of the element that is shown; None for the page from its top.
    """

    name: str
    width: int
    height: int
    scale: float
    dark: bool = False
    part: str | None = None


SHOTS = (
    Shot("report.png", 1100, 590, 1.4),
    Shot("front.png", 1100, 700, 1.4, part="explore"),
    Shot("report-phone.png", 500, 900, 1.0, dark=True),
)
_FIRST = "<script>document.body.prepend(document.getElementById({part!r}))</script></body>"
"""Puts a part at the page's top before anything is drawn."""


def browser() -> str:
    """Raises SystemExit where there is none."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise SystemExit(f"None of {', '.join(BROWSERS)} is installed. Install one.")


def shoot(report: Path, shot: Shot, to: Path, colours: int = 64) -> None:
    """The page's top, as a PNG of few colours.

    Args:
        report: HTML file.
        shot: What is wanted.
        to: PNG that is written.
        colours: Of the palette: a page of text and lines needs no more, and the file is a third.
    """
    with tempfile.TemporaryDirectory() as folder:
        raw, page = Path(folder) / "raw.png", Path(folder) / "report.html"
        text = report.read_text(encoding="utf-8")
        if shot.part is not None:
            head, _, tail = text.rpartition("</body>")
            text = head + _FIRST.format(part=shot.part) + tail
        page.write_text(text, encoding="utf-8")
        command = [
            *(browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={folder}/profile", f"--window-size={shot.width},{shot.height}"),
            *(f"--force-device-scale-factor={shot.scale}", "--virtual-time-budget=8000"),
            *(["--blink-settings=preferredColorScheme=0"] if shot.dark else []),
            *(f"--screenshot={raw}", page.as_uri()),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        Image.open(raw).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(to, optimize=True)


def main() -> None:
    """Take all pictures of the study on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="Folder of a finished study.")
    parser.add_argument("--to", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    for shot in SHOTS:
        shoot(arguments.study / "report.html", shot, arguments.to / shot.name)
        print(f"{arguments.to / shot.name}: {(arguments.to / shot.name).stat().st_size:,} B")


if __name__ == "__main__":
    main()
