"""`outputs`: no task at all; every output counts by how far it is from the float model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mpsearch.evaluate.metrics import Metrics
from mpsearch.evaluate.tasks._base import TASKS, Task, random_signs

MOST_DB = 100.0
"""Where an output is equal."""
ALIKE = 0.01
"""Squared error, of the spread, up to which a sample counts as the same: 20 dB."""


@dataclass(frozen=True)
class Output:
    """One output among those that are joined along axis 1.

    Args:
        name: Where it stands.
        numel: Numbers of one sample.
        scale: Variance of the float model's numbers.
        shape: Of one sample.
    """

    name: str
    numel: int
    scale: float
    shape: tuple[int, ...] = ()


@TASKS.register("outputs")
@dataclass(frozen=True)
class Outputs(Task):
    """Outputs are N x ...; the damage of each tensor among them is its squared error over the variance of the
    float model's numbers there, summed over the tensors.

    The scores are the signal-to-noise ratios in dB, one for each tensor, `sqnr` with its name; `agreement` is
    the share of samples of which every tensor is within 20 dB. Labels are not used. Where nothing is known of
    the outputs all is one tensor, and its variance is that of the reference at hand.
    """

    measure: ClassVar[str] = "squared error"
    headlines: ClassVar[tuple[str, ...]] = ("agreement",)  # decibels are no share that could drop

    def damage(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Sum over the tensors, N."""
        return self.errors(outputs, reference).sum(1)

    def errors(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """N x T: normalised squared error of each tensor."""
        squares = (outputs.double() - reference.double()).square().flatten(1)
        known = self.known(reference)
        pieces = torch.split(squares, [part.numel for part in known], 1)
        return torch.stack([piece.mean(1) / part.scale for piece, part in zip(pieces, known, strict=True)], 1)

    def directions(self, reference: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The curvature of a mean of n squares over s is 2 / (n s) on the diagonal: its root times random
        signs.
        """
        roots = [math.sqrt(2 / (part.numel * part.scale)) for part in self.known(reference)]
        sizes = torch.tensor([part.numel for part in self.known(reference)], device=reference.device)
        each = torch.tensor(roots, device=reference.device)
        row = torch.repeat_interleave(each, sizes).reshape(reference.shape[1:])
        return random_signs(reference, count, generator) * row.to(reference)

    def compare(self, outputs: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
        """Signal-to-noise ratios."""
        errors = self.errors(outputs, reference)
        scores = {
            " ".join(filter(None, ("sqnr", part.name))): decibels(float(error))
            for part, error in zip(self.known(reference), errors.mean(0), strict=True)
        }
        alike = float((errors <= ALIKE).all(1).double().mean())
        return Metrics(len(outputs), max(float(errors.sum(1).mean()), 0.0), alike, scores=scores)

    def seen(self, parts: tuple[Output, ...]) -> Outputs:
        """The same for a model of which it is known what it gives."""
        return KnownOutputs(parts)

    def known(self, reference: Tensor) -> tuple[Output, ...]:
        """The tensors that are joined."""
        return (Output("", reference[0].numel(), spread(reference), tuple(reference.shape[1:])),)


@dataclass(frozen=True)
class KnownOutputs(Outputs):
    """`outputs` of a model that was seen.

    Args:
        parts: What is joined, in order.
    """

    parts: tuple[Output, ...] = ()

    def known(self, reference: Tensor) -> tuple[Output, ...]:
        """Those that were seen, whatever the reference."""
        return self.parts


def spread(values: Tensor) -> float:
    """Variance over all numbers; the mean square where they are all alike, and 1 where they are all 0."""
    values = values.detach().double()
    return float(values.var(correction=0)) or float(values.square().mean()) or 1.0


def decibels(error: float) -> float:
    """Of a squared error relative to what it is an error of; -`MOST_DB` where it is not finite."""
    if not math.isfinite(error):
        return -MOST_DB
    return MOST_DB if error <= 0 else min(MOST_DB, -10 * math.log10(error))
