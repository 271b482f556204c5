"""The example factories build what the trained weights were saved from, and classify as they should."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from timm.data import create_transform
from torch import Tensor

from mpsearch.models import (
    LoadedModel,
    ModelGraph,
    analyze,
    find_foldable,
    fold_batch_norm,
    load_model,
    trace_model,
)

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "assets.py"
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
SHAPES = {  # factory: weights, parameters, units, block class, blocks of it
    "mobilenetv1_075": ("mobilenetv1_075_in1k", 2_585_560, 28, "DepthwiseSeparableConv", 13),
    "cifar_resnet20": ("cifar10_resnet20", 269_722, 20, "CifarBlock", 9),
    "cifar_resnet56": ("cifar10_resnet56", 853_018, 56, "CifarBlock", 27),
    "vit_cifar": ("cifar10_vit_d128x6", 1_292_714, 28, "Block", 6),
    "resmlp_cifar": ("cifar10_resmlp_d160x6", 1_274_090, 20, "ResBlock", 6),
}


def graph(loaded: LoadedModel) -> ModelGraph:
    image = torch.zeros(1, *loaded.data_config["input_size"])
    pairs = find_foldable(trace_model(loaded.module, image), loaded.module)
    return analyze(fold_batch_norm(loaded.module, pairs), image)


@pytest.mark.parametrize("name", SHAPES)
def test_factories_build(name: str):
    _, parameters, units, block_class, blocks = SHAPES[name]
    loaded = load_model(f"{EXAMPLES}:{name}")
    found = graph(loaded)
    assert sum(p.numel() for p in loaded.module.parameters()) == parameters
    assert sum(layer.op != "matmul" for layer in found.layers) == units
    assert (
        sum(type(loaded.module.get_submodule(b.name)).__name__ == block_class for b in found.blocks) == blocks
    )
    assert found.unused == found.leftovers == ()


@pytest.fixture
def assets() -> Path:
    if not (ASSETS / "weights").is_dir():
        pytest.skip(f"no weights in {ASSETS}; set MPSEARCH_ASSETS")
    return ASSETS


def load(assets: Path, name: str) -> LoadedModel:
    return load_model(f"{EXAMPLES}:{name}", weights=assets / "weights" / f"{SHAPES[name][0]}.safetensors")


def top1(loaded: LoadedModel, images: list[Image.Image], labels: np.ndarray) -> float:
    """Percent of the images that are classified rightly, prepared by timm's transform."""
    transform = create_transform(**loaded.data_config)
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(images), 50):
            batch: Tensor = torch.stack([transform(image) for image in images[start : start + 50]])
            correct += int((loaded.module(batch).argmax(1).numpy() == labels[start : start + 50]).sum())
    return 100 * correct / len(images)


def zipped(path: Path, count: int) -> tuple[list[Image.Image], np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        rows = [row.split(",") for row in archive.read("labels.csv").decode().split()[1:]]
        picked = np.random.default_rng(0).permutation(len(rows))[:count]
        images = [Image.open(io.BytesIO(archive.read(rows[i][0]))).convert("RGB") for i in picked]
    return images, np.array([int(rows[i][1]) for i in picked])


@pytest.mark.assets
@pytest.mark.parametrize("name", SHAPES)
def test_weights_fit(assets: Path, name: str):
    loaded = load(assets, name)
    with safe_open(assets / "weights" / f"{SHAPES[name][0]}.safetensors", "pt") as file:
        state = loaded.module.state_dict()
        assert all(torch.equal(state[key], file.get_tensor(key).to(state[key].dtype)) for key in file.keys())  # noqa: SIM118


CIFAR_TOP1 = {"cifar_resnet20": 92.6, "cifar_resnet56": 93.2, "vit_cifar": 79.4, "resmlp_cifar": 76.6}


def cifar(assets: Path, count: int) -> tuple[list[Image.Image], np.ndarray]:
    data = np.load(assets / "images" / "cifar10_png_subset.npz")
    return [Image.fromarray(x) for x in data["x_test"][:count]], data["y_test"][:count]


@pytest.mark.assets
@pytest.mark.parametrize("name", CIFAR_TOP1)
def test_cifar_models_classify(assets: Path, name: str):
    assert (
        top1(load(assets, name), *cifar(assets, 60)) > CIFAR_TOP1[name] - 15
    )  # three standard errors of 60 images; chance is 10


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.parametrize("name", CIFAR_TOP1)
def test_cifar_models_reach_their_accuracy(assets: Path, name: str):
    assert top1(load(assets, name), *cifar(assets, 500)) == pytest.approx(CIFAR_TOP1[name], abs=0.5)


@pytest.mark.slow
@pytest.mark.assets
def test_mobilenet_classifies(assets: Path):
    images, labels = zipped(assets / "images" / "imagenet_val_1000.zip", 1000)
    assert top1(load(assets, "mobilenetv1_075"), images, labels) == pytest.approx(78.9, abs=1.1)
