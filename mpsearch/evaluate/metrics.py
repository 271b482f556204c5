"""How good a quantised model is: against the labels, and against the float model it came from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsearch.data import SampleSet
from mpsearch.errors import DataError, MpsearchError
from mpsearch.pytrees import Inputs
from mpsearch.quant.devices import wide

BATCH = 64


@dataclass(frozen=True)
class Metrics:
    """Over N images, or other samples.

    Args:
        images: N.
        kl: Mean KL divergence from the float model's distribution to this one's, in nats; of a task that has
            no distribution, its mean damage (`Task.measure` says what that is).
        agreement: Share of images on which both have the same top class, or decide alike in the sense of the
            task.
        top1: Share of images classified right; None without labels, and for other tasks than classification.
        loss: Mean cross entropy with the labels, in nats; None where `top1` is.
        scores: What else a task measures, by name; higher is better.
    """

    images: int
    kl: float
    agreement: float
    top1: float | None = None
    loss: float | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def top1_error(self) -> float | None:
        """Standard error of `top1`, as a share: sqrt(p (1 - p) / N)."""
        return None if self.top1 is None else math.sqrt(self.top1 * (1 - self.top1) / self.images)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`; `scores` only where there are some."""
        return {name: value for name, value in asdict(self).items() if name != "scores" or value}


@torch.no_grad()
def predict(
    module: Callable[[Inputs], Tensor] | nn.Module,
    images: SampleSet,
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Logits, N x K float32, or what else the model gives, in batches of 64; in the CPU's memory, wherever
    the images are.

    Raises: MpsearchError: An output is NaN or infinite.
    """
    found, done = [], 0
    for inputs, _ in images.batches(BATCH):
        found.append(module(inputs).float())
        done += len(inputs)
        if on_batch is not None:
            on_batch(done)
    logits = torch.cat(found).cpu()
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).flatten(1).any(1).sum())
        raise MpsearchError(
            f"The model's output is NaN or infinite on {bad} of {len(logits)} images of {images.name}. "
            "Check the weights and the normalisation."
        )
    return logits


def compare(logits: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
    """Metrics of `logits` (N x K) against the float model's `reference` (N x K) and `labels` (N).

    Raises: DataError: A label is none of the K classes.
    """
    if (
        labels is not None
        and len(labels)
        and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]
    ):
        raise DataError(
            f"The labels are {int(labels.min())} to {int(labels.max())}, and the model has "
            f"{logits.shape[1]} classes, 0 to "
            f"{logits.shape[1] - 1}. Give the data that it was trained for."
        )
    chosen = logits.argmax(1)
    agreement = float((chosen == reference.argmax(1)).float().mean())
    top1 = loss = None
    if labels is not None:
        top1 = float((chosen == labels).float().mean())
        loss = float(F.cross_entropy(logits.double(), labels))
    return Metrics(len(logits), kl_divergence(logits, reference), agreement, top1, loss)


def kl_divergence(logits: Tensor, reference: Tensor) -> float:
    """Mean over images of KL(softmax(reference) || softmax(logits)), in nats, in float64."""
    return max(float(kl_by_image(logits, reference).mean()), 0.0)  # in this order: max(0.0, nan) is 0.0


def kl_by_image(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(logits)) of each image, N float64, in nats."""
    p, q = F.log_softmax(wide(reference), 1), F.log_softmax(wide(logits), 1)
    return (p.exp() * (p - q)).sum(1)


def clearly_lower(loss: Tensor, other: Tensor, errors: float = 2.0) -> bool:
    """Whether the mean of a loss is below another's by more than some standard errors of their difference.

    Args:
        loss: Of N images, or other samples.
        other: Of the same N.
        errors: Standard errors.
    """
    difference = (other - loss).double()
    error = difference.std(correction=0) / math.sqrt(len(difference))
    return bool(difference.mean() > errors * error)
