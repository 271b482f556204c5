"""A small model and the command line, for tests of the documentation."""

from typer.testing import CliRunner

MODEL = """
import torch
from torch import nn


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(),
                              nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                              nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    model.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0}
    return model
"""


def run_command(words):
    """A command line in this process. Raises AssertionError where it fails, with what it said."""
    from mpsearch.cli import app

    result = CliRunner().invoke(app, words)
    if result.exit_code != 0:
        raise AssertionError(f"mpsearch {' '.join(words)}: {result.output}") from result.exception
    return result.stdout
