"""What of the GPU benchmark runs without a GPU: its shapes, and that it says what it lacks."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpsearch.hardware.table import row_key
from mpsearch.problem import Layer

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


def test_the_shapes_of_the_models_are_units_once_each():
    held = json.loads(gpu.SHAPES.read_text())
    assert set(held) == set(gpu.MODELS)
    for rows in held.values():
        layers = [Layer.from_json(row) for row in rows]
        assert len({row_key(layer, 1) for layer in layers}) == len(layers) >= 5
    macs = sum(layer.macs * 1 for layer in map(Layer.from_json, held["resnet18"]))
    assert 0 < macs < 1.9e9
    assert all(row["bias"] for row in held["resnet18"])  # batch norms are folded
    assert sum(row["calls"] for row in held["resnet18"]) == 21


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_script_ends_with_the_reason(tmp_path):
    environment = {
        **os.environ,
        "OUT": str(tmp_path),
        "PYTHON": sys.executable,
        "MINUTES": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [str(ROOT / "benchmarks" / "h200.sh")], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 1 and "CUDA" in done.stdout
    (log,) = (tmp_path / "logs").iterdir()
    assert "CUDA" in log.read_text() and log.name.endswith("-doctor.log")
