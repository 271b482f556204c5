"""Who was stopped by what, as a table: each either works, or is refused in two seconds of CPU with the way out."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import mpsearch.report  # noqa: F401  (imported before anything is timed)
from mpsearch.cli import main
from mpsearch.pipeline import RunConfig
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.costs import limited
from mpsearch.pipeline.steps.loading import load_subject

MOST_S = 2.0
"""Seconds of CPU in which a user is refused."""

NETS = """
import torch
from torch import nn

def seeded(make):
    def made():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()
    return made

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.row = nn.Conv2d(3, 4, 3), nn.Linear(6, 4)

    def forward(self, image, row):
        return self.image(image).mean((2, 3)) + self.row(row)

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.box, self.kind = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 2, 1)

    def forward(self, image):
        x = torch.relu(self.stem(image))
        return {"boxes": self.box(x), "kinds": self.kind(x)}

heads, two = seeded(Heads), seeded(Two)
segment = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)))
plain = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))

def images(count=40):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(3, 8, 8, generator=draw) for _ in range(count)]

def masks():
    return [(image, (image.sum(0) > 0).long()) for image in images()]

def pairs():
    return [((image, image[0, 0, :6]), i % 4) for i, image in enumerate(images())]

def inputs():
    return [(image,) for image in images()]

def broken(model, samples):
    raise ValueError("no boxes")
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder of a user's files."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    np.savez(
        folder / "small.npz", x=draw.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), y=np.arange(40) % 2
    )
    return folder


@dataclass(frozen=True)
class Refused:
    """A command that is refused.

    Args:
        user: Who asks.
        options: Of `mpsearch run`, `@` being the user's files.
        says: What the message must say: the way out.
        never: What it must not blame.
    """

    user: str
    options: str
    says: str
    never: str = "Traceback"


SIZE = "--budget 5bits --target packed"
REFUSED = (
    Refused(
        "TensorRT without a table",
        "--model resnet18 --random-weights --data digits --target tensorrt --budget 5bits",
        r"name it with --table.*profile",
    ),
    Refused(
        "a segmentation net and an objective that draws classes",
        f"--model @nets.py:segment --data @nets.py:masks --objective fisher {SIZE}",
        r"'fisher'.*--objective sketch",
    ),
    Refused(
        "a segmentation net and a method that draws classes",
        f"--model @nets.py:segment --data @nets.py:masks --method brecq:loss=fisher {SIZE}",
        r"brecq:loss=fisher.*loss=mse",
    ),
    Refused(
        "two outputs and a task about one",
        f"--model @nets.py:heads --data @nets.py:inputs --task segmentation {SIZE}",
        r"output=boxes",
    ),
    Refused(
        "two inputs and samples of one",
        f"--model @nets.py:two --data @nets.py:inputs {SIZE}",
        r"Give every argument of its forward: samples \(\(a, b\), label\).*--data file.py:function",
        "size it was built for",
    ),
    Refused(
        "a metric that fails",
        f"--model @nets.py:heads --data @nets.py:inputs --metric @nets.py:broken {SIZE}",
        r"ValueError: no boxes.*inputs are 8 x 3 x 8 x 8.*Mend the function",
    ),
    Refused("a drop in another unit", "--model resnet18 --data digits --max-drop 2ms", r"1%.*0.5"),
    Refused(
        "a batch of peak memory",
        "--model resnet18 --data digits --batch 8 --budget '512MiB peak'",
        "--batch 8 is for budgets on latency",
    ),
    Refused("nothing asked for", "--model resnet18 --data digits", r"--budget 15MB, or --max-drop 1%"),
    *(
        []
        if torch.cuda.is_available()
        else [
            Refused(
                "a GPU that is not there",
                f"--model resnet18 --data digits --device cuda {SIZE}",
                "cpu",
            )
        ]
    ),
)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.user.replace(" ", "-"))
def test_a_user_is_refused_at_once_with_the_way_out(row, here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [part.replace("@", f"{here}/") for part in shlex.split(row.options)]
    monkeypatch.setattr(sys, "argv", ["mpsearch", "run", *options])
    start = time.process_time()
    with pytest.raises(SystemExit) as ended:
        main()
    spent = time.process_time() - start
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and re.search(row.says, said), said
    assert row.never not in said and spent < MOST_S, spent
    assert not list(tmp_path.glob("studies/*"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--model resnet81 --data digits --budget 5bits", "Did you mean 'resnet"),
        ("--model resnet18 --data digits --budget 5bits --metric mine.py:map", "There is no file mine.py"),
    ],
)
def test_a_slip_costs_no_import_of_torch(options, says, tmp_path):
    command = [sys.executable, "-m", "mpsearch", "run", *options.split()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        said = process.stderr.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 2 and says in " ".join(said.split())
    assert used.ru_utime + used.ru_stime < MOST_S


class Told(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        """Kept."""
        self.lines.append(text)


WORKS = {
    "two outputs": ("heads", "inputs", {}),
    "two inputs": ("two", "pairs", {}),
    "a segmentation net": ("segment", "masks", {}),
    "an embedding by output_mse": ("segment", "masks", {"task": "embedding", "objectives": ("output_mse",)}),
    "float units under a size budget": ("plain", "small.npz", {"floats": True}),
    "calls of eight images": ("plain", "small.npz", {"batch": 8}),
    "images of 32 x 32": ("plain", "small.npz", {"input_size": (3, 32, 32)}),
    "images of 32 x 32, nothing said": ("plain", "small.npz", {}),
}


@pytest.mark.parametrize("user", WORKS)
def test_a_user_gets_past_the_first_seconds(user, here):
    net, data, settings = WORKS[user]
    where = str(here / data) if data.endswith(".npz") else f"{here / 'nets.py'}:{data}"
    model, told = f"{here / 'nets.py'}:{net}", Told()
    config = RunConfig(("5bits",), model=model, pretrained=False, data=where, target="packed", **settings)
    subject = load_subject(config, told)
    problem, _ = limited(subject, config)
    floats = all(any(c.is_float for c in row) for row in problem.candidates)
    assert floats == (user == "float units under a size budget")
    lines = " ".join(told.lines)
    if user == "images of 32 x 32":
        assert subject.splits.evaluation.inputs([0]).shape == (1, 3, 32, 32)
        assert "Images: " in lines
    if user == "images of 32 x 32, nothing said":
        assert "Warning: the model does not say" in lines and "--input-size" in lines
