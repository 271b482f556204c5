"""The tutorial as it is written, from an empty folder: minutes, so only with -m slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_tutorial_ends_with_a_quantised_model(tmp_path):
    script = ROOT / "scripts" / "tutorial.py"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    told = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]
    study = tmp_path / "tutorial" / "studies" / "mine"
    best = json.loads((study / "best.json").read_text())
    assert (study / "earlier" / "4bits" / "artifact" / "model.onnx").is_file()
    assert best["budgets"][0]["text"] == "3bits"
    line = next(line for line in told.stdout.splitlines() if "images are right" in line)
    assert float(line.split("%")[0]) > 90  # of 200 digits that training did not see
