"""The commands of examples/README.md, as they stand there, on few samples: search, artifact, ONNX in a process of its
own, and the task's score through that file.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from tiny_bert import write_tiny_bert

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import data
import train

from mpsearch.cli import main
from mpsearch.hardware import profile
from mpsearch.pipeline.steps import latency, latency_model, measurement

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COMMANDS = dict(
    re.findall(
        r"^\| .* \| (?:\[(\w+)\.py\].*|none) \| `mpsearch (.+)` \|$",
        (EXAMPLES / "README.md").read_text(),
        re.M,
    )
)
FEW = "--effort quick --calibration-images 16 --search-images 8 --evaluation-images 24 --format json --tables tables"
pytestmark = pytest.mark.filterwarnings("default")  # transformers and torchvision warn of themselves


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the data, a tiny classifier of texts, and the tables of all commands."""
    folder = tmp_path_factory.mktemp("examples")
    data.write_all(folder / "example-data", 60)
    (folder / "examples").symlink_to(EXAMPLES)
    return folder


@pytest.fixture(autouse=True)
def quickly(monkeypatch, place):
    """Latencies are read in this process and for a moment: what they are does not matter here."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(
        latency, "profile", lambda *a, **k: profile(*a, **{**k, "isolate": False, "seconds": 0.001})
    )
    monkeypatch.setattr(latency_model, "MODEL_SECONDS", 0.01)
    monkeypatch.setattr(latency_model, "TRIES", 1)
    monkeypatch.setattr(measurement, "TRIES", 1)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command of the README; gives what was chosen, and what it said."""

    def call(name, *further):
        arguments = [
            *shlex.split(COMMANDS[name]),
            *FEW.split(),
            "--name",
            f"study-{name or 'minilm'}",
            *further,
        ]
        monkeypatch.setattr(sys, "argv", ["mpsearch", *arguments])
        try:
            main()
        except SystemExit as stop:
            pytest.fail(f"exit code {stop.code}: {capsys.readouterr().err}")
        printed = capsys.readouterr()
        return json.loads(printed.out), " ".join(printed.err.split())

    return call


@functools.cache
def trained(name, steps):
    train.write_weights(
        train.trained(name, Path("example-data"), steps), Path("example-data") / f"{name}.safetensors"
    )


def test_every_command_is_tried_and_its_file_is_short():
    assert set(COMMANDS) == {"resnet", "two_inputs", "unet", "yolo", "", "three_heads", "ssdlite"}
    for name in filter(None, COMMANDS):
        text = (EXAMPLES / f"{name}.py").read_text().partition('"""\n')[2]
        assert 0 < len([line for line in text.splitlines() if line.strip()]) <= 20, name


def as_file(result, score):
    """Of the chosen assignment the score of the checkpoint, and of the ONNX file in ONNX Runtime; what must hold of
    any.
    """
    artifact = result["best"]["artifact"]
    assert (
        artifact["reloaded_bit_for_bit"] and Path(artifact["onnx"]).stat().st_size == artifact["size_bytes"]
    )
    assert artifact["onnx_fresh_latency_us"] > 0 and artifact["onnx_agreement"] > 0.9
    both = [artifact["top1"], artifact["onnx_top1"]] if score == "top1" else [
        artifact[key][score] for key in ("scores", "onnx_scores")
    ]  # fmt: skip
    return both


def floats(result):
    return next(row for row in result["rows"] if row["label"] == "float")["searched"]["metrics"]


def test_resnet_and_a_folder_of_images(run):
    trained("resnet", 12)
    result, said = run("resnet", "--bits", "4,6")
    checkpoint, file = as_file(result, "top1")
    assert abs(checkpoint - file) < 1.5 / 24 and floats(result)["top1"] > 0.3
    assert "resized to 32 x 32" in said and "mean 0.5 0.5 0.5" in said


def test_two_inputs(run):
    trained("two_inputs", 40)
    result, said = run("two_inputs")
    checkpoint, file = as_file(result, "top1")
    assert abs(checkpoint - file) < 1.5 / 24 and floats(result)["top1"] > 0.6
    assert "image 1 x 8 x 8 float32, question 2 float32" in said and "task classification" in said


def test_unet_with_masks_by_intersection_over_union(run):
    trained("unet", 15)
    result, _ = run("unet", "--iterations", "4", "--bits", "3,4,6")
    checkpoint, file = as_file(result, "miou")
    assert checkpoint == pytest.approx(file, abs=0.02) and 0 < floats(result)["scores"]["miou"] <= 1
    assert result["best"]["metrics"]["scores"]["pixel_accuracy"] > 0.5 and result["measure"] == "KL"


def test_a_detector_with_coco_boxes_by_average_precision(run):
    pytest.importorskip("pycocotools")
    trained("yolo", 60)
    result, _ = run("yolo", "--iterations", "4", "--bits", "3,4,6")
    checkpoint, file = as_file(result, "map50")
    assert floats(result)["scores"]["map50"] > 0.01 and checkpoint == pytest.approx(file, abs=0.05)
    scores = result["best"]["metrics"]["scores"]
    assert set(scores) == {"map", "map50", "sqnr"} and scores["sqnr"] > 5


def test_a_classifier_of_sentences(run, place):
    pytest.importorskip("transformers")
    words = sorted(
        {word for text, _ in zip(*data.opinions(200, 0), strict=True) for word in re.findall(r"\w+", text)}
    )
    write_tiny_bert(place / "tiny", words, classes=8, length=24)
    train.write_classifier(
        place / "example-data" / "minilm", place / "example-data" / "texts.csv", 5, str(place / "tiny")
    )
    result, said = run("", "--bits", "6,8")
    checkpoint, file = as_file(result, "top1")
    assert checkpoint == pytest.approx(file, abs=1 / 12) and floats(result)["top1"] is not None
    assert "tokens each" in said and "input_ids" in said and "attention_mask" in said


def test_three_heads_without_a_task(run):
    result, said = run("three_heads")
    assert "task" not in COMMANDS["three_heads"] and result["measure"] == "squared error"
    for head in ("boxes", "map", "embedding"):
        _, file = as_file(result, f"sqnr {head}")
        assert file > 10
    assert "resized to 32 x 32" in said


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_ssdlite_of_torchvision(run):
    result, _ = run("ssdlite")
    for output in ("bbox_regression", "cls_logits"):
        checkpoint, file = as_file(result, f"sqnr {output}")
        assert checkpoint > 0 and file > 10
    assert torch.isfinite(torch.tensor(result["best"]["metrics"]["kl"]))
