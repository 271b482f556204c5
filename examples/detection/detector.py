"""A detector in plain torch on a timm backbone, and detection as a task of mpsearch: mean average precision.

References: Zhou et al., Objects as Points, arXiv:1904.07850 (centres of boxes as peaks of a map for each
class); Lin et al., Microsoft COCO, ECCV 2014, arXiv:1405.0312 (average precision over IoU 0.5 to 0.95).
Differ in: one cell is positive for each box, at stride 8, without Gaussians.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsearch.evaluate import TASKS, Metrics, Task

CLASSES, STRIDE, BOX = 10, 8, 16.0
THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))


class Detector(nn.Module):
    """Backbone up to stride 8, two 3 x 3 convolutions, and one 1 x 1 that gives logits of classes and boxes
    for each cell.

    Args:
        backbone: Name in timm; weights are random.
        width: Channels of the neck.
    """

    def __init__(self, backbone: str = "test_resnet", width: int = 64) -> None:
        super().__init__()
        strides = timm.create_model(backbone, pretrained=False, features_only=True).feature_info.reduction()
        # levels behind the one that is read would run for nothing, and be quantised
        self.backbone = timm.create_model(
            backbone, pretrained=False, features_only=True, in_chans=1, out_indices=(strides.index(STRIDE),)
        )
        channels = self.backbone.feature_info.channels()[-1]
        self.neck = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Conv2d(width, CLASSES + 4, 1)
        nn.init.constant_(self.head.bias[:CLASSES], -4.0)  # nearly every cell is empty

    def forward(self, x: Tensor) -> Tensor:
        """`N x 1 x H x W` -> `N x 14 x H/8 x W/8`: 10 logits; centre x and y from the cell's in cells, log of
        width and height over 16 pixels.
        """
        return self.head(self.neck(self.backbone(x)[-1]))


def targets(labels: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of `N x M x 5` boxes: classes `N x 10 x G x G`, boxes `N x 4 x G x G`, and which cells hold a centre,
    `N x G x G`.
    """
    count = len(labels)
    classes, boxes = torch.zeros(count, CLASSES, cells, cells), torch.zeros(count, 4, cells, cells)
    held = torch.zeros(count, cells, cells, dtype=torch.bool)
    for i, place in (labels[:, :, 0] >= 0).nonzero().tolist():
        kind, left, top, right, bottom = labels[i, place].tolist()
        x, y = (left + right) / 2 / STRIDE, (top + bottom) / 2 / STRIDE
        column, row = min(int(x), cells - 1), min(int(y), cells - 1)
        size = torch.tensor([right - left, bottom - top], dtype=torch.float32)
        classes[i, kind, row, column], held[i, row, column] = 1.0, True
        boxes[i, :, row, column] = torch.cat(
            [torch.tensor([x - column - 0.5, y - row - 0.5]), (size / BOX).log()]
        )
    return classes, boxes, held


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of the classes (gamma 2) plus L1 of the boxes where there are some, over the number of
    boxes.
    """
    classes, boxes, held = targets(labels, outputs.shape[-1])
    logits = outputs[:, :CLASSES]
    entropy = F.binary_cross_entropy_with_logits(logits, classes, reduction="none")
    focal = (entropy * (classes - logits.sigmoid()).abs().square()).sum()
    off = ((outputs[:, CLASSES:] - boxes).abs().sum(1) * held).sum()
    return (focal + off) / held.sum().clamp(min=1)


def decode(outputs: Tensor, most: int = 20, least: float = 0.05) -> list[Tensor]:
    """For each scene `K x 6`: class, confidence, left, top, right, bottom in pixels; the best of overlapping
    boxes of a class (IoU over 0.5).
    """
    cells = outputs.shape[-1]
    rows, columns = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    found = []
    for scene in outputs.float():
        confidence, kind = scene[:CLASSES].sigmoid().max(0)
        x, y = (columns + 0.5 + scene[CLASSES]) * STRIDE, (rows + 0.5 + scene[CLASSES + 1]) * STRIDE
        w, h = (scene[CLASSES + 2 :].clamp(-3, 3).exp() * BOX / 2).unbind(0)
        boxes = torch.stack([kind.float(), confidence, x - w, y - h, x + w, y + h], -1).flatten(0, 1)
        boxes = boxes[boxes[:, 1].argsort(descending=True)][:most]
        found.append(_distinct(boxes[boxes[:, 1] > least]))
    return found


def _distinct(boxes: Tensor) -> Tensor:
    kept: list[int] = []
    overlap = iou(boxes[:, 2:], boxes[:, 2:])
    for i in range(len(boxes)):
        if all(boxes[i, 0] != boxes[j, 0] or overlap[i, j] <= 0.5 for j in kept):
            kept.append(i)
    return boxes[kept]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """`A x B` intersection over union of boxes left, top, right, bottom."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp(min=1e-9)


def average_precision(found: Sequence[Tensor], labels: Tensor, threshold: float) -> float:
    """Mean over the classes that occur of the area under precision over recall, at one IoU.

    Boxes of a class over all scenes, most confident first; each takes the unmatched true box of its scene
    with the greatest IoU, if that is `threshold` or more. Precision is made not to rise with recall, and the
    area is exact (COCO samples 101 recalls).
    """
    areas = []
    for kind in range(CLASSES):
        truth = [scene[scene[:, 0] == kind][:, 1:].float() for scene in labels]
        total = sum(map(len, truth))
        if not total:
            continue
        guesses = sorted(
            ((float(g[1]), i, g[2:]) for i, scene in enumerate(found) for g in scene[scene[:, 0] == kind]),
            key=lambda g: -g[0],
        )
        taken, right = [torch.zeros(len(t), dtype=torch.bool) for t in truth], []
        for _, scene, box in guesses:
            overlaps = (
                iou(box[None], truth[scene])[0].masked_fill(taken[scene], 0)
                if len(truth[scene])
                else torch.zeros(1)
            )
            hit = float(overlaps.max()) >= threshold
            right.append(hit)
            if hit:
                taken[scene][int(overlaps.argmax())] = True
        areas.append(_area(torch.tensor(right, dtype=torch.float64), total))
    return sum(areas) / max(len(areas), 1)


def _area(right: Tensor, total: int) -> float:
    if not len(right):
        return 0.0
    hits = right.cumsum(0)
    precision = (hits / torch.arange(1, len(right) + 1)).flip(0).cummax(0).values.flip(0)
    return float((precision * right).sum() / total)


@TASKS.register("detection")
@dataclass(frozen=True)
class Detection(Task):
    """Outputs are the detector's maps. The damage of a scene is the sum over cells of KL(float || quantised)
    of each class, present or not, plus the squared difference of the boxes where the float model sees
    something (weighted by its confidence). The scores are `map50` and `map` (IoU 0.5 to 0.95).

    `agreement` is the share of scenes in which the same classes are seen as often, at a confidence of 0.3.
    """

    measure: ClassVar[str] = "damage"

    def damage(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Of each scene, N."""
        ours, theirs = outputs.double(), reference.double()
        chance = theirs[:, :CLASSES].sigmoid()
        present = chance * (F.logsigmoid(theirs[:, :CLASSES]) - F.logsigmoid(ours[:, :CLASSES]))
        absent = (1 - chance) * (F.logsigmoid(-theirs[:, :CLASSES]) - F.logsigmoid(-ours[:, :CLASSES]))
        off = (ours[:, CLASSES:] - theirs[:, CLASSES:]).square().sum(1) * chance.amax(1)
        return (present + absent).sum((1, 2, 3)) + off.sum((1, 2))

    def compare(self, outputs: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
        """Average precision, and agreement."""
        ours, theirs = decode(outputs), decode(reference)
        alike = [
            sorted(a[a[:, 1] > 0.3][:, 0].tolist()) == sorted(b[b[:, 1] > 0.3][:, 0].tolist())
            for a, b in zip(ours, theirs, strict=True)
        ]
        scores = {}
        if labels is not None:
            precisions = [average_precision(ours, labels, threshold) for threshold in THRESHOLDS]
            scores = {"map50": precisions[0], "map": sum(precisions) / len(precisions)}
        return Metrics(len(outputs), self.loss(outputs, reference), sum(alike) / len(alike), scores=scores)
