"""Runs that cannot succeed are refused at once, in one message, and leave nothing behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import ImageDataset
from torch import nn

import mpsearch
from mpsearch.data import Classes, ImageSet, load_images
from mpsearch.errors import DataError, ModelError, MpsearchError, OptionError, StudyError
from mpsearch.hardware import LatencyTable
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.pipeline import Silent, run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.steps.costs import sized_problem
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.problem import Candidate, bytes_at, float_bytes

QUICK = {"trials": 2, "polish": 0, "iterations": 0, "target": "packed", "objectives": ("weight_mse",)}


class Net(nn.Module):
    """Conv, batch norm, a buffer, linear."""

    def __init__(self, dtype=torch.float32, persistent=True, dropout=False):
        super().__init__()
        self.conv, self.norm, self.head, self.dropout = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Linear(4, 4),
            dropout,
        )
        self.register_buffer("gain", torch.full((1, 4, 1, 1), 1.1, dtype=dtype), persistent=persistent)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x))) * self.gain
        return self.head((F.dropout(x, 0.5) if self.dropout else x).mean((2, 3)))


def net(seed=0, **options):
    torch.manual_seed(seed)
    return Net(**options).eval()


def images(count=96, classes=4):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % classes, (0.5,) * 3, (0.5,) * 3, "pictures")


def search(model, tmp_path, pictures=None, **settings):
    settings = {"study": tmp_path / "study", **QUICK, **settings}
    return mpsearch.search(model, pictures or images(), budgets=["5bits"], **settings).data


@pytest.mark.parametrize(
    "make",
    [
        lambda: net().half(),
        lambda: net().bfloat16(),
        lambda: net().double(),
        lambda: net(dtype=torch.float64),
        lambda: net(persistent=False),
        lambda: nn.DataParallel(net()).train(),
    ],
    ids=[
        "float16",
        "bfloat16",
        "float64",
        "float64 buffer",
        "buffer that is not stored",
        "wrapped, in training mode",
    ],
)
def test_what_search_takes_load_gives_back_bit_for_bit(make, tmp_path):
    model = make()
    before = {name: (value.dtype, value.clone()) for name, value in model.state_dict().items()}
    best = search(model, tmp_path)["best"]
    assert best["artifact"]["reloaded_bit_for_bit"]
    back = mpsearch.load(tmp_path / "study" / "artifact" / "model.safetensors", model=model)
    with torch.no_grad():
        output = back(images().inputs([0, 1]))
    assert output.shape == (2, 4) and output.dtype == torch.float32
    assert all(
        value.dtype == before[name][0] and torch.equal(value, before[name][1])
        for name, value in model.state_dict().items()
    )


def test_a_factory_whose_buffers_are_stored_nowhere_is_refused_by_name(tmp_path, settings, place):
    code = (place / "nets.py").read_text() + textwrap.dedent("""
        import random

        class Odd(Net):
            def __init__(self):
                super().__init__()
                self.register_buffer("gain", torch.tensor(1.0 + random.random()), persistent=False)

            def forward(self, x):
                return super().forward(x) * self.gain

        def odd():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return Odd()
    """)
    (tmp_path / "odd.py").write_text(code)
    with pytest.raises(
        ModelError, match="gives back other outputs: the values of 'gain' are no part of its state dict"
    ):
        run(settings(model=f"{tmp_path / 'odd.py'}:odd"), Study(tmp_path / "study"))
    assert not (tmp_path / "study").exists()


def test_a_model_that_is_random_is_refused_in_the_first_second(tmp_path):
    model = net(dropout=True)
    start = time.process_time()
    with pytest.raises(ModelError, match="two outputs for one input: Net is random"):
        search(model, tmp_path)
    assert time.process_time() - start < 1
    assert not (tmp_path / "study").exists()


def test_labels_without_an_output_are_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(DataError, match="pictures has labels 0 to 9; the model has 4 classes, 0 to 3"):
        search(net(), tmp_path, images(classes=10))
    assert not (tmp_path / "study").exists()
    search(net(), tmp_path, images(classes=10), task="embedding", objectives=("weight_mse",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trails": 3}, "'trails' is no setting of search. Did you mean 'trials'"),
        (
            {"weights": "x.safetensors"},
            "'weights' is about a model or images that are named, and here they are given",
        ),
        ({"calibration_data": "x.npz"}, "'calibration_data' is about"),
        ({"zzz": 3}, "'zzz' is no setting of search. Settings: a_bits, "),
    ],
)
def test_a_setting_that_search_has_not_is_told(tmp_path, settings, message):
    with pytest.raises(OptionError, match=message):
        search(net(), tmp_path, **settings)


def test_a_number_out_of_range_is_named_as_the_command_line_does(settings):
    for field, value, flag in (
        ("trials", -1, "--trials"),
        ("evaluation_images", 0, "--evaluation-images"),
        ("reconstruction_memory", "4bits", "--reconstruction-memory"),
    ):
        with pytest.raises(OptionError, match=f"^{field} is ") as refused:
            settings(**{field: value})
        assert refused.value.as_flags().startswith(f"{flag} is ")


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_few_images_are_shared_with_a_warning(tmp_path):
    heard = Heard()
    result = search(net(), tmp_path, progress=heard)
    assert result["rows"][0]["searched"]["metrics"]["images"] == 24
    assert any(
        line.startswith("Warning: pictures has few images: 48 calibrate, 24 judge") for line in heard.lines
    )


def test_a_disk_that_is_full_is_told_in_one_message(tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(
            MpsearchError, match=r"cannot be written or read \(No space left on device\)\. Make room there"
        ):
            search(net(), tmp_path)
    search(net(), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(MpsearchError, match="No space left on device"):
            search(net(), tmp_path, seed=1, study=tmp_path / "other")
    assert not [p for p in tmp_path.rglob(".*") if p.name != ".busy"] and not (tmp_path / "other").exists()


@pytest.mark.parametrize("kib", [1, 8])
def test_a_limit_on_the_size_of_files_is_told_in_one_message(tmp_path, kib, place):
    (tmp_path / "nets.py").write_text((place / "nets.py").read_text())
    (tmp_path / "images.npz").write_bytes((place / "images.npz").read_bytes())
    command = [
        sys.executable,
        "-c",
        "from mpsearch.cli import main; main()",
        "run",
        "--budget",
        "5bits",
        "--model",
        "nets.py:make",
    ]
    command += [
        "--data",
        "images.npz",
        "--trials",
        "2",
        "--polish",
        "0",
        "--iterations",
        "0",
        "--target",
        "packed",
        "--objective",
        "weight_mse",
    ]

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, kib * 1024))

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert (
        done.stderr.count("Error: ") == 1 and "File too large" in done.stderr and "ulimit -f" in done.stderr
    )
    assert not [p for p in tmp_path.rglob(".*") if p.name != ".busy"]


def test_a_file_system_without_locks_is_told_as_such(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(MpsearchError, match=r"cannot be locked .No locks available.*local disk") as refused:
        search(net(), tmp_path)
    assert not isinstance(refused.value, StudyError) and "nother process" not in str(refused.value)
    table = LatencyTable(DeviceIdentity("x", "x86_64", 1, (), "Linux"), "ort-cpu", "1", 1)
    with pytest.raises(MpsearchError, match="cannot be locked"):
        table.save(tmp_path / "tables")


def test_a_study_that_is_busy_is_still_told_as_busy(tmp_path):
    study = Study(tmp_path / "study")
    with study.busy():
        with (
            pytest.raises(StudyError, match="Another process is running the study"),
            Study(tmp_path / "study").busy(),
        ):
            pass
        assert study.path.is_dir()


def test_tables_that_cannot_be_written_are_told_before_the_model_is_built(tmp_path, monkeypatch, settings):
    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(
        "mpsearch.pipeline.steps.loading.load_model", lambda *_, **__: pytest.fail("the model was built")
    )
    (tmp_path / "tables").mkdir()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        MpsearchError, match=r"tables cannot be written or read \(Permission denied\)\. Give the right"
    ):
        run(settings(target="ort-cpu", tables=str(tmp_path / "tables")), Study(tmp_path / "study"))


def test_a_failure_leaves_no_empty_study_and_nothing_of_others(tmp_path):
    class BrokenError(Exception):
        pass

    for name in ("studies/one", "studies/deep/two"):
        with pytest.raises(BrokenError), Study(tmp_path / name).busy():
            raise BrokenError
        assert not (tmp_path / "studies").exists()
    (tmp_path / "studies" / "other").mkdir(parents=True)
    with pytest.raises(BrokenError), Study(tmp_path / "studies" / "one").busy():
        raise BrokenError
    assert [p.name for p in (tmp_path / "studies").iterdir()] == ["other"]
    kept = Study(tmp_path / "studies" / "kept")
    with pytest.raises(BrokenError), kept.busy():
        kept.cached("score", [1], lambda: 1)
        raise BrokenError
    assert kept.path.is_dir()
    with pytest.raises(KeyboardInterrupt), Study(tmp_path / "studies" / "stopped").busy():
        raise KeyboardInterrupt
    assert (tmp_path / "studies" / "stopped").is_dir()  # it may be resumed


def test_another_budget_replaces_no_artifact(tmp_path, settings):
    study, asked = Study(tmp_path / "study"), {"trials": 2, "polish": 0, "iterations": 0}
    run(settings(**asked), study)
    (study.path / "report.html").write_text(f"see {study.artifact}/model.safetensors")
    first = {p.name: p.read_bytes() for p in study.artifact.iterdir()}
    run(settings(budgets=("4bits",), **asked), study)
    earlier = study.path / "earlier" / "5bits"
    assert {p.name: p.read_bytes() for p in (earlier / "artifact").iterdir()} == first
    assert json.loads((earlier / "best.json").read_text())["artifact"]["packed"] == str(
        earlier / "artifact" / "model.safetensors"
    )
    assert (earlier / "report.html").read_text() == f"see {earlier}/artifact/model.safetensors"
    assert json.loads((study.path / "best.json").read_text())["budgets"][0]["text"] == "4bits"
    again = run(settings(**asked), study)
    assert {p.name: p.read_bytes() for p in study.artifact.iterdir()} == first and again["best"]["budgets"][
        0
    ]["text"] == "5bits"
    assert (study.path / "earlier" / "4bits" / "artifact" / "model.safetensors").is_file()
    run(settings(**asked), study)
    assert (study.path / "earlier" / "5bits" / "artifact").is_dir() and study.artifact.is_dir()


def test_sizes_of_the_table_are_those_of_the_files(settings):
    for changes in ({}, {"fix": ("head=W8A8", "stem.0=float")}, {"bits": (3, 8)}):
        config = settings(**changes)
        subject = load_subject(config, Silent())
        problem = sized_problem(subject, config)
        assert float_bytes(problem) == subject.float_bytes(subject.file)
        for bits in (2, 5, 8):
            uniform = subject.layout.constant_bytes + sum(
                subject.layout.unit_bytes(unit, Candidate(bits, 8)) for unit in subject.units
            )
            assert bytes_at(problem, bits) == pytest.approx(uniform, abs=40)
        if not changes.get("bits"):
            assert bytes_at(problem, 5) == subject.layout.constant_bytes + sum(
                subject.layout.unit_bytes(u, Candidate(5, 8)) for u in subject.units
            )


SCRIPT = """
import sys, torch
from torch import nn
import mpsearch
from mpsearch.data import ImageSet

print("read")
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
pixels = torch.randint(0, 256, (96, 3, 16, 16), dtype=torch.uint8)
images = ImageSet(pixels, torch.arange(96) % 4, (0.5,) * 3, (0.5,) * 3)
from mpsearch import search
import resource
from mpsearch.pipeline import RunConfig

def seconds():
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

start = seconds()
print("imports", start)
result = search(net, images, budgets=["5bits"], trials=2, polish=0, iterations=0)
print("took", seconds() - start)
print("measured", result.best.measured["latency_us"])
"""


def test_a_plain_script_without_a_guard_works_and_is_read_once_and_takes_seconds(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(mpsearch.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split() if " " in line else (line, "") for line in done.stdout.splitlines())
    assert done.stdout.count("read") == 1 and float(lines["measured"]) > 0
    assert float(lines["took"]) < 3 * float(lines["imports"])  # 10 s where importing torch and timm takes 3.3
    (table,) = (tmp_path / "latency_tables").glob("*.csv")
    assert "crash" not in table.read_text()


def test_folders_get_the_labels_that_timm_gives_a_model_of_its_own(tmp_path, settings):
    for k in range(1, 13):
        (tmp_path / "data" / f"class{k}").mkdir(parents=True)
        for i in range(4):
            shade = np.random.default_rng(100 * k + i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(shade).save(tmp_path / "data" / f"class{k}" / f"{i}.png")
    asked = {
        "data": str(tmp_path / "data"),
        "evaluation_images": 12,
        "calibration_images": 12,
        "search_images": 12,
    }
    own = settings(
        model="test_byobnet", model_args={"num_classes": 12, "img_size": 32}, pretrained=False, **asked
    )
    labels = load_subject(own, Silent()).splits.evaluation.labels
    expected = ImageDataset(str(tmp_path / "data")).reader.class_to_idx
    assert sorted(labels.tolist()) == list(range(12)) and expected["class10"] == 9
    config = {
        "input_size": (3, 8, 8),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_pct": 1.0,
        "crop_mode": "center",
        "interpolation": "bilinear",
    }
    pictures = load_images(own.data, config, classes=Classes(12, timm=True))
    tenth = int(np.asarray(Image.open(tmp_path / "data" / "class10" / "0.png")).sum())
    assert pictures.labels[[int(image.sum()) for image in pictures.images].index(tenth)] == 9
    with pytest.raises(DataError, match="has 12 class folders and the model 10 classes"):
        load_subject(replace(own, model_args={"num_classes": 10, "img_size": 32}), Silent())
    for path in (tmp_path / "data" / "class3").iterdir():
        path.unlink()
    (tmp_path / "data" / "class3").rmdir()
    with pytest.raises(DataError, match=r"has 11 class folders and the model 12 classes.*--class-map FILE"):
        load_subject(own, Silent())
    (tmp_path / "map.json").write_text(json.dumps(expected))
    mapped = load_subject(replace(own, class_map=str(tmp_path / "map.json"), evaluation_images=11), Silent())
    assert sorted(mapped.splits.evaluation.labels.tolist()) == [0, 1, *range(3, 12)]
