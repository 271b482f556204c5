"""The README's first command, as a newcomer runs it: minutes, so only with -m slow."""

import json
import os
import subprocess
import sys

import pytest

LOGITS = """
import sys, torch, mpsearch
from mpsearch.data import load_images
from mpsearch.pipeline.steps.embedded import DATA_CONFIG
with torch.no_grad():
    torch.save(mpsearch.load(sys.argv[1])(load_images("digits", DATA_CONFIG, split="test").inputs()), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_first_command_keeps_its_promise(tmp_path):
    environment = {**os.environ, "MPSEARCH_CACHE": str(tmp_path / "cache")}
    command = [
        sys.executable,
        "-c",
        "from mpsearch.cli import main; main()",
        "run",
        "--budget",
        "15MB",
        "--format",
        "json",
    ]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(result.stdout)
    packed = tmp_path / found["best"]["artifact"]["packed"]
    onnx = tmp_path / found["best"]["artifact"]["onnx"]
    assert onnx.stat().st_size == found["best"]["predicted"]["size_bytes"] <= 15_000_000
    assert packed.stat().st_size == found["best"]["measured"]["packed_bytes"]
    floats = next(row for row in found["rows"] if row["label"] == "float")
    assert found["best"]["metrics"]["top1"] >= floats["searched"]["metrics"]["top1"] - 0.01
    assert found["best"]["artifact"]["onnx_agreement"] >= 0.99
    outputs = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for output in outputs:
        subprocess.run([sys.executable, "-c", LOGITS, str(packed), str(output)], cwd=tmp_path, check=True)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
