"""A factory of a small net with fixed weights, images, and settings that finish in a second or two."""

import numpy as np
import pytest

from mpsearch.pipeline import RunConfig
from mpsearch.pipeline.steps import latency, latency_model, measurement

FACTORY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6(), nn.Conv2d(8, 8, 1))
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3}
        self.pretrained_cfg |= {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}

    def forward(self, x):
        x = self.stem(x)
        x = x + self.body(x)
        return self.head(self.down(x).mean((2, 3)))


def make():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()
"""


TRANSFORMER = """
import torch
from timm.models.vision_transformer import VisionTransformer


def make():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(
            img_size=16, patch_size=4, num_classes=4, embed_dim=16, depth=2, num_heads=2, class_token=False,
            global_pool="avg", init_values=0.5,
        )
    model.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    model.pretrained_cfg |= {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}
    return model
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with `nets.py`, `images.npz`, and one folder of latency tables for all tests."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "nets.py").write_text(FACTORY)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (72, 4, 4, 3)).repeat(4, 1).repeat(4, 2) // 2 + draw.integers(
        0, 128, (72, 16, 16, 3)
    )
    np.savez(folder / "images.npz", x=pixels.astype(np.uint8), y=np.arange(72) % 4)
    return folder


@pytest.fixture(scope="session")
def vit(place):
    """Factory of a tiny vision transformer for the same images."""
    (place / "vit.py").write_text(TRANSFORMER)
    return f"{place / 'vit.py'}:make"


@pytest.fixture(autouse=True)
def few_whole_runs(monkeypatch):
    """Half of the whole-model runs, and none of them again where the machine did not hold still."""
    monkeypatch.setattr(latency, "MIXED_RUNS", 12)
    monkeypatch.setattr(latency_model, "TRIES", 1)
    monkeypatch.setattr(measurement, "TRIES", 1)


@pytest.fixture
def settings(place):
    """`settings(**changes)`: a `RunConfig` of the small net."""

    def make(**changes):
        given = {
            "budgets": ("5bits",),
            "model": f"{place / 'nets.py'}:make",
            "data": str(place / "images.npz"),
            "calibration_images": 16,
            "search_images": 16,
            "objectives": ("output_mse:images=8", "weight_mse"),
            "trials": 6,
            "polish": 2,
            "iterations": 20,
            "target": "packed",
            "tables": str(place / "tables"),
        }
        return RunConfig(**{**given, **changes})

    return make
