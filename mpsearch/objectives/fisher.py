"""`fisher`: diagonal Fisher information of weights and inputs times the noise that quantisation puts on each,
after FIT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.data import SampleSet
from mpsearch.objectives._base import (
    OBJECTIVES,
    Objective,
    Parts,
    Passes,
    Rows,
    ScoringContext,
    require_positive,
)
from mpsearch.objectives._grads import (
    Cotangents,
    Scored,
    Target,
    by_call,
    calibrated_units,
    logits_of,
    mean_squares,
    nodes_of,
    only_these,
    parameters_of,
    recorded,
)
from mpsearch.objectives._local import bits_of, by_kind, first_images, weight_errors, weight_kind
from mpsearch.objectives._moves import add_input_moves, watch_slopes, weighed
from mpsearch.problem import Candidate, Layer
from mpsearch.quant.devices import wide


@OBJECTIVES.register("fisher")
@dataclass(frozen=True)
class Fisher(Objective):
    """Sum over weights of F_w dw^2 plus sum over input elements of F_a da^2; F = E[(d log p(y|x) / d.)^2],
    one image at a time.

    Labels y are drawn from the model's own softmax: on a model that fits its data, gradients of the true
    labels are nearly zero and tell nothing of the curvature. Half the score is the KL divergence to second
    order, up to covariances. Calls of one unit add up; a product of two activations has the term of each
    operand, and no weight.

    References: after Zandonati et al., FIT, ICLR 2023, arXiv:2210.08502, read in a third-party port. Differs
    in: labels are drawn; `measured` weighs each squared error by its own F, where FIT multiplies a trace by
    one noise power (`uniform`).

    Args:
        target: `model` (labels drawn from the model's softmax) or `labels` (the images' own: the empirical
            Fisher).
        noise: `measured` (the true squared error of each element) or `uniform` ((range / (2^b - 1))^2 / 12
            for every element: rounding noise without clipping; the range of a weight is that of its channel
            where the candidate has a scale for each).
        samples: Labels drawn for each image.
        images: Calibration images used.
    """

    needs_data: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    unit: ClassVar[str] = "nats, about twice the KL divergence"
    target: Target = "model"
    noise: Literal["measured", "uniform"] = "measured"
    samples: int = 1
    images: int = 128

    def __post_init__(self) -> None:
        require_positive("fisher", samples=self.samples, images=self.images)

    def passes(self, context: ScoringContext) -> Passes:
        """One forward pass, and a backward pass for each sample, of one image at a time: squared gradients do
        not add over a batch.
        """
        count = min(self.images, len(context.images))
        return Passes(count, count * self.samples)

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`."""
        return self.parts(context).total

    def parts(self, context: ScoringContext) -> Parts:
        """The table as the sum of what weights and inputs contribute. Memory: the weights once more, and one
        image's activations.
        """
        images = first_images(context, self.images)
        information: dict[str, Tensor] = {}
        slopes = {layer.name: np.zeros((2, 2)) for layer in context.layers}
        walked = watch_slopes(self._one_by_one(context, images, information), slopes)
        if self.noise == "measured":
            moved = [row.sum(1) for row in add_input_moves(context, walked, weighed)]
        else:
            for _ in walked:
                pass
            moved = [
                _rounded(context, layer.name, row, slopes[layer.name][0])
                for layer, row in zip(context.layers, context.candidates, strict=True)
            ]
        inputs = [[float(value) / len(images) for value in row] for row in moved]
        pairs = zip(context.layers, context.candidates, strict=True)
        weights = [
            [
                value / len(images)
                for value in self._of_weight(context, layer, row, information.get(layer.name))
            ]
            for layer, row in pairs
        ]
        return Parts(
            [[w + a for w, a in zip(*rows, strict=True)] for rows in zip(weights, inputs, strict=True)],
            weights,
            inputs,
        )

    def _one_by_one(
        self, context: ScoringContext, images: SampleSet, information: dict[str, Tensor]
    ) -> Iterator[dict[str, list[Scored]]]:
        """For each image the calls of every unit, nodes at inputs; adds the squared gradients of the weights
        to `information`.
        """
        units = calibrated_units(context)
        cotangents = Cotangents(self.target, images, context.seed, self.samples)
        parameters = parameters_of(context, units)
        for done, (inputs, _) in enumerate(images.batches(1)):
            with (
                only_these(context.module, parameters.values()),
                recorded(context.module, units, "input") as calls,
            ):
                logits = logits_of(context.module, inputs)
                nodes = nodes_of(calls)
                squares = mean_squares(logits, [*nodes, *parameters.values()], cotangents.of(logits))
            for (unit, weight), square in zip(parameters.items(), squares[len(nodes) :], strict=True):
                held = information.setdefault(unit, torch.zeros_like(weight, requires_grad=False))
                if square is not None:
                    held += square
            yield by_call(calls, squares[: len(nodes)])
            context.on_step(done + 1, len(images))

    def _of_weight(
        self, context: ScoringContext, layer: Layer, row: Sequence[Candidate], information: Tensor | None
    ) -> list[float]:
        if information is None or self.noise == "measured":
            return weight_errors(context, layer, row, information)
        weight, each = (
            wide(context.calibration.weights[layer.name].flatten(1)),
            wide(information.flatten(1)).sum(1),
        )

        def noise(candidate: Candidate) -> float:
            by_channel = candidate.w_granularity == "channel"
            spread = weight.amax(1) - weight.amin(1) if by_channel else weight.max() - weight.min()
            return float((each * rounding_variance(spread, bits_of(candidate.w_bits))).sum())

        return by_kind(row, weight_kind, noise)


def rounding_variance(spread: Tensor, bits: int) -> Tensor:
    """Variance of rounding on a grid of 2^bits levels over a range: its step squared over 12."""
    levels: int = 2**bits - 1
    return (spread / levels).square() / 12


def _rounded(
    context: ScoringContext, unit: str, row: Sequence[Candidate], traces: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Traces of a unit's input, or of both operands, times the rounding variance of their ranges."""
    calibration = context.calibration
    read = [operand.values for operand in calibration.products.get(unit, ())] or [
        calibration.inputs[name] for name in (unit,) if name in calibration.inputs
    ]
    ranges = [wide(x.max().clamp(min=0) - x.min().clamp(max=0)) for x in read]

    def noise(candidate: Candidate) -> float:
        return sum(
            float(trace) * float(rounding_variance(r, bits_of(candidate.a_bits)))
            for trace, r in zip(traces, ranges, strict=False)
        )

    return np.array(by_kind(row, attrgetter("a_bits"), noise))
