"""What a task is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from mpsearch.data import SampleSet
from mpsearch.evaluate.metrics import Metrics
from mpsearch.registry import Registry


class Task(ABC):
    """Compares outputs; knows no model.

    Class flags say what it is: `measure` names its damage in print, and `classes` whether the outputs are N x K logits of classes, which
    the objectives and methods that draw labels from the model need.
    """

    name: ClassVar[str]
    measure: ClassVar[str]
    classes: ClassVar[bool] = False

    @abstractmethod
    def damage(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """How far each sample's output is from the float model's, N float64; 0 where they are equal, NaN where it is not finite. What the search lowers."""

    @abstractmethod
    def compare(self, outputs: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
        """Metrics of the outputs of N samples against the float model's, and against labels where there are some."""

    def require_labels(self, samples: SampleSet, outputs: Tensor) -> None:  # noqa: B027 (a task without labels looks at none)
        """Raises DataError where a label of the samples is none that outputs of this shape, 1 x ..., can give."""

    def loss(self, outputs: Tensor, reference: Tensor) -> float:
        """Mean damage."""
        return max(float(self.damage(outputs, reference).mean()), 0.0)  # in this order: max(0.0, nan) is 0.0


TASKS: Registry[Task] = Registry("task", "mpsearch.evaluate.tasks")
