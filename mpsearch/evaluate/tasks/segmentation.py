"""`segmentation`: one class for each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsearch.data import SampleSet
from mpsearch.errors import DataError
from mpsearch.evaluate.metrics import Metrics
from mpsearch.evaluate.tasks._base import TASKS, Task, softmax_directions


@TASKS.register("segmentation")
@dataclass(frozen=True)
class Segmentation(Task):
    """Outputs are logits, N x K x H x W; the damage is KL(float || quantised) in nats, the mean over the
    pixels; labels are N x H x W classes.

    The scores are `miou`, the mean over the classes that occur of intersection over union, summed over all
    samples, and `pixel_accuracy`. `agreement` is the share of pixels of the same class as the float model's.

    Args:
        ignore: Label of pixels that do not count.
        output: Name of the output, of a model that gives several.
    """

    measure: ClassVar[str] = "KL"
    ignore: int = 255
    output: str = ""

    def damage(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Mean KL of the pixels of each sample, N."""
        p, q = F.log_softmax(reference.double(), 1), F.log_softmax(outputs.double(), 1)
        return (p.exp() * (p - q)).sum(1).flatten(1).mean(1)

    def directions(self, reference: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """As of `classification` at each pixel, over the root of their number."""
        pixels = reference.movedim(1, -1)
        found = softmax_directions(pixels, count, generator).movedim(-1, 2)
        whole: Tensor = found / float(pixels[0, ..., 0].numel()) ** 0.5
        return whole

    def compare(self, outputs: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
        """Intersection over union, and pixels."""
        chosen, scores = outputs.argmax(1), dict[str, float]()
        if labels is not None:
            held = labels != self.ignore
            scores["miou"] = _miou(chosen[held], labels[held], outputs.shape[1])
            scores["pixel_accuracy"] = float((chosen[held] == labels[held]).double().mean())
        alike = float((chosen == reference.argmax(1)).double().mean())
        return Metrics(len(outputs), self.loss(outputs, reference), alike, scores=scores)

    def require_labels(self, samples: SampleSet, outputs: Tensor) -> None:
        """Masks of the output's size, of classes that it has."""
        if outputs.ndim != 4:
            raise DataError(
                "The task segmentation takes logits N x K x H x W, and the model gives "
                f"{tuple(outputs.shape)}. "
                "Leave --task out, or name one that fits."
            )
        labels = samples.labels
        if labels is None:
            return
        if labels.shape[1:] != outputs.shape[2:]:
            raise DataError(
                f"{samples.name} has masks of {tuple(labels.shape[1:])} pixels, and the model gives "
                f"{tuple(outputs.shape[2:])}. Give masks of that size."
            )
        counted = labels[labels != self.ignore]
        if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < outputs.shape[1]:
            raise DataError(
                f"{samples.name} has pixels of the classes {int(counted.min())} to {int(counted.max())}, "
                "and the "
                f"model has {outputs.shape[1]}. Pixels that do not count have the label {self.ignore} "
                "(segmentation:ignore=...)."
            )


def _miou(chosen: Tensor, labels: Tensor, classes: int) -> float:
    """Mean over the classes that occur in either."""
    both = torch.bincount(labels.long() * classes + chosen, minlength=classes**2).reshape(classes, classes)
    union = both.sum(0) + both.sum(1) - both.diagonal()
    found = union > 0
    return float((both.diagonal()[found] / union[found]).double().mean()) if bool(found.any()) else 0.0
