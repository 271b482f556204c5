"""`classification`: one class for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mpsearch.data import SampleSet
from mpsearch.evaluate.metrics import Metrics, compare, kl_by_image
from mpsearch.evaluate.tasks._base import TASKS, Task, softmax_directions


@TASKS.register("classification")
@dataclass(frozen=True)
class Classification(Task):
    """Outputs are logits, N x K; the damage is KL(float || quantised) in nats; labels are N classes.

    Args:
        output: Name of the logits, of a model that gives several outputs.
    """

    measure: ClassVar[str] = "KL"
    classes: ClassVar[bool] = True
    output: str = ""

    def damage(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """KL of each sample, N."""
        return kl_by_image(outputs, reference)

    def directions(self, reference: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """A root of diag(p) - p p^T times random signs."""
        return softmax_directions(reference, count, generator)

    def compare(self, outputs: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
        """Top-1, cross entropy, KL and agreement of the top class."""
        return compare(outputs, reference, labels)

    def require_labels(self, samples: SampleSet, outputs: Tensor) -> None:
        """Each label is one of K classes."""
        if samples.labels is not None and outputs.ndim == 2:
            samples.require_labels(outputs.shape[1])
