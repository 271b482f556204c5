"""What of the GPU benchmark runs without a GPU: its shapes, its arithmetic, models on our kernels (in Triton's interpreter), and that it says what it lacks."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mpsearch.errors import TableError
from mpsearch.hardware import BACKENDS, LatencyTable, identity, profile
from mpsearch.hardware.table import row_key
from mpsearch.problem import Candidate, Layer

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


@pytest.mark.parametrize(("candidate", "largest"), [("W8A8", 0.02), ("W4A16", 0.2)])
def test_a_model_runs_with_units_replaced(candidate, largest):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(2), nn.Linear(16, 5)).half()
    x = torch.randn(2, 3, 8, 8).half().to(memory_format=torch.channels_last)
    expected = module(x).detach()
    for name, layer in (("0", gpu.conv(8, 3, 8, stride=2)), ("3", gpu.linear(8, 16, 5))):
        ends = gpu._inputs(module, x, [name])[name]
        module.set_submodule(name, gpu.Replaced(gpu._unit(module.get_submodule(name), layer, Candidate.parse(candidate), ends, lambda _: gpu_tile())))
    error = float((module(x) - expected).abs().max() / expected.abs().max())
    assert 0 < error < largest


def gpu_tile():
    from mpsearch.hardware.kernels.tiles import Tile

    return Tile(16, 32, 64, 4, 2)


def line(rows, times):
    return {"rows_us": rows, "passes_us": times}


def test_the_prediction_leaves_the_predicted_run_out():
    done = [line(100.0, [130.0, 130.0]), line(60.0, [80.0, 80.0])]
    done += [line(float(s), [s * 1.1 + 20, s * 1.1 + 20]) for s in (70, 75, 80, 85, 90)]
    found = gpu._prediction(done)
    assert found["mape_fitted"] == pytest.approx(0, abs=1e-12) and found["aa"] == 0
    expected = sum(abs(s + 30 - (1.1 * s + 20)) / (1.1 * s + 20) for s in (70, 75, 80, 85, 90)) / 5
    assert found["mape_sum"] == pytest.approx(expected)
    assert "mape_sum" not in gpu._prediction([*done[:4], line(None, [1.0, 1.0])])


def test_the_host_never_times_a_gpu(tmp_path):
    backend = BACKENDS.create("torch-cuda")
    with pytest.raises(TableError, match=r"torch-cuda runs on a GPU.*hardware\.gpu\.table"):
        profile([gpu.linear(4, 8, 8)], [[gpu.FLOAT]], backend, LatencyTable(identity(), backend.name, backend.version, 1), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_script_ends_with_the_reason(tmp_path):
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable, "MINUTES": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(ROOT / "benchmarks" / "h200.sh")], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1 and "CUDA" in done.stdout
    (log,) = (tmp_path / "logs").iterdir()
    assert "CUDA" in log.read_text() and log.name.endswith("-doctor.log")
