"""`export`, `materialize`, `import`, `bench` and `eval` from the outside, on one small study."""

import json
import sys

import jsonschema
import numpy as np
import pytest
import torch

from mpsearch.cli import main
from mpsearch.models import build_model

pytestmark = pytest.mark.timeout(900)  # every artifact starts a process of its own

FACTORY = """
import torch
from torch import nn
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
                              nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    model.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "interpolation": "bilinear"}
    return model
"""
SETTINGS = [
    "--model",
    "net.py:net",
    "--random-weights",
    "--data",
    "images.npz",
    "--calibration-images",
    "16",
    "--search-images",
    "8",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model, images and a finished study `s`."""
    place = tmp_path_factory.mktemp("deployment")
    (place / "net.py").write_text(FACTORY)
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(place / "images.npz", x=images, y=np.arange(40) % 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        budget = [
            "--budget",
            "5bits",
            "--trials",
            "4",
            "--iterations",
            "0",
            "--target",
            "packed",
            "--objective",
            "output_mse:images=8",
            "--name",
            "s",
        ]
        patch.setattr(sys, "argv", ["mpsearch", "run", *SETTINGS, *budget])
        main()
    return place


@pytest.fixture
def call(call, monkeypatch, folder):
    """The command line, in the folder of the study."""
    monkeypatch.chdir(folder)
    return call


def test_a_study_writes_its_assignment_for_others(folder, pytestconfig):
    schema = json.loads((pytestconfig.rootpath / "docs" / "assignment.schema.json").read_text())
    found = json.loads((folder / "studies/s/artifact/assignment.json").read_text())
    jsonschema.validate(found, schema)
    lines = (folder / "studies/s/artifact/assignment.csv").read_text().splitlines()
    assert len(lines) == 1 + len(found["assignment"]) and lines[0].startswith("layer,candidate,w_bits")
    sizes = sum(row["size_bytes"] for row in found["layers"])
    assert 0 < sizes < found["predicted"]["size_bytes"]


def test_two_points_are_exported_at_once_and_timed_side_by_side(call, folder):
    done = call(
        "export",
        "studies/s",
        "--point",
        "best,2",
        "--target",
        "onnx:weights=packed",
        "--no-references",
        "--format",
        "json",
    )
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert [(r["point"], r["target"]) for r in rows] == [
        ("best", "onnx:weights=packed"),
        ("2", "onnx:weights=packed"),
    ]
    for row in rows:
        assert (folder / row["folder"] / "model.onnx").stat().st_size == row["predicted_bytes"]
        assert (
            row["runtime"]["top1"] == pytest.approx(row["fake_quantized"]["top1"], abs=0.1)
            and row["runtime"]["cosine_mean"] > 0.999
        )
    held = json.loads((folder / "studies/s/export/exports.json").read_text())["exports"]
    assert held == rows
    timed = call(
        "bench",
        rows[0]["folder"],
        "--beside",
        rows[1]["folder"],
        "--batch",
        "1",
        "--seconds",
        "0.05",
        "--format",
        "json",
    )
    assert [r["artifact"] for r in json.loads(timed.out)] == ["best", "2"]


def test_a_given_assignment_is_materialised_and_its_accuracy_is_the_runtimes(call, folder):
    (folder / "mine.csv").write_text("layer,candidate\n0,W8A8\n3,W2A8\n7,float\n")
    done = call("materialize", "mine.csv", "--study", "studies/s", "--nearest", "--format", "json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)
    assert row["point"] == "mine" and row["target"] == "packed"
    assert (
        row["runtime"]["cosine_least"] == pytest.approx(1.0)
        and row["predicted_bytes"] == row["artifact_bytes"]
    )
    written = json.loads((folder / "studies/s/export/assignments/mine/assignment.json").read_text())
    assert written["assignment"] == {"0": "W8A8", "3": "W2A8", "7": "float"}
    found = json.loads(
        call("eval", row["folder"], "--data", "images.npz", "--model", "net.py:net", "--format", "json").out
    )
    assert found["images"] == 40 and 0 <= found["top1"] <= 1


def test_an_import_is_measured_beside_uniform_and_the_optimum(call, folder):
    cfg = [
        {"quantizer_name": "*", "cfg": {"num_bits": 4}},
        {"quantizer_name": "0.weight_quantizer", "cfg": {"num_bits": 8}},
    ]
    cfg.append({"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8}})
    (folder / "cfg.json").write_text(json.dumps({"quant_cfg": cfg}))
    objective = ["--objective", "output_mse:images=8"]
    done = call(
        "import",
        "cfg.json",
        "--from",
        "modelopt",
        *SETTINGS,
        *objective,
        "--bits",
        "4,8",
        "--name",
        "i",
        "--format",
        "json",
    )
    assert done.code == 0, done.err
    rows = {row["label"]: row for row in json.loads(done.out)["rows"]}
    assert set(rows) == {
        "float",
        "imported",
        "uniform W8A8",
        "uniform W4A8",
        "exact optimum of output_mse at the same bytes",
    }
    ours, theirs = rows["exact optimum of output_mse at the same bytes"], rows["imported"]
    assert theirs["assignment"] == {"0": "W8A8", "3": "W4A8", "7": "W4A8"}
    assert (
        ours["scores"]["output_mse"] <= theirs["scores"]["output_mse"]
        and ours["predicted"]["size_bytes"] <= theirs["predicted"]["size_bytes"]
    )
    for row in rows.values():
        if row["predicted"]:
            assert row["predicted"]["size_bytes"] == row["measured"]["size_bytes"]
    assert (folder / "studies/i/assignment.json").is_file() and (folder / "studies/i/imported.json").is_file()


def _in_this_process(artifact, inputs, *, model=None, threads=1):
    with torch.no_grad():
        return artifact.target.load(
            artifact.folder, torch.get_num_threads(), None if model is None else build_model(model)
        )(inputs).float()


def test_a_study_of_another_task_is_exported_imported_and_evaluated_by_it(call, folder, monkeypatch):
    for module in ("export", "bench"):
        monkeypatch.setattr(f"mpsearch.pipeline.jobs.{module}.run_apart", _in_this_process)
    budget = [
        "--budget",
        "5bits",
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
        "--bits",
        "3,8",
    ]
    done = call("run", *SETTINGS, *budget, "--task", "embedding", "--name", "e")
    assert done.code == 0, done.err
    assert "1 - cosine" in done.out and "top-1" not in done.out
    done = call("export", "studies/e", "--target", "packed", "--nearest", "--format", "json")
    assert done.code == 0, done.err
    best = json.loads(done.out)[0]
    for metrics in (best["fake_quantized"], best["runtime"]):
        assert metrics["top1"] is None and 0 < metrics["kl"] == pytest.approx(1 - metrics["scores"]["cosine"])
    table = call(
        "materialize",
        "studies/e/artifact/assignment.csv",
        "--study",
        "studies/e",
        "--nearest",
        "--label",
        "again",
    ).out
    assert "1 - cosine runtime" in table and "top-1" not in table
    found = json.loads(
        call("eval", best["folder"], "--data", "images.npz", "--model", "net.py:net", "--format", "json").out
    )
    assert found["measure"] == "1 - cosine" and 0 < found["damage"] == pytest.approx(
        1 - found["scores"]["cosine"]
    )
    text = call("eval", best["folder"], "--data", "images.npz", "--model", "net.py:net").out
    assert "1 - cosine to float" in text and "top-1" not in text
    imported = [
        "import",
        "studies/e/artifact/assignment.json",
        "--from",
        "mpsearch",
        *SETTINGS,
        "--objective",
        "weight_mse",
        "--bits",
        "3,8",
    ]
    rows = json.loads(call(*imported, "--task", "embedding", "--name", "ie", "--format", "json").out)["rows"]
    assert all(
        row["measured"]["metrics"]["top1"] is None and "cosine" in row["measured"]["metrics"]["scores"]
        for row in rows
    )
    dropped = call("solve", "studies/e", "--max-drop", "1%")
    assert dropped.code == 0 and "below float was allowed on the search images" in dropped.err + dropped.out


@pytest.mark.parametrize("point", ["", "nosuch", "999", "front:999", "W9A8"])
def test_a_point_that_is_not_there_is_told_before_the_model_is_loaded(call, monkeypatch, point):
    monkeypatch.setattr(
        "mpsearch.pipeline.steps.loading.load_model", lambda *_, **__: pytest.fail("the model was loaded")
    )
    done = call("export", "studies/s", "--point", point)
    assert done.code == 2 and done.err.startswith("Error: ")


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["export", "studies/none"], ["There is no study"]),
        (["export", "studies/s", "--target", "onxn"], ["Did you mean 'onnx'?"]),
        (["export", "studies/s", "--target", "onnx:bits=4"], ["has no option 'bits=4'"]),
        (["export", "studies/s", "--point", "99"], ["measured trials", "99 is not one"]),
        (["export", "studies/s", "--point", "front:9999"], ["points on the exact front"]),
        (["export", "studies/s", "--point", "good"], ["'good' is no point"]),
        (["bench", "studies/s"], ["is no artifact"]),
        (["bench", "studies/s", "--batch", "0"], ["no batch sizes"]),
        (["eval", "nowhere", "--data", "images.npz"], ["nowhere is no artifact"]),
        (["import", "net.py", "--from", "nobody", *SETTINGS], ["No importer is called 'nobody'"]),
        (["import", "net.py", "--from", "mpsearch", *SETTINGS, "--name", "j"], ["is not an assignment"]),
        (
            ["import", "none.json", "--from", "mpsearch", *SETTINGS, "--name", "k"],
            ["There is no file none.json"],
        ),
        (["materialize", "none.json", "--study", "studies/s"], ["There is no file none.json"]),
        (["materialize", "net.py", "--study", "studies/none", "--from", "hawk"], ["Did you mean 'hawq'?"]),
    ],
)
def test_mistakes_are_told_in_one_line(call, arguments, texts):
    done = call(*arguments)
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err
    for text in texts:
        assert text in " ".join(done.err.split())


def test_targets_and_importers_are_listed(call):
    assert {"packed", "onnx", "onnx-tensorrt", "torchao", "modelopt", "nncf"} <= set(
        call("list", "targets").out.split()
    )
    assert {"hawq", "mct", "modelopt", "mpsearch"} <= set(call("list", "importers").out.split())
