"""Artifacts are written whole or not at all, refused when changed, and run by a process of their own."""

import errno
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mpsearch.deploy import PackedLayout
from mpsearch.deploy.artifact import MANIFEST, open_artifact, replacing_folder, write_artifact
from mpsearch.deploy.process import bench_apart, run_apart
from mpsearch.deploy.targets import TARGETS, Job
from mpsearch.errors import CheckpointError, MpsearchError, UnknownNameError, UserError
from mpsearch.hardware import BACKENDS
from mpsearch.hardware.backends.ort_cpu import executed
from mpsearch.models import ModelSource, analyze
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import install
from mpsearch.testing import tiny_net


@pytest.fixture(scope="module")
def job():
    net = tiny_net("conv")
    layout = PackedLayout.of(
        net.module, net.units, ModelSource("factory", "nets.py:conv"), (), {"input_size": (3, 12, 12)}
    )
    states = net.calibration.states(Assignment(tuple((unit, Candidate(8, 8)) for unit in net.units)))
    return Job(net.module, layout, states, net.calibration, net.images.inputs([0]))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


TARGETS_HERE = ("packed", "onnx", "onnx-tensorrt", "torchao", "modelopt", "nncf")


@pytest.mark.parametrize("text", TARGETS_HERE)
def test_the_manifest_names_every_file_and_its_bytes(job, tmp_path, text):
    artifact = write_artifact(tmp_path / "a", text, job, {"label": "best", "predicted": {"size_bytes": 1}})
    again = open_artifact(tmp_path / "a")
    assert again.manifest == json.loads(json.dumps(artifact.manifest)) and again.label == "best"
    assert names(tmp_path / "a") == sorted([MANIFEST, *again.manifest["files"]]) and names(tmp_path) == ["a"]
    assert again.size_bytes == sum(p.stat().st_size for p in (tmp_path / "a").iterdir() if p.name != MANIFEST)
    assert again.manifest["assignment"] == dict.fromkeys(job.states, "W8A8")


@pytest.mark.parametrize("text", TARGETS_HERE)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_leaves_the_earlier_artifact_and_nothing_else(job, tmp_path, monkeypatch, text, earlier):
    folder = tmp_path / "a"
    if earlier:
        write_artifact(folder, text, job, {"label": "first"})
    before = {p.name: p.read_bytes() for p in folder.iterdir()} if earlier else None
    target = TARGETS.get(text)
    write = target.write

    def full(self, job, beside):
        write(self, job, beside)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(target, "write", full)
    with pytest.raises(MpsearchError, match=r"No space left on device.*export again") as caught:
        write_artifact(folder, text, job, {"label": "second"})
    assert ("is as it was" in str(caught.value)) == earlier
    assert names(tmp_path) == (["a"] if earlier else [])
    if earlier:
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
        assert open_artifact(folder).label == "first"


@pytest.mark.parametrize("where", ["mkdtemp", "fsync", "rename"])
def test_a_failure_at_any_step_of_replacing_leaves_the_earlier_folder(tmp_path, monkeypatch, where):
    folder = tmp_path / "a"
    with replacing_folder(folder) as beside:
        (beside / "file").write_text("first")
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        if where != "rename" or len(calls) == 2:  # the second rename puts the new folder in its place
            raise OSError(errno.EIO, "broken")
        return rename(*args, **kwargs)

    rename = Path.rename
    places = {
        "mkdtemp": "mpsearch.deploy.artifact.tempfile.mkdtemp",
        "fsync": "mpsearch.deploy.artifact.os.fsync",
        "rename": "pathlib.Path.rename",
    }
    monkeypatch.setattr(places[where], fail)
    with pytest.raises(OSError, match="broken"), replacing_folder(folder) as beside:
        (beside / "file").write_text("second")
    assert names(tmp_path) == ["a"] and (folder / "file").read_text() == "first"


def test_a_process_killed_between_the_two_renames_loses_nothing(tmp_path):
    (tmp_path / ".a.earlier").mkdir()
    (tmp_path / ".a.earlier" / "file").write_text("first")
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "a"):
        raise RuntimeError
    assert (tmp_path / "a" / "file").read_text() == "first" and names(tmp_path) == ["a"]


def test_an_interruption_leaves_nothing(job, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TARGETS.get("packed"), "write", stop)
    with pytest.raises(KeyboardInterrupt):
        write_artifact(tmp_path / "a", "packed", job, {})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "model.safetensors").write_bytes(b"other"),
        lambda f: (f / "model.safetensors").unlink(),
        lambda f: (f / MANIFEST).unlink(),
        lambda f: (f / MANIFEST).write_text("{"),
        lambda f: (f / MANIFEST).write_text("[" * 100_000),
        lambda f: (f / MANIFEST).write_text('{"format": "mpsearch-artifact", "schema": 1}'),
        lambda f: (f / MANIFEST).write_text(
            (f / MANIFEST).read_text().replace('"target": "packed"', '"target": "no_such"')
        ),
        lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text().replace('"schema": 1', '"schema": 7')),
        lambda f: (f / MANIFEST).write_text(
            (f / MANIFEST).read_text().replace('"model.safetensors"', '"../a/model.safetensors"')
        ),
    ],
)
def test_a_changed_artifact_is_refused(job, tmp_path, change):
    write_artifact(tmp_path / "a", "packed", job, {})
    change(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"[Ee]xport|mpsearch export"):
        open_artifact(tmp_path / "a")


def test_an_unknown_target_is_named(job, tmp_path):
    with pytest.raises(UnknownNameError, match="onnx"):
        write_artifact(tmp_path / "a", "onxn", job, {})


def test_a_process_of_its_own_computes_the_same_and_measures(job, tmp_path):
    artifact = write_artifact(tmp_path / "a", "onnx", job, {})
    images = tiny_net("conv").images.inputs()
    logits = run_apart(artifact, images)
    with torch.no_grad():
        assert torch.equal(logits, artifact.target.load(artifact.folder, 1)(images))
        assert (
            torch.nn.functional.cosine_similarity(logits, install(job.module, job.states)(images)).median()
            > 0.999
        )
    measured = bench_apart(artifact, batches=(1, 3), seconds=0.05)
    for row, batch in zip(measured["batches"], (1, 3), strict=True):
        t = row["latency_us"]
        assert (
            row["batch"] == batch
            and 0 < t["least"] <= t["p50"] <= t["p90"] <= t["p99"]
            and t["repeats"] >= 10
        )
        assert row["images_per_second"] == pytest.approx(batch * 1e6 / t["mean"])
    memory = measured["memory"]
    assert 0 < memory["before_load_bytes"] <= memory["after_load_bytes"] <= memory["peak_bytes"]
    assert measured["energy"]["mj_per_image"] is None and "NVML" in measured["energy"]["reason"]


def test_a_factory_is_run_only_where_the_caller_names_it(job, tmp_path):
    artifact = write_artifact(tmp_path / "a", "packed", job, {})
    with pytest.raises(UserError, match=r"an artifact never runs code\. Name it: --model nets\.py:conv"):
        run_apart(artifact, torch.zeros(1, 3, 12, 12))


@pytest.mark.parametrize("name", ["conv", "vit"])
def test_what_was_timed_is_what_ships(name, tmp_path):
    """The kernels of the exported model are those of the cells that a latency table times."""
    net = tiny_net(name)
    states = net.calibration.states(Assignment(tuple((unit, Candidate(8, 8)) for unit in net.units)))
    layout = PackedLayout.of(net.module, net.units, ModelSource("module", name), (), {})
    job = Job(net.module, layout, states, net.calibration, net.images.inputs([0]))
    TARGETS.create("onnx").write(job, tmp_path)
    integer = {"QLinearConv", "MatMulIntegerToFloat"}
    shipped = sorted(op for op in executed(tmp_path / "model.onnx") if op in integer)
    backend, timed = BACKENDS.create("ort-cpu"), []
    for layer in analyze(net.module, net.images.inputs([0])).layers:
        if layer.name in net.units:
            assert isinstance(net.module.get_submodule(layer.name), nn.Conv2d | nn.Linear)
            timed += [op for op in backend.build(layer, Candidate(8, 8), 1).executed if op in integer]
    assert shipped == sorted(timed) and len(timed) == len(net.units)
