"""Models that read and give several tensors go through the whole pipeline, from a loader or the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_nets import net as net_of_onnx
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

import mpsearch
from mpsearch.deploy.artifact import open_artifact
from mpsearch.deploy.process import bench_apart, run_apart
from mpsearch.errors import ModelError, OptionError
from mpsearch.models import load_model, observe_form
from mpsearch.pipeline import RunConfig, run, search
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps import loading
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pytrees import Batch, flatten

SETTINGS = {"trials": 3, "polish": 0, "bits": (3, 8), "iterations": 5}


@dataclass
class Found:
    boxes: Tensor
    maps: dict[str, Tensor]
    anchors: Tensor


class Net(nn.Module):
    """An image, tokens and their mask in; boxes, maps and constants out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.words = nn.Conv2d(3, 8, 3, padding=1), nn.Embedding(20, 8)
        self.box, self.map = nn.Linear(8, 4), nn.Conv2d(8, 5, 1)
        self.register_buffer("anchors", torch.ones(7, 4))

    def forward(self, image: Tensor, ids: Tensor, mask: Tensor) -> Found:
        told = (self.words(ids) * mask.unsqueeze(-1)).mean(1)
        x = torch.relu(self.stem(image)) + told[:, :, None, None]
        return Found(
            self.box(x.mean((2, 3))), {"all": self.map(x), "best": self.map(x).argmax(1)}, self.anchors
        )


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


def samples(count: int = 48) -> list[dict[str, object]]:
    draw = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randn(3, 8, 8, generator=draw),
            "ids": torch.randint(20, (6,), generator=draw),
            "mask": torch.rand(6, generator=draw) > 0.2,
            "labels": i % 3,
        }
        for i in range(count)
    ]


def test_three_inputs_and_several_outputs_end_to_end(tmp_path):
    model = net()
    loader = DataLoader(samples(), batch_size=8)
    settings = {**SETTINGS, "method": "qdrop", "target": "onnx"}
    result = search(model, loader, budgets=["5bits"], study=tmp_path / "study", **settings)
    best = result["best"]
    assert result["measure"] == "squared error" and best["metrics"]["top1"] is None
    assert set(best["metrics"]["scores"]) == {"sqnr boxes", "sqnr maps.all"}
    assert 15 < min(best["metrics"]["scores"].values()) < 100
    assert best["artifact"]["reloaded_bit_for_bit"] and best["artifact"]["onnx_scores"]["sqnr boxes"] > 25
    again = mpsearch.load(best["artifact"]["packed"], model=model)
    batch = {key: torch.stack([s[key] for s in samples(4)]) for key in ("image", "ids", "mask")}
    assert isinstance(again(**batch), Found)  # as its author called it
    artifact = open_artifact(tmp_path / "study" / "artifact")
    assert [shape for shape, _ in artifact.inputs] == [(3, 8, 8), (6,), (6,)]
    form = observe_form(again, Batch(batch.values()), flatten(((), batch))[1])
    wanted = form.flat(flatten(again(**batch))[0])
    ran = run_apart(artifact, Batch(batch.values()))
    assert (ran - wanted).norm() < 0.1 * wanted.norm()
    assert bench_apart(artifact, batches=(2,), seconds=0.01)["batches"][0]["batch"] == 2


def test_a_task_that_fits_no_output_is_told_before_anything_is_calibrated(tmp_path):
    with pytest.raises(OptionError, match=r"boxes 4 float32, maps.all 5 x 8 x 8 float32.*output=boxes"):
        search(net(), samples(), budgets=["5bits"], study=tmp_path / "a", task="segmentation", **SETTINGS)
    for objective in ("fisher", "hessian_trace", "gradient"):
        with pytest.raises(OptionError, match=f"objective '{objective}'.*--objective sketch"):
            search(
                net(), samples(), budgets=["5bits"], study=tmp_path / "b", objectives=(objective,), **SETTINGS
            )
    with pytest.raises(OptionError, match=r"brecq:loss=fisher.*the task 'outputs' has none"):
        settings = {**SETTINGS, "method": "brecq:loss=fisher"}
        search(net(), samples(), budgets=["5bits"], study=tmp_path / "c", **settings)


def test_a_task_about_one_of_the_outputs(tmp_path):
    settings = {**SETTINGS, "iterations": 0, "target": "packed", "task": "segmentation:output=maps.all"}
    given = [{key: s[key] for key in ("image", "ids", "mask")} for s in samples()]
    result = search(net(), given, budgets=["5bits"], study=tmp_path / "study", **settings)
    assert result["measure"] == "KL" and result["best"]["metrics"]["kl"] > 0
    written = json.loads((Path(result["study"]) / "artifact" / "artifact.json").read_text())
    assert written["task"] == "segmentation:output=maps.all" and written["form"]["call"]["kind"] == "tuple"


MINE = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, row, image):
        return {"logits": self.head(torch.relu(self.a(row) + self.b(image).mean((2, 3))))}

def build():
    torch.manual_seed(0)
    return Two()

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def samples():
    draw = torch.Generator().manual_seed(1)
    return [((torch.randn(6, generator=draw), torch.randn(1, 5, 5, generator=draw)), i % 4) for i in range(40)]
"""


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_model_and_samples_of_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    config = RunConfig(
        ("5bits",),
        model=f"{tmp_path / 'mine.py'}:build",
        data=f"{tmp_path / 'mine.py'}:samples",
        target="packed",
        **{**SETTINGS, "iterations": 0},
    )
    told = Told()
    result = run(config, Study(tmp_path / "study"), told)
    assert result["measure"] == "KL" and result["rows"][0]["searched"]["metrics"]["top1"] is not None
    assert any("row 6 float32, image 1 x 5 x 5 float32" in line for line in told.lines)
    again = mpsearch.load(result["best"]["artifact"]["packed"], model=config.model)
    assert set(again(row=torch.zeros(1, 6), image=torch.zeros(1, 1, 5, 5))) == {"logits"}


def test_images_are_not_resized_in_silence(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    draw = np.random.default_rng(0)
    for i in range(12):
        folder = tmp_path / "images" / f"{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    config = RunConfig(
        ("5bits",), model=f"{tmp_path / 'mine.py'}:plain", data=str(tmp_path / "images"), **SETTINGS
    )
    told = Told()
    splits = load_subject(config, told).splits
    assert splits.evaluation.inputs([0]).shape == (1, 3, 224, 224)
    assert any("224 x 224" in line and "the first was 32 x 32" in line for line in told.lines)
    assert any("the model does not say" in line and "--input-size" in line for line in told.lines)
    told = Told()
    sized = replace(config, input_size=(32,), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    evaluation = load_subject(sized, told).splits.evaluation
    assert len(told.lines) == 2 and "resized to 32 x 32" in told.lines[0]  # and that there are few
    given = {
        np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes()
        for path in (tmp_path / "images").rglob("*.png")
    }
    assert {x.numpy().tobytes() for x in evaluation.images} <= given  # byte for byte


def test_an_onnx_file_is_compared_with_its_module_before_anything_else(tmp_path, monkeypatch):
    pytest.importorskip("onnx2torch")
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=draw.integers(0, 255, (30, 8, 8, 3), np.uint8), y=np.arange(30) % 5)
    config = RunConfig(
        ("5bits",),
        model=str(net_of_onnx(tmp_path / "net.onnx")),
        data=str(tmp_path / "x.npz"),
        target="packed",
    )
    found = load_subject(config, Silent())
    assert [layer.name for layer in found.graph.layers] == ["body.0", "fc", "MatMul_5"]
    assert found.splits.calibration.inputs([0]).shape == (1, 3, 8, 8)  # as the file says

    def changed(*arguments, **options):
        loaded = load_model(*arguments, **options)
        loaded.module.get_submodule("fc").weight.data *= 1.1
        return loaded

    monkeypatch.setattr(loading, "load_model", changed)
    with pytest.raises(ModelError, match="computes something else than the file"):
        load_subject(config, Silent())
