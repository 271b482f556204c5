"""`mpsearch run --dry-run`: the plan alone. Nothing is written, and what is wrong is told as without it."""

import json
import re
import sys

import numpy as np
import pytest
from doc_place import MODEL
from safetensors.torch import save_file

from mpsearch.hardware import BACKENDS, LatencyTable
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.pipeline import RunConfig
from mpsearch.pipeline.folder import Study

IMAGES = ["--data", "images.npz", "--calibration-images", "32", "--search-images", "24"]
SETTINGS = ["--model", "net.py:build", "--weights", "weights.safetensors", *IMAGES]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, weights, images, and a latency table of another device, a study of other settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "net.py").write_text(MODEL)
    scope = {}
    exec(MODEL, scope)
    weights = scope["build"]().state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    weights["0.weight"][0] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (96, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=pixels, y=np.arange(96) % 4)
    backend = BACKENDS.create("ort-cpu")
    other = DeviceIdentity("Imaginary 9000", "x86_64", 64, ("avx2",), "Linux")
    LatencyTable(other, backend.name, backend.version, 1).save(tmp_path / "elsewhere")
    begun = Study(tmp_path / "studies" / "other")
    begun.describe(RunConfig(("4bits",), "net.py:build", data="images.npz"), {})
    (begun.path / "steps").mkdir()
    (tmp_path / "studies" / "file").touch()
    return tmp_path


def held(folder):
    """Every file below it, with its content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} | {
        path: None for path in folder.rglob("*") if path.is_dir()
    }


def test_it_tells_the_plan_and_writes_nothing(place, call):
    before = held(place)
    told = call("run", "--budget", "5bits", *SETTINGS, "--trials", "3", "--polish", "1", "--dry-run")
    assert told.code == 0, told.err
    assert held(place) == before
    first, *lines = told.out.splitlines()
    assert first.startswith("Plan")
    steps = {name.strip() for name, *_ in (re.split(r"\s{2,}", line.strip()) for line in lines)}
    assert {"ranges of inputs", "scores", "4 trials", "artifact", "in all"} <= steps
    said = " ".join(told.err.split())
    assert "5 layers with 35 candidates in all." in said
    assert "32 images calibrate, 24 judge bit-widths, 40 are for what is reported." in said
    assert "Budget 5bits: " in said


def test_its_plan_is_data_where_that_is_asked_for_and_follows_the_settings(place, call):
    found = {}
    for effort in ("quick", "balanced"):
        words = ("run", "--budget", "5bits", *SETTINGS, "--target", "packed", "--effort", effort)
        told = call(*words, "--dry-run", "--format", "json")
        assert told.code == 0, told.err
        plan = json.loads(told.out)
        assert plan["seconds"] == pytest.approx(sum(s["seconds"] for s in plan["steps"]), abs=0.2)
        found[effort] = {s["step"]: s["passes"] for s in plan["steps"]}
    assert found["quick"]["scores"] == found["balanced"]["scores"] == 9 * 24
    assert not any("trials" in name for name in found["quick"])
    assert next(n for name, n in found["balanced"].items() if "trials" in name) % 24 == 0
    assert {path.name for path in (place / "studies").iterdir()} == {"other", "file"}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--budget", "15XB", *SETTINGS], 2),
        (["--budget", "5bits", *SETTINGS, "--trials", "-3"], 2),
        (["--budget", "5bits", *SETTINGS, "--objective", "hesian"], 2),
        (["--budget", "5bits", *SETTINGS, "--fix", "conv9=W8A8"], 2),
        (["--budget", "5bits", "--model", "net.py:build", "--weights", "none.pt", *IMAGES], 2),
        (["--budget", "5bits", "--model", "net.py:build", "--weights", "nan.safetensors", *IMAGES], 2),
        (["--budget", "5bits", "--model", "net.py:other", "--random-weights", *IMAGES], 2),
        (["--budget", "5bits", *SETTINGS, "--table", "elsewhere/NAME"], 2),
        (["--budget", "100B", *SETTINGS, "--target", "packed"], 3),
        (["--budget", "5bits", *SETTINGS, "--target", "packed", "--time-limit", "5s"], 2),
        (["--budget", "5bits", *SETTINGS, "--name", "file"], 2),
        (["--budget", "5bits", *SETTINGS, "--name", "other"], 2),
        (["--resume", "studies/none"], 2),
    ],
    ids=lambda value: " ".join(value[:2] + value[-2:]) if isinstance(value, list) else value,
)
def test_what_is_wrong_is_told_as_without_it(place, call, words, code):
    (table,) = (place / "elsewhere").glob("*.csv")
    words = [word.replace("elsewhere/NAME", str(table)) for word in words]
    planned, run = call("run", *words, "--dry-run"), call("run", *words)
    assert (planned.code, planned.out) == (run.code, run.out) == (code, "")
    assert error_of(planned) == error_of(run)
    assert "Traceback" not in planned.err


def error_of(called):
    """The last paragraph of what was said, without how it was folded and what differs from call to call."""
    said = " ".join(called.err.split())
    return re.sub(r"[\d.]+ s\b", "N s", said[said.rindex("Error") :])
