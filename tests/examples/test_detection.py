"""The detection example: its parts by hand, and a tiny version of the whole."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "detection"))
import detector
import run as example
from detector import CLASSES, Detection, Detector, average_precision, decode, iou, targets
from scenes import scenes


def perfect(labels):
    """Outputs that say what the labels say."""
    classes, boxes, _ = targets(labels, 8)
    return torch.cat([classes * 20 - 10, boxes], 1)


def test_scenes_hold_what_their_labels_say():
    made = scenes(20, "train", 0)
    again, other = scenes(20, "train", 0), scenes(20, "test", 0)
    assert (
        torch.equal(made.images, again.images)
        and made.content_hash == again.content_hash != other.content_hash
    )
    held = made.labels[made.labels[:, :, 0] >= 0]
    assert len(held) >= 20 and held[:, 0].max() <= 9 and held[:, 1:].min() >= 0 and held[:, 1:].max() <= 64
    for labels in made.labels:
        boxes = labels[labels[:, 0] >= 0][:, 1:].float()
        assert torch.equal(iou(boxes, boxes), torch.eye(len(boxes)))
    assert torch.equal(made.subset([3, 1]).inputs(), made.inputs()[[3, 1]])


def test_overlap_by_hand():
    a, b = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 6, 4], [4, 4, 5, 5]])
    assert iou(a, b).tolist() == [[pytest.approx(8 / 24), 0]]


def test_what_labels_say_is_decoded_again():
    made = scenes(10, "train", 3)
    found = decode(perfect(made.labels))
    assert average_precision(found, made.labels, 0.95) == pytest.approx(
        1, abs=0.05
    )  # two centres may share a cell
    scores = Detection().compare(perfect(made.labels), perfect(made.labels), made.labels).scores
    assert scores["map50"] >= scores["map"] > 0.9
    assert Detection().compare(-perfect(made.labels), perfect(made.labels), made.labels).scores["map50"] < 0.1


def test_average_precision_by_hand():
    """Three true boxes of a class; hits at ranks 1 and 3: precision 1 up to recall 1/3, 2/3 up to 2/3, 0
    beyond.
    """
    labels = torch.tensor([[[5, 0, 0, 4, 4], [5, 10, 10, 14, 14]], [[5, 0, 0, 4, 4], [-1, -1, -1, -1, -1]]])
    found = [
        torch.tensor([[5, 0.9, 0, 0, 4, 4], [5, 0.8, 0, 0, 4, 4.0]]),
        torch.tensor([[5, 0.7, 0, 0, 4, 4.0]]),
    ]
    assert average_precision(found, labels, 0.5) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision([f[:0] for f in found], labels, 0.5) == 0


def test_damage_is_zero_for_equal_maps_alone():
    reference = torch.randn(3, CLASSES + 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert Detection().damage(reference, reference).abs().max() < 1e-9
    assert (Detection().damage(reference + 0.1, reference) > 0).all()


def test_a_loss_falls():
    torch.manual_seed(0)
    made, model = scenes(8, "train", 0), Detector()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        found = detector.loss(model(made.inputs()), made.labels)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        losses.append(found.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_a_tiny_run_and_its_page(tmp_path):
    arguments = example.options().parse_args(
        [
            "--folder",
            str(tmp_path),
            "--output",
            str(tmp_path / "page.md"),
            "--target",
            "packed",
            "--scenes",
            "64",
        ]
    )
    for name, value in {
        "epochs": 2,
        "calibration": 16,
        "search": 8,
        "evaluation": 12,
        "trials": 3,
        "iterations": 4,
    }.items():
        setattr(arguments, name, value)
    model = example.trained(scenes(64, "train", 0), 2, 0, tmp_path / "weights.safetensors")
    result = example.searched(model, "5bits", arguments)
    lines = example.rows("5bits", result)
    assert len(lines) == len(result["rows"]) and any("(chosen)" in line for line in lines)
    assert "mAP at IoU 0.5" in example.text(arguments, lines)
    again = example.trained(scenes(64, "train", 0), 2, 0, tmp_path / "weights.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
