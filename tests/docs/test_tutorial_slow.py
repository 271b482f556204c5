"""The tutorial as it is written, from an empty folder: minutes, so only with -m slow."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doc_blocks import ROOT, blocks

UNITS = 21
"""Convolutions and linear layers of torchvision's ResNet-18."""


def right(text):
    """Percent of the images, by what `use_onnx.py` prints."""
    line = next(line for line in text.splitlines() if "images are right" in line)
    return float(line.split("%")[0])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_tutorial_ends_with_a_quantised_model(tmp_path, capsys):
    script = ROOT / "scripts" / "tutorial.py"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    began = time.monotonic()
    told = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    minutes = (time.monotonic() - began) / 60
    with capsys.disabled():
        print(f"\nThe tutorial took {minutes:.1f} minutes.\n{told.stdout.rpartition('images are right')[2]}")
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]
    here = tmp_path / "tutorial"
    for block in blocks(ROOT / "docs" / "tutorial.md"):  # nothing of the page was passed over
        if block.language == "bash":
            assert f"$ {block.text.strip()}\n" in told.stdout, block
        elif block.language == "python":
            assert (here / block.title).read_text() == block.text, block
    assert right(told.stdout) > 90  # of 200 digits that training did not see, at 4 bits
    _check(here / "studies" / "mine", (here / "mine.pt").stat().st_size)
    again = subprocess.run([sys.executable, "use_onnx.py"], cwd=here, capture_output=True, text=True)
    assert right(again.stdout) > 85, again.stderr  # at 3 bits


def _check(study, float_bytes):
    """The files that it ends with: of 3 bits, with those of 4 bits set aside and two points exported."""
    best = json.loads((study / "best.json").read_text())
    (budget,) = best["budgets"]
    size = (study / "artifact" / "model.onnx").stat().st_size
    assert budget["text"] == "3bits" and size == best["measured"]["size_bytes"] <= budget["limit"]
    assert size < float_bytes / 8
    with (study / "artifact" / "assignment.csv").open() as file:
        rows = list(csv.DictReader(file))
    weights = [int(row["weights"]) for row in rows]
    bits = sum(int(row["w_bits"]) * n for row, n in zip(rows, weights, strict=True)) / sum(weights)
    assert len(rows) == UNITS and bits < 3.05
    for other in ("earlier/4bits/artifact", "export/onnx/best", "export/onnx/W8A8"):
        assert (study / other / "model.onnx").is_file(), other
