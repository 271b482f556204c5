"""What of the GPU benchmark runs without a GPU: its shapes, and that it says what it lacks."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from mpsearch.hardware import Measured, Timing
from mpsearch.hardware.table import row_key
from mpsearch.problem import Layer

ROOT = Path(__file__).resolve().parents[2]
NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    net = nn.Sequential(*layers)
    net.pretrained_cfg = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}
    return net
"""


def module_of(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpu = module_of("gpu")


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
    assert done.returncode == 1 and "CUDA" in done.stdout and done.stdout.count("== ") == 1
    (log,) = (tmp_path / "logs").iterdir()
    assert "CUDA" in log.read_text() and log.name.endswith("-doctor.log")


def test_device_times_the_cpu_where_there_is_no_gpu(tmp_path, monkeypatch, capsys):
    """A whole run of a tiny net; a second call runs nothing and shows the same."""
    device = module_of("device")
    (tmp_path / "net.py").write_text(NET)
    images = np.random.default_rng(0).integers(0, 255, (48, 8, 8), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(48) % 5)
    monkeypatch.chdir(tmp_path)
    given = ["device.py", "--model", "net.py:build", "--data", "data.npz", "--trials", "1", "--images", "8"]
    monkeypatch.setattr(sys, "argv", [*given, "--out", "found.json"])
    device.main()
    first = capsys.readouterr()
    assert "| finalists |" in first.out and "left out" in first.err and "ratio" not in first.out
    held = json.loads((tmp_path / "found.json").read_text())
    assert list(held) == ["cpu"] and 0 < sum(held["cpu"]["steps"].values()) <= held["cpu"]["all"]
    monkeypatch.setattr(device, "seconds_of", None)
    device.main()
    assert capsys.readouterr().out == first.out


def test_two_devices_are_shown_beside_each_other():
    found = {"steps": {"scores": 4.0}, "all": 5.0, "cpu": "CPU one", "torch": "2.15"}
    shown = module_of("device").table(
        {"cpu": found, "cuda": {**found, "steps": {"scores": 0.5}, "name": "H200"}}
    )
    assert "| scores | 4.00 | 0.50 | 8.0 |" in shown and "cuda: H200" in shown


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """The steps with a fake card: what a reading finds is made up, what is computed is not."""

    def run(step, *arguments, **replaced):
        found = Measured(Timing(5.0, 0.1, 10, "gpu", 5.0, (5.0, 5.0)), 7.0, True)
        monkeypatch.setattr(gpu.CudaBench, "measure", lambda self, cell: cell.run() is None or found)
        card = types.SimpleNamespace(device="cpu", gpu=None)
        monkeypatch.setattr(gpu.cards, "card", lambda: card)
        for name, value in replaced.items():
            monkeypatch.setattr(gpu, name, value)
        given = gpu.parser().parse_args([step, "--out", str(tmp_path), *arguments])
        return gpu.STEPS[step](gpu.Run(given)), tmp_path

    monkeypatch.setattr(gpu, "model_layers", lambda _: [gpu.linear(5, 12, 7), gpu.conv(4, 3, 6)])
    yield run
    torch.backends.cudnn.benchmark = False


def test_fake_card_baselines_are_read_once_each_and_go_on_where_they_stopped(timed):
    one = ["--model", "resnet18", "--batch", "2"]
    assert timed("baselines", *one, "--minutes", "0")[0] == gpu.LEFT
    code, out = timed("baselines", *one)
    lines = [json.loads(line) for line in (out / "baselines.jsonl").read_text().splitlines()]
    assert code == 0 and [line["what"] for line in lines] == [
        "torch fp16",
        "torch int8 product",
        "torch fp16",
    ]
    assert lines[1]["error"] == 0 and all(line["median_us"] == 5.0 for line in lines)
    assert timed("baselines", *one)[0] == 0 and len((out / "baselines.jsonl").read_text().splitlines()) == 3


def test_fake_card_a_unit_that_torch_refuses_costs_its_line_and_no_other(timed):
    def refused(*_, **__):
        raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED\nmore")

    code, out = timed("baselines", "--model", "resnet18", BASELINES={"a": refused, "b": gpu.float_cell})
    lines = [json.loads(line) for line in (out / "baselines.jsonl").read_text().splitlines()]
    assert code == 0 and lines[0]["failed"] == "CUDNN_STATUS_NOT_SUPPORTED" and lines[1]["median_us"] == 5.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="TensorRT may be there")
def test_tensorrt_is_left_out_where_it_is_not(timed, capsys):
    assert timed("tensorrt")[0] == 0 and "left out: " in capsys.readouterr().out
