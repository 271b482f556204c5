"""What a task is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from mpsearch.data import SampleSet
from mpsearch.errors import OptionError
from mpsearch.evaluate.metrics import Metrics
from mpsearch.quant.devices import wide
from mpsearch.registry import Registry

_PROBES = 8
"""Random signs behind the estimate of a curvature's diagonal."""


class Task(ABC):
    """Compares outputs; knows no model.

    Class flags say what it is: `measure` names its damage in print, `classes` whether the outputs are N x K
    logits of classes, which the objectives and methods that draw labels from the model need, and `several`
    whether it takes all float outputs of a model, a dict of N x ... by name, in the place of one. Others have
    a field `output`: the name of the one that they are about, of a model that gives several. `headlines` are
    the scores to judge by, in order; the first that is measured counts.
    """

    name: ClassVar[str]
    measure: ClassVar[str]
    classes: ClassVar[bool] = False
    several: ClassVar[bool] = False
    headlines: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def damage(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """How far each sample's output is from the float model's, N float64; 0 where they are equal, NaN
        where it is not finite. What the search lowers.
        """

    @abstractmethod
    def compare(self, outputs: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
        """Metrics of the outputs of N samples against the float model's, and against labels where there are
        some.
        """

    def directions(self, reference: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """D x N x ...: random v with E[v v^T] the curvature of the damage at the float model's outputs, N x
        ....

        Here its diagonal alone is kept, estimated by products of the damage's own Hessian with random signs.
        A task that knows a root of its curvature gives that.

        Raises: OptionError: The damage cannot be differentiated.
        """
        outputs = wide(reference).detach().requires_grad_()
        with torch.enable_grad():
            damage = self.damage(outputs, wide(reference)).sum()
            slope = (
                torch.autograd.grad(damage, outputs, create_graph=True)[0]
                if damage.requires_grad
                else outputs.detach()
            )
            if not slope.requires_grad:
                raise OptionError(
                    f"The damage of the task {self.name!r} cannot be differentiated twice. Use the "
                    "objective output_mse or kl."
                )
            diagonal = torch.zeros_like(outputs)
            for _ in range(_PROBES):
                z = wide(random_signs(reference, 1, generator)[0])
                diagonal += z * torch.autograd.grad(slope, outputs, z, retain_graph=True)[0]
        root = (diagonal / _PROBES).clamp(min=0).sqrt().to(reference.dtype)
        return root * random_signs(reference, count, generator)

    def require_labels(self, samples: SampleSet, outputs: Tensor) -> None:  # noqa: B027 (a task without labels looks at none)
        """Raises DataError where a label of the samples is none that outputs of this shape, 1 x ..., can
        give.
        """

    def headline(self, metrics: Metrics) -> tuple[str, float]:
        """The score by which one judges, with its name; higher is better.

        The first of `headlines` that was measured; where it names none, top-1 or the first of the scores.
        Without labels, and where a task has no score, the share of samples that come out as the float
        model's.
        """
        known = {"top1": metrics.top1, **metrics.scores, "agreement": metrics.agreement}
        for name in (*(self.headlines or known), "agreement"):
            value = known.get(name)
            if value is not None:
                return name, float(value)
        raise ValueError("agreement is always measured")

    def loss(self, outputs: Tensor, reference: Tensor) -> float:
        """Mean damage."""
        return max(float(self.damage(outputs, reference).mean()), 0.0)  # in this order: max(0.0, nan) is 0.0


def random_signs(like: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """+-1, count x N x ..., drawn image by image, so that the size of a batch does not matter."""
    drawn = [
        torch.randint(2, (count, *like.shape[1:]), generator=generator, device=generator.device)
        for _ in range(len(like))
    ]
    return torch.stack(drawn, 1).to(like) * 2 - 1


def softmax_directions(logits: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """D x N x ...: a root of diag(p) - p p^T, p the softmax over the last axis, times random signs: the
    curvature of KL(p || q) in the logits of q.
    """
    p = wide(logits).softmax(-1)
    signed = p.sqrt() * wide(random_signs(logits, count, generator))
    return (signed - p * signed.sum(-1, keepdim=True)).to(logits.dtype)


TASKS: Registry[Task] = Registry("task", "mpsearch.evaluate.tasks")
