"""A user's metric is tried first, reported of what is finished, and limits what is delivered."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import mpsearch
from mpsearch.cli import main
from mpsearch.deploy.artifact import open_artifact
from mpsearch.deploy.process import FileModel, as_model
from mpsearch.errors import InfeasibleError, OptionError, UserError
from mpsearch.evaluate import UserMetric, predict
from mpsearch.models import Form, bound, build_model, observe_form
from mpsearch.pipeline import RunConfig, run, search
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs import bench
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.loading import draw as draw_splits
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.trial import takes_of
from mpsearch.pipeline.steps.walk import Path, walk
from mpsearch.pytrees import Batch, flatten
from mpsearch.report import write_report

MINE = """
from pathlib import Path

def percent(model, samples):
    with (Path(__file__).parent / "calls").open("a") as log:
        log.write("x")
    right = total = 0
    for images, labels in samples:
        right += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    return {scale} * right / total

def whole(model, samples):
    return float(not any(type(m).__name__.startswith("Quant") for m in model.modules()))
"""


@pytest.fixture
def mine(tmp_path):
    """A file of metrics: top-1 in percent, and what no quantised model keeps."""
    (tmp_path / "mine.py").write_text(MINE.replace("{scale}", "100"))
    return tmp_path / "mine.py"


def test_it_is_reported_of_float_and_of_what_is_finished_and_measured_anew_where_its_file_changed(
    settings, mine, tmp_path, capsys, monkeypatch
):
    config = settings(metric=f"{mine}:percent", trials=2, polish=0, bits=(3, 8), a_bits=8)
    study = Study(tmp_path / "study")
    result = run(config, study)
    floats, *rows = result["rows"]
    top1 = floats["searched"]["metrics"]["top1"]
    assert floats["searched"]["metrics"]["metric"] == pytest.approx(100 * top1)
    done = [row["reconstructed"]["metrics"] for row in rows if "reconstructed" in row]
    assert len(done) >= 2 and all(m["metric"] == pytest.approx(100 * m["top1"]) for m in done)
    assert all("metric" not in row["searched"]["metrics"] for row in rows)
    best = result["best"]["metrics"]
    assert best["metric"] == pytest.approx(100 * best["top1"]) and result["metric"]["name"] == "percent"
    page = write_report(study.path).read_text()
    assert "percent" in page and f"{best['metric']:.6g}" in page
    monkeypatch.setattr(
        bench, "run_apart", lambda held, x, *, model, **_: as_model(held, model=model)(x).detach()
    )
    artifact, net = open_artifact(study.artifact), config.model
    row = bench.evaluate_artifact(artifact, config.data, None, 0, 1, net, metric=f"{mine}:percent")
    assert row["metric"] == {"name": "percent", "value": pytest.approx(100 * row["top1"])}
    calls = len((mine.parent / "calls").read_text())
    assert run(config, study)["rows"] == result["rows"]
    assert len((mine.parent / "calls").read_text()) == calls + 1  # it is tried, and nothing is measured anew
    mine.write_text(MINE.replace("{scale}", "1000"))
    monkeypatch.setattr(sys, "argv", ["mpsearch", "run", "--resume", str(study.path)])
    main()
    shown = capsys.readouterr().out
    again = json.loads((study.path / "results.json").read_text())
    assert again["best"]["metrics"]["metric"] == pytest.approx(1000 * best["top1"])
    assert "percent" in shown and f"{1000 * best['top1']:.6g}" in shown


def test_what_is_no_metric_is_told_before_anything_is_calibrated(settings, tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "def fails(model, samples):\n    raise KeyError('boxes')\n"
        "def nothing(model, samples):\n    return None\n"
        "def wild(model, samples):\n    return float('nan')\n"
        "def truth(model, samples):\n    return True\n"
        "def alone(model):\n    return 1.0\n"
        "def exits(model, samples):\n    return model(next(iter(samples))[0], 2)\n"
    )
    for name, said in {
        "fails": r"failed on 8 calibration samples: KeyError: 'boxes'.*inputs are 8 x 3 x 16 x 16, and labels 8",
        "nothing": "returned None. It must return one number, higher is better",
        "wild": "returned nan for the float model",
        "truth": "returned a bool",
        "alone": r"takes \(model\). It must take \(model, samples\)",
        "exits": "failed on 8 calibration samples: TypeError",
    }.items():
        with pytest.raises(OptionError, match=said):
            run(settings(metric=f"{bad}:{name}"), Study(tmp_path / "study"))
        assert not (tmp_path / "study").exists()
    with pytest.raises(OptionError, match="has no function 'other'"):
        run(settings(metric=f"{bad}:other"), Study(tmp_path / "study"))
    with pytest.raises(OptionError, match=r"metric is 'accuracy'. Write path/to/file.py:function"):
        settings(metric="accuracy")
    with pytest.raises(OptionError, match="metric is a int"):
        search(nn.Linear(4, 2), torch.zeros(8, 4), budgets=["5bits"], metric=3)


@dataclass
class Given:
    """What `Net` gives."""

    boxes: torch.Tensor
    classes: torch.Tensor


class Net(nn.Module):
    """Two named inputs, and an object of two outputs; `decoded` is a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, row: torch.Tensor, mask: torch.Tensor) -> Given:
        """Boxes and their greatest number."""
        boxes = self.box(torch.relu(self.stem(row * mask)))
        return Given(boxes, boxes.argmax(1))

    def decoded(self, given: Given) -> torch.Tensor:
        """As a user's own decoding."""
        return given.boxes * 2


def test_the_model_is_called_as_its_author_meant_it_with_labels_of_any_form(tmp_path):
    seen = []

    def decoded(model, samples):
        total = count = 0
        for inputs, labels in samples:
            given = model(**inputs)
            assert isinstance(model, Net) and isinstance(given, Given) and given.classes.dtype == torch.int64
            seen.append((sorted(inputs), type(labels), len(labels), len(samples)))
            total += float(
                sum((model.decoded(given)[i] - t["box"]).abs().sum() for i, t in enumerate(labels))
            )
            count += len(labels)
        return -total / count

    torch.manual_seed(0)
    model, draw = Net(), torch.Generator().manual_seed(1)
    data = [
        {
            "row": torch.randn(6, generator=draw),
            "mask": torch.ones(6),
            "labels": {"box": torch.randn(4, generator=draw), "name": str(i)},
        }
        for i in range(60)
    ]
    settings = {
        "trials": 0,
        "bits": (2, 8),
        "target": "packed",
        "calibration_images": 16,
        "search_images": 16,
    }
    result = search(model, data, budgets=["5bits"], metric=decoded, study=tmp_path / "study", **settings)
    assert result["metric"]["text"] == "python:decoded" and seen[0] == (["mask", "row"], list, 8, 1)
    assert type(model) is Net
    floats, best = result["rows"][0]["searched"]["metrics"]["metric"], result["best"]["metrics"]
    loaded = mpsearch.load(result["best"]["artifact"]["packed"], model=model)
    config = RunConfig(("5bits",), **settings)
    held = draw_splits(config, data, None, takes=takes_of(model, config)).evaluation
    form = observe_form(model, held.inputs(), held.call)
    again = UserMetric.given(decoded).measure(bound(loaded, form), held, "evaluation")
    assert again == pytest.approx(best["metric"]) and again != floats
    with pytest.raises(OptionError, match="failed on 8 calibration samples: TypeError"):
        search(
            model,
            data,
            budgets=["5bits"],
            metric=lambda model, samples: model(*next(iter(samples))[0])["x"],
            study=tmp_path / "other",
            **settings,
        )


def test_the_file_of_an_artifact_is_called_as_the_author_called_the_model():
    class Pair(nn.Module):
        """Floats alone, in an object."""

        def forward(self, row, mask):
            """A dataclass whose class a file does not know."""
            return Given(row * mask, (row - mask).sum(1))

    pair, draw = Pair(), torch.Generator().manual_seed(0)
    inputs = {"row": torch.randn(3, 6, generator=draw), "mask": torch.ones(3, 6)}
    wanted, call = pair(**inputs), flatten(((), inputs))[1]
    form = observe_form(pair, Batch(inputs.values()), call)
    held = Form.from_json(json.loads(json.dumps(form.to_json())))
    found = FileModel(bound(pair, form), held)(**inputs)
    assert torch.equal(found.boxes, wanted.boxes) and torch.equal(found["classes"], wanted.classes)
    assert found[1] is found.classes and not hasattr(found, "other")
    model = Net()
    form = observe_form(model, Batch(inputs.values()), call)
    with pytest.raises(
        UserError, match=r"Of the model's outputs classes .*int64 is not read.*--target packed"
    ):
        FileModel(bound(model, form), Form.from_json(form.to_json()))


class Straight:
    """A judge whose scores rise along the path, by tenths."""

    def score(self, indices):
        """Of what stands at a place of the path."""
        return indices[0] / 10


def test_a_walk_finds_the_first_of_a_rising_path():
    for least in range(1, 10):
        steps = []
        found, trail = walk(
            Path(lambda k: (k,), 10),
            Straight(),
            lambda score, least=least: score >= least / 10,
            lambda done, most, steps=steps: steps.append((done, most)),
        )
        assert found == (least,) and trail[0].indices == (9,)
        assert len(trail) <= 5 and steps[-1] == (len(trail), 5)
    assert walk(Path(lambda k: (k,), 10), Straight(), lambda score: score > 5, lambda *_: None)[0] is None


def test_without_a_budget_the_smallest_within_a_drop_is_delivered(settings, mine, tmp_path):
    config = settings(
        budgets=(), metric=f"{mine}:percent", max_drop="20", trials=2, polish=0, search_images=24
    )
    study = Study(tmp_path / "study")
    result = run(config, study)
    drop, best = result["best"]["drop"], result["best"]
    subject = load_subject(config, Silent())
    images = subject.splits.search
    given = build_model(subject.source)
    loaded = mpsearch.load(best["artifact"]["packed"], model=given)
    assert drop["kept"] and drop["score"] == "percent" and drop["images"] == 24
    assert drop["float"] == pytest.approx(
        100 * float((predict(subject.module, images).argmax(1) == images.labels).float().mean())
    )
    assert drop["least"] == pytest.approx(drop["float"] - 20)  # points of its own unit
    assert drop["search"] == pytest.approx(
        100 * float((predict(loaded, images).argmax(1) == images.labels).float().mean())
    )
    assert best["budgets"] == [] and [b["resource"] for b in result["solver_limits"]] == ["size_bytes"]
    done = [row for row in result["rows"] if "reconstructed" in row]
    sizes = [row["reconstructed"]["size_bytes"] for row in done]
    assert best["measured"]["size_bytes"] <= 1.01 * max(sizes) and "keep the drop" in best["reason"]
    assert "a drop of 20" in write_report(study.path).read_text()
    wide = run(
        replace(config, max_drop=None, budgets=("8bits",)), study
    )  # joins; what was found is set aside
    assert "drop" not in wide["best"] and (study.path / "earlier" / "20-drop" / "best.json").is_file()
    assert wide["best"]["measured"]["size_bytes"] > best["measured"]["size_bytes"]


def test_a_drop_that_nothing_keeps_ends_with_the_least_reached(settings, mine, tmp_path):
    config = settings(budgets=(), metric=f"{mine}:whole", max_drop="50%", trials=2, polish=0, bits=(4, 8))
    said = r"50% is not kept: the least reached is whole 0 \(1, 100.00% below float\), by .*--bits"
    with pytest.raises(InfeasibleError, match=said) as raised:
        run(config, Study(tmp_path / "study"))
    assert raised.value.exit_code == 3 and not list((tmp_path / "study").glob("optuna-*"))  # nothing searched
    with pytest.raises(InfeasibleError, match=r"is not kept.*Raise the budget"):
        run(replace(config, budgets=("6bits",)), Study(tmp_path / "study"))


def test_within_a_budget_the_smallest_finalist_that_keeps_the_drop_is_delivered(settings, tmp_path):
    config = settings(max_drop="90%", trials=4, polish=0, method="nearest")
    result = run(config, Study(tmp_path / "study"))
    done = [row["reconstructed"]["size_bytes"] for row in result["rows"] if "reconstructed" in row]
    drop = result["best"]["drop"]
    assert drop["score"] == "top1" and drop["kept"] and drop["least"] == pytest.approx(0.1 * drop["float"])
    assert result["best"]["measured"]["size_bytes"] <= 1.01 * min(done)
    with pytest.raises(OptionError, match=r"--assign coding_length.*--max-drop 1%"):
        settings(budgets=(), assign="coding_length", max_drop="1%")
