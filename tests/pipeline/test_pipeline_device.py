"""Whole runs on the strict fake device: nothing mixes devices, what is decided is what the CPU decides, what
is written is the CPU's, and a device that is not there is refused at once.
"""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import timm
import torch
from safetensors import safe_open

from mpsearch.accelerator import find_device
from mpsearch.errors import OptionError, StudyError
from mpsearch.evaluate import FastEvaluator
from mpsearch.pipeline import RunConfig, run, search
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.imported import open_workshop
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.workers.worker import _require_same_device
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant.devices import on_device
from mpsearch.testing import fake_device, tiny_net

SETTINGS = {
    "budgets": ["5bits"],
    "bits": (4, 8),
    "target": "packed",
    "trials": 2,
    "polish": 1,
    "calibration_images": 10,
    "search_images": 6,
}


class Told(Silent):
    """Keeps what is said, and the names of the steps."""

    def __init__(self):
        self.said, self.steps = [], []

    def say(self, text):
        self.said.append(text)

    def task(self, name):
        self.steps.append(name)
        return super().task(name)


def _net(name):
    """A residual net of convolutions, or two blocks of attention, with 24 images of noise."""
    net = tiny_net("conv")
    if name == "conv":
        return net.module, net.images
    small = {"img_size": 12, "patch_size": 6, "embed_dim": 16, "depth": 2, "num_classes": 10}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("test_vit", pretrained=False, **small).eval(), net.images


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("conv", {"method": "qdrop:loss=fisher", "iterations": 3}),
        ("vit", {"objectives": ("sketch", "kl:images=2")}),
    ],
)
def test_a_run_on_the_device_finds_what_the_cpu_finds(tmp_path, name, more):
    module, images = _net(name)
    found = {}
    for device, place in (("cpu", nullcontext()), ("cuda", fake_device())):
        with place:
            found[device] = search(module, images, study=tmp_path / device, device=device, **SETTINGS, **more)
    ours, theirs = found["cuda"], found["cpu"]
    assert ours["best"]["assignment"] == theirs["best"]["assignment"]
    assert [row["label"] for row in ours["rows"]] == [row["label"] for row in theirs["rows"]]
    assert ours["best"]["metrics"]["kl"] == pytest.approx(theirs["best"]["metrics"]["kl"], rel=1e-3, abs=1e-6)
    assert ours["best"]["artifact"]["reloaded_bit_for_bit"]

    about = json.loads((tmp_path / "cuda" / "study.json").read_text())
    assert about["device"] == {"type": "cuda", "name": "a fake device"}
    with safe_open(tmp_path / "cuda" / "artifact" / "model.safetensors", "pt") as file:
        assert len(list(file.keys())) > 3


def test_a_study_goes_on_on_another_device(settings, tmp_path):
    config, study = settings(objectives=("weight_mse",), trials=3, polish=0, device="cuda"), Study(tmp_path)

    def steps():
        return {path.name for path in (tmp_path / "steps").iterdir()}

    with fake_device():
        there = run(config, study)
    on_cuda = steps()
    with pytest.raises(OptionError, match="--device cpu, or auto"):
        run(config, study)

    told = Told()
    here = run(replace(config, device="cpu"), study, told)
    assert "computed on cuda. Now cpu" in " ".join(told.said)
    assert study.device() == {"type": "cpu"} and study.config().device == "cpu"
    assert here["best"]["assignment"] == there["best"]["assignment"]
    both = steps()
    assert on_cuda < both, "what the device computed is kept, and what depends on it was computed again"

    with fake_device():
        again = run(config, study)
    assert steps() == both and again["best"]["metrics"] == there["best"]["metrics"]

    told = Told()  # exported where there is no such device
    subject = open_workshop(config, study, told).subject
    assert subject.device.type == "cpu" and subject.arithmetic == ["cuda"]
    assert any("computed on cuda, and this on cpu" in line for line in told.said)


def test_a_device_that_is_not_there_is_refused_with_what_would_do():
    with pytest.raises(OptionError, match=r"no device 'gpu'.*auto, cpu, cuda, cuda:1 or mps"):
        RunConfig(budgets=("4bits",), device="gpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(OptionError, match=f"--device {name} is asked for.*--device cpu, or auto"):
            find_device(name)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with fake_device(), pytest.raises(OptionError, match="1 CUDA device here, cuda:0"):
        find_device("cuda:3")


def test_a_worker_on_another_kind_of_device_measures_nothing():
    with fake_device():
        _require_same_device("cuda:0", "cuda")
        with pytest.raises(StudyError, match="--device cuda, or the run --device cpu"):
            _require_same_device("cuda:0", "cpu")


def test_a_measured_loss_is_read_once_whatever_the_layers_and_batches():
    net = tiny_net("conv")
    with fake_device() as waited:
        device = torch.device("cuda", 0)
        module, images = net.module.to(device), net.images.on(device)
        evaluator = FastEvaluator(module, on_device(net.calibration, device), images)
        before = len(waited)
        for bits in (4, 8):
            evaluator.measure(Assignment(tuple((unit, Candidate(bits, 8)) for unit in net.units)))
        first = len(waited) - before
        for bits in (4, 8):
            evaluator.measure(Assignment(tuple((unit, Candidate(bits, 8)) for unit in net.units)))
    assert len(waited) - before - first == 2, "the outputs alone"
    assert first <= 2 + 4 * len(net.units), "and each grid, once, when it is made"
