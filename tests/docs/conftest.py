"""A small model, images and a finished study, under the names that the pages use."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from doc_place import MODEL, run_command
from doc_stand_ins import write_stand_ins
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """`studies/default-15MB` of a small model, the same as `studies/mine`, and what they were made from."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "my_model.py").write_text(MODEL)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (96, 4, 4, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    np.savez(folder / "val.npz", x=images, y=np.arange(96) % 4)
    scope = {}
    exec(MODEL, scope)
    save_file(scope["build"]().state_dict(), folder / "w.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command(
            [
                *("run", "--budget", "5bits", "--name", "default-15MB", "--target", "packed"),
                *("--model", "my_model.py:build", "--weights", "w.safetensors", "--data", "val.npz"),
                *("--calibration-images", "24", "--search-images", "24", "--trials", "4", "--polish", "2"),
            ]
        )
    mine = folder / "studies/mine"
    shutil.copytree(folder / "studies/default-15MB", mine)
    inputs = torch.zeros(1, 3, 16, 16)  # a file that a session opens; the run's own is made by a slow test
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(scope["build"]().eval(), (inputs,), mine / "artifact/model.onnx", dynamo=False)
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it, which is where one is."""
    shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return Path.cwd()


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """Latencies that one test has measured are there for the next."""
    return tmp_path_factory.mktemp("tables")


@pytest.fixture
def furnished(place, tables):
    """That copy, with all that the pages' commands name."""
    write_stand_ins(place)
    shutil.rmtree(place / "latency_tables", ignore_errors=True)
    (place / "latency_tables").symlink_to(tables)
    return place


@pytest.fixture
def names():
    """What a page's Python may use without saying where it comes from."""
    scope = {}
    exec(MODEL, scope)
    model = scope["build"]().eval()
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (96, 3, 16, 16), generator=draw, dtype=torch.uint8)
    labels = torch.arange(96) % 4
    inputs = (images.float() / 255 - 0.5) / 0.25
    pairs = list(zip(inputs, labels, strict=True))
    loader = torch.utils.data.DataLoader(pairs, batch_size=16)
    return {"model": model, "images": images, "labels": labels, "inputs": inputs[:4], "loader": loader}
