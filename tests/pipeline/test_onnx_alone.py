"""The ONNX file that a budget buys: of the predicted size, loaded and run by a process that has ONNX Runtime and
numpy and nothing else, in integer kernels, and deciding as the checkpoint does.
"""

import json
import random
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_digits
from timm.layers import Mlp
from timm.models.mlp_mixer import MixerBlock
from timm.models.vision_transformer import Block
from torch import nn

from mpsearch.data import ImageSet, make_splits
from mpsearch.deploy import load_packed
from mpsearch.models import from_module
from mpsearch.pipeline import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.subject import make_subject
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import FLOAT, Assignment, Candidate

ALONE = """
import json, sys
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.optimized_model_filepath = sys.argv[3]
live = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
logits = live.run(None, {live.get_inputs()[0].name: np.load(sys.argv[2])})[0]
heavy = [name for name in ("torch", "mpsearch", "onnx") if name in sys.modules]
print(json.dumps({"classes": logits.argmax(1).tolist(), "heavy": heavy}))
"""


class Mobile(nn.Module):
    """A depthwise and a grouped convolution, a residual sum, a linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.ReLU6())
        self.project, self.grouped = (
            nn.Conv2d(32, 32, 1),
            nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1, groups=4), nn.ReLU()),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.grouped(x + self.project(self.depthwise(x))).mean((2, 3)))


class Patches(nn.Module):
    """Patches of 4 x 4 with their places, one block, a head."""

    def __init__(self, block):
        super().__init__()
        self.embed, self.block, self.norm = nn.Conv2d(3, 24, 4, 4), block, nn.LayerNorm(24)
        self.places, self.head = nn.Parameter(torch.randn(1, 16, 24)), nn.Linear(24, 10)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.block(tokens)).mean(1))


MAKERS = {
    "cnn": Mobile,
    "vit": lambda: Patches(Block(24, 3, qkv_bias=True)),
    "mixer": lambda: Patches(MixerBlock(24, 16, mlp_layer=Mlp)),
}


def trained(maker, images):
    """A net after some seconds of training: one that decides, as those that are deployed do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = maker()
        inputs, steps = images.inputs(), 200
        optimizer = torch.optim.Adam(module.parameters(), 5e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
        for _ in range(steps):
            batch = torch.randint(len(images), (128,))
            nn.functional.cross_entropy(module(inputs[batch]), images.labels[batch]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat(1, 3, 1, 1)
    return ImageSet(pixels, torch.tensor(labels), (0.5,) * 3, (0.25,) * 3, "digits")


def mixed(subject, draw):
    """Every unit at 2 to 8 bits, both among them; products of activations in float."""
    widths = [2, 8, *(draw.randint(2, 8) for _ in subject.units[2:])]
    draw.shuffle(widths)
    chosen = {unit: Candidate(bits, 8) for unit, bits in zip(subject.units, widths, strict=True)}
    return Assignment(tuple((layer.name, chosen.get(layer.name, FLOAT)) for layer in subject.graph.layers))


def alone(model, images, optimized):
    """Classes that a process of ONNX Runtime and numpy finds, and the graph that it runs."""
    command = [sys.executable, "-I", "-c", ALONE, *map(str, (model, images, optimized))]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(ran.stdout)
    assert found["heavy"] == []
    return np.array(found["classes"]), onnx.load(optimized).graph


@pytest.mark.parametrize("name", MAKERS)
def test_a_process_with_onnx_runtime_and_numpy_alone_decides_as_the_checkpoint(digits, name, tmp_path):
    module = trained(MAKERS[name], digits)
    config = RunConfig(budgets=("15MB",), model=name, data="digits", calibration_images=256, search_images=32)
    splits = make_splits(digits, calibration_images=256, search_images=32, evaluation_images=600)
    subject, study = (
        make_subject(from_module(module), splits, config, Silent(), module),
        Study(tmp_path / "s"),
    )
    shop = Workshop(subject, calibrate_subject(subject, config, Silent()), config, study, Silent())
    images, draw = splits.evaluation.inputs(), random.Random(name)
    np.save(tmp_path / "images.npy", images.numpy())
    for _ in range(2):
        assignment = mixed(subject, draw)
        states = shop.reconstructed(assignment, "mix")
        found = shop.artifact.write(states, {"assignment": assignment.to_json(), "measured": {}})
        file, packed = study.artifact / "model.onnx", study.artifact / "model.safetensors"
        assert found["file"] == str(file) and found["packed_bytes"] == packed.stat().st_size
        assert file.stat().st_size == found["size_bytes"] == subject.file.size_bytes(assignment)
        classes, graph = alone(file, tmp_path / "images.npy", tmp_path / "optimized.onnx")
        ran = [node.op_type for node in graph.node]
        assert sum(op in ("QLinearConv", "MatMulIntegerToFloat") for op in ran) == len(subject.units)
        assert not {"Gather", "BitwiseOr", "Cast"} & set(ran)
        assert all(node.domain != "mpsearch" for node in graph.node)
        with torch.no_grad():
            want = load_packed(packed, module)(images).argmax(1)
        assert want.eq(splits.evaluation.labels).float().mean() > 0.9
        assert np.mean(classes == want.numpy()) >= 0.99
