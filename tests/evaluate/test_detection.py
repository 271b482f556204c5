"""`detection`: average precision by hand-worked cases, the function that makes boxes, and what is refused."""

from __future__ import annotations

import pytest
import torch

from mpsearch.data import NestedSet, drawn
from mpsearch.errors import DataError, OptionError
from mpsearch.evaluate import AUTO, made, task_for
from mpsearch.evaluate.tasks.detection import average_precision
from mpsearch.models import Form
from mpsearch.models.form import ONE_TENSOR, Leaf

pytest.importorskip("pycocotools")
DECODE = """
import torch
def one(outputs):  # N x 6: box, score, class
    return [{"boxes": o[None, :4], "scores": o[4:5], "labels": o[5:6].round()} for o in outputs]
def several(outputs):
    rows = zip(outputs["boxes"], outputs["scores"])
    return [{"boxes": b, "scores": s, "labels": torch.zeros(len(b))} for b, s in rows]
def broken(outputs):
    raise KeyError("heads")
def wrong(outputs):
    return [{"boxes": torch.zeros(1, 4)}] * len(outputs)
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(DECODE)
    return tmp_path / "mine.py"


def found(*rows):
    """Rows of box, score, class of one sample."""
    told = torch.tensor(rows).reshape(-1, 6)
    return {"boxes": told[:, :4], "scores": told[:, 4], "labels": told[:, 5]}


def test_average_precision_by_hand():
    """Three true boxes; hits at ranks 1 and 3: precision 1 up to recall 1/3, 2/3 up to 2/3, 0 beyond, of which COCO
    takes 101 recalls; none of them is near IoU 0.5, so every threshold says the same.
    """
    labels = torch.tensor(
        [[[5.0, 0, 0, 4, 4, 0], [5, 10, 10, 14, 14, 0]], [[5, 0, 0, 4, 4, 0], [-1, 0, 0, 0, 0, 0]]]
    )
    guesses = [found([0.0, 0, 4, 4, 0.9, 5], [30, 30, 34, 34, 0.8, 5]), found([0.0, 0, 4, 4, 0.7, 5])]
    expected = (34 * 1 + 33 * 2 / 3) / 101
    scores = average_precision(guesses, labels)
    assert scores["map50"] == pytest.approx(expected, abs=1e-6) and scores["map"] == pytest.approx(
        expected, abs=1e-6
    )
    half = [found([0.0, 0, 4, 2.4, 0.9, 5]), found()]  # IoU 0.6: three of ten thresholds
    scores = average_precision(half, labels)
    assert scores["map"] == pytest.approx(0.3 * scores["map50"]) and scores["map50"] == pytest.approx(
        34 / 101
    )
    assert average_precision([found(), found()], labels) == {"map": 0.0, "map50": 0.0}
    crowd = labels.clone()
    crowd[0, 1, 5] = 1  # does not count
    assert average_precision(guesses, crowd)["map50"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101, abs=1e-6)


def test_one_output_and_several(file):
    outputs = torch.tensor([[0.0, 0, 4, 4, 0.9, 3]]).repeat(3, 1)
    labels = torch.tensor([[[3.0, 0, 0, 4, 4, 0]]]).repeat(3, 1, 1)
    _, task = task_for(f"detection:decode={file}:one", outputs, None)
    metrics = task.compare(outputs, outputs, labels)
    assert (
        metrics.scores["map"] == pytest.approx(1) and metrics.scores["sqnr"] == 100 and metrics.agreement == 1
    )
    assert task.damage(outputs + 1, outputs).shape == (3,) and (task.damage(outputs + 1, outputs) > 0).all()
    leaves = (Leaf("boxes", (2, 4), "float32"), Leaf("scores", (2,), "float32"))
    form = Form((), ONE_TENSOR, leaves)
    boxes = torch.tensor([[0.0, 0, 4, 4], [8, 8, 9, 9]]).expand(3, 2, 4)
    joined = form.flat([boxes, torch.tensor([[0.9, 0.1]]).expand(3, 2)])
    _, task = task_for(f"detection:decode={file}:several", joined, form)
    scores = task.compare(joined, joined, labels * torch.tensor([0.0, 1, 1, 1, 1, 1])).scores
    assert scores["map"] == pytest.approx(1) and {"sqnr boxes", "sqnr scores"} < set(scores)


@pytest.mark.parametrize(
    ("name", "told"), [("broken", "KeyError: 'heads'"), ("wrong", "must return"), ("gone", "'gone'")]
)
def test_a_function_that_makes_no_boxes_is_told(file, name, told):
    outputs = torch.rand(2, 6)
    _, task = task_for(f"detection:decode={file}:{name}", outputs, None)
    samples = NestedSet((torch.rand(2, 3),), ONE_TENSOR, torch.zeros(2, 1, 6))
    with pytest.raises(OptionError, match=told):
        task.require_labels(samples, outputs)


def test_what_is_refused(file):
    with pytest.raises(OptionError, match=r"detection:decode=file\.py:function"):
        task_for("detection", torch.rand(2, 6), None)
    _, task = task_for(f"detection:decode={file}:one", torch.rand(2, 6), None)
    classes = NestedSet((torch.rand(2, 3),), ONE_TENSOR, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DataError, match="takes boxes"):
        task.require_labels(classes, torch.rand(2, 6))
    assert made(f"detection:decode={file}:one").decode.endswith("mine.py:one")


def test_targets_of_torchvision_become_boxes():
    targets = [{"boxes": torch.rand(k, 4), "labels": torch.ones(k, dtype=torch.int64)} for k in (2, 0, 3)]
    samples = drawn([(torch.rand(3, 4, 4) + i, t) for i, t in enumerate(targets)], lambda batch, call: None)
    assert samples.labels.shape == (3, 3, 6) and sorted((samples.labels[:, :, 0] >= 0).sum(1).tolist()) == [
        0,
        2,
        3,
    ]
    few = [samples.subset([i]) for i in range(3)]
    assert few[0].joined(few[1:]).content_hash == samples.content_hash
    assert task_for(AUTO, torch.rand(3, 7), None, samples.labels)[0] == "classification"
    assert task_for(AUTO, torch.rand(3, 7, 2), None, samples.labels)[0] == "outputs"
