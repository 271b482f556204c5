"""`regression`: numbers, compared with what is true by the share of variance that they explain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mpsearch.data import SampleSet
from mpsearch.errors import DataError
from mpsearch.evaluate.metrics import Metrics
from mpsearch.evaluate.tasks._base import TASKS, Task
from mpsearch.evaluate.tasks.outputs import ALIKE, Outputs, spread


@TASKS.register("regression")
@dataclass(frozen=True)
class Regression(Task):
    """Outputs are N x ...; the damage is the squared error against the float model over the variance of its
    numbers; labels are numbers of the same shape.

    The score is `r2`, 1 - sum of squared errors / sum of squares about the mean of the labels.

    Args:
        output: Name of the output, of a model that gives several.
        scale: Variance of the float model's outputs; None for that of the reference at hand.
    """

    measure: ClassVar[str] = "squared error"
    output: str = ""
    scale: float | None = None

    def damage(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Mean over the numbers of a sample, N."""
        errors = (outputs.double() - reference.double()).square().flatten(1).mean(1)
        return errors / (spread(reference) if self.scale is None else self.scale)

    def directions(self, reference: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """As of `outputs`."""
        return Outputs().directions(reference, count, generator)

    def compare(self, outputs: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
        """Explained variance."""
        damage, scores = self.damage(outputs, reference), dict[str, float]()
        if labels is not None:
            true = labels.double().reshape(outputs.shape)
            left = (outputs.double() - true).square().sum()
            scores["r2"] = float(1 - left / (true - true.mean(0)).square().sum().clamp(min=1e-30))
        alike = float((damage <= ALIKE).double().mean())
        return Metrics(len(outputs), max(float(damage.mean()), 0.0), alike, scores=scores)

    def require_labels(self, samples: SampleSet, outputs: Tensor) -> None:
        """As many numbers as the model gives."""
        labels = samples.labels
        if labels is not None and (
            labels[0].numel() != outputs[0].numel() or not bool(torch.isfinite(labels.double()).all())
        ):
            raise DataError(
                f"{samples.name} has labels of {labels[0].numel()} numbers for each sample, and the model "
                "gives "
                f"{outputs[0].numel()}. Give as many, all finite."
            )
