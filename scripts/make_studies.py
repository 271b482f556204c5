"""Make the studies of studies/examples/: each by one command of mpsearch, in a folder of its own, of which
what can be read is kept and weights and images are not.

`python scripts/make_studies.py` makes all of them, `python scripts/make_studies.py NAME ...` some. The
environment variable MPSEARCH_ASSETS names the folder of weights and images. `--reports` writes the pages
again from what is there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mpsearch.report import write_report

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "studies" / "examples"
TEXTS = ("config.toml", "artifact/assignment.csv")
DATA = (
    *("study.json", "problem.json", "results.json", "best.json"),
    *("artifact/artifact.json", "artifact/assignment.json"),
)
POINTS = 128
"""Points of the front that are kept."""
MOST = 300_000
"""Bytes of a study."""


@dataclass(frozen=True)
class Example:
    """One study.

    Args:
        name: Of its folder.
        words: Behind `mpsearch run`, typed in a folder with `examples/` of the repository, and `weights/` and
            `images/` of the assets.
    """

    name: str
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """As it is typed."""
        return " ".join(("mpsearch run", *self.words, "--name", self.name))


STUDIES = (
    Example("digits-15MB", ("--budget", "15MB")),
    Example(
        "mobilenet-3.5bits",
        (
            *("--budget", "3.5bits", "--model", "examples/assets.py:mobilenetv1_075"),
            *(
                "--weights",
                "weights/mobilenetv1_075_in1k.safetensors",
                "--data",
                "images/imagenet_val_1000.zip",
            ),
        ),
    ),
    Example(
        "resnet20-0.6ms",
        (
            *("--budget", "0.6ms", "--bits", "4..8,float", "--model", "examples/assets.py:cifar_resnet20"),
            *("--weights", "weights/cifar10_resnet20.safetensors", "--data", "images/cifar10_png_subset.npz"),
        ),
    ),
)


def make(example: Example, to: Path, further: list[str]) -> Path:
    """Run the command in an empty folder, and keep what can be read.

    Args:
        example: The study.
        to: Where its folder goes; one that is there is replaced.
        further: Words behind the command, such as `--effort quick`.
    Returns: The folder.

    Raises:
        KeyError: MPSEARCH_ASSETS is not set.
        subprocess.CalledProcessError: The run failed.
        SystemExit: The study is too large, or names a path of this machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "examples").symlink_to(ROOT / "examples")
        for name in ("weights", "images"):
            (here / name).symlink_to(Path(os.environ["MPSEARCH_ASSETS"]).resolve() / name)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "mpsearch", *example.command.split()[1:], *further]
        print(f"$ {example.command}", flush=True)
        subprocess.run(
            command, cwd=here, env={**os.environ, "PYTHONPATH": path, "MPSEARCH_CACHE": "cache"}, check=True
        )
        found = to / example.name
        shutil.rmtree(found, ignore_errors=True)
        keep(here / "studies" / example.name, found)
    link_plotly(write_report(found))
    require_fit(found, (str(here), str(ROOT), str(Path.home()), os.environ["MPSEARCH_ASSETS"]))
    return found


def keep(study: Path, to: Path) -> None:
    """Copy what can be read of a finished study into a new folder; of the front at most POINTS points."""
    (to / "artifact").mkdir(parents=True)
    for name in TEXTS:
        shutil.copy(study / name, to / name)
    for name in DATA:
        _write(to / name, json.loads((study / name).read_text()))
    front = json.loads((study / "front.json").read_text())
    front["points"] = thinned(front["points"])
    _write(to / "front.json", front)
    with (to / "front.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow((front["resource"], front["objective"]))
        rows.writerows((point[front["resource"]], point["score"]) for point in front["points"])


def thinned(points: list[Any]) -> list[Any]:
    """At most POINTS of them, evenly, with both ends."""
    if len(points) <= POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, separators=(",", ":")) + "\n")


def link_plotly(report: Path) -> None:
    """Take Plotly out of a page, which is most of its bytes, and let it be loaded from its own site."""
    page = go.Figure().to_html(include_plotlyjs="cdn", full_html=False)
    link = next(m[0] for m in re.finditer(r"<script[^>]*\bsrc=[^>]*></script>", page))
    embedded = f"<script>{get_plotlyjs()}</script>"
    text = report.read_text(encoding="utf-8")
    if embedded not in text:
        raise SystemExit(f"{report} does not hold Plotly as it is installed here.")
    report.write_text(text.replace(embedded, link), encoding="utf-8")


def require_fit(study: Path, paths: tuple[str, ...]) -> None:
    """Raises SystemExit where a study has more than MOST bytes, or a file of it holds one of these paths."""
    files = [path for path in study.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{study}: {size:,} B in {len(files)} files", flush=True)
    named = {path.name: text for path in files for text in paths if text in path.read_text()}
    if size > MOST or named:
        raise SystemExit(f"{study} has {size:,} B of {MOST:,} B, and names paths of this machine: {named}")


def main() -> None:
    """Make the studies of the command line."""
    names = [example.name for example in STUDIES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--to", type=Path, default=EXAMPLES)
    parser.add_argument("--effort", help="Another than the default, to try this script.")
    parser.add_argument("--reports", action="store_true", help="Write the pages alone, from what is there.")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        raise SystemExit(f"There is no {', '.join(sorted(unknown))}. Known: {', '.join(names)}.")
    for example in STUDIES:
        if example.name not in (arguments.names or names):
            continue
        if arguments.reports:
            link_plotly(write_report(arguments.to / example.name))
        else:
            make(example, arguments.to, ["--effort", arguments.effort] if arguments.effort else [])


if __name__ == "__main__":
    main()
