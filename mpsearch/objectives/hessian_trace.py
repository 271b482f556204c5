"""`hessian_trace`: the mean curvature of the loss in a unit's weights times the squared error of its
quantised weight, as in HAWQ-V2.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpsearch.data import SampleSet
from mpsearch.errors import OptionError
from mpsearch.objectives._base import (
    OBJECTIVES,
    Objective,
    Parts,
    Passes,
    Rows,
    ScoringContext,
    require_positive,
)
from mpsearch.objectives._grads import calibrated_units, logits_of, only_these, parameters_of, recorded
from mpsearch.objectives._local import first_images, weight_errors
from mpsearch.quant.devices import wide, wide_type


@dataclass
class Trace:
    """A Hutchinson estimate.

    Args:
        draws: Number of v^T H v that were taken.
        mean: Their running mean.
        squares: Sum of squares about it.
    """

    draws: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """One draw more (Welford)."""
        self.draws += 1
        shift = value - self.mean
        self.mean += shift / self.draws
        self.squares += shift * (value - self.mean)

    @property
    def error(self) -> float:
        """Standard error of the mean; infinite for one draw. Draws of different images are taken for one
        population, which errs on the safe side.
        """
        return math.inf if self.draws < 2 else math.sqrt(self.squares / (self.draws - 1) / self.draws)

    @property
    def floored(self) -> float:
        """The mean, or its standard error where that is more; of a single draw, at least 0."""
        return max(self.mean, 0.0 if self.draws < 2 else self.error)


@OBJECTIVES.register("hessian_trace")
@dataclass(frozen=True)
class HessianTrace(Objective):
    """Tr(H) / n * ||W_hat - W||^2 over the n weights of a unit, H the Hessian of the mean loss in them. Blind
    to input bits.

    A baseline: on deep networks the estimate is rough. The v of the other units add noise of mean 0 that
    outweighs the traces themselves (on ResNet56 24 of 56 traces, none of which can be negative, came out
    negative after 64 draws). `fisher` has the same information without that noise.

    The squared norm, not the mean square: with the mean square the ranking of units of different size is
    another. Tr(H) = E[v^T H v] with v of +-1, for all units at once: one gradient of a gradient for each
    draw, noisier than unit by unit and L times cheaper. Each draw takes one image and a v of its own, so that
    there is no batch whose size could matter and memory holds the graph of one image. Attention runs in
    torch's plain form, the only one that can be differentiated twice. H may be indefinite: a trace below its
    standard error counts as that, so that no unit is free because of noise, and a negative one is noted.

    References: Dong et al., HAWQ-V2, NeurIPS 2020, arXiv:1911.03852. Differs in: v changes with each image;
    stops by the standard error, where the reference code stops when the running mean no longer moves; the
    floor.

    Args:
        target: Labels of the cross entropy: `labels`, `model` (the model's own softmax, held fixed: H is then
            its Fisher information, never negative), or `auto`: labels where the images have them.
        probes: Draws for each image at most; more images serve as well as more draws.
        tolerance: Stops after a round of all images when the standard error of every trace is at most this
            share of it.
        images: Calibration images used.
    """

    needs_data: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    unit: ClassVar[str] = "nats, twice the rise of the loss"
    target: Literal["auto", "labels", "model"] = "auto"
    probes: int = 1
    tolerance: float = 0.1
    images: int = 128

    def __post_init__(self) -> None:
        require_positive("hessian_trace", probes=self.probes, images=self.images)
        if not self.tolerance >= 0:
            raise OptionError(
                f"The tolerance of hessian_trace is {self.tolerance}; it is a share of the trace, such "
                "as 0.1, or 0 for all probes."
            )

    def passes(self, context: ScoringContext) -> Passes:
        """For each draw one forward pass, one backward pass, and one through that, which counts twice."""
        draws = self.probes * min(self.images, len(context.images))
        return Passes(draws, 3 * draws)

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`."""
        return self.parts(context).total

    def parts(self, context: ScoringContext) -> Parts:
        """The table, all of it from weights."""
        traces = self.traces(context)
        rows = []
        for layer, candidates in zip(context.layers, context.candidates, strict=True):
            mean = traces[layer.name].floored / layer.weight_numel if layer.name in traces else 0.0
            rows.append([mean * error for error in weight_errors(context, layer, candidates)])
        return Parts(rows, rows, [[0.0] * len(row) for row in rows], self._notes(traces))

    def traces(self, context: ScoringContext) -> dict[str, Trace]:
        """The trace of each unit that has a weight."""
        images = first_images(context, self.images)
        units = [unit for unit in calibrated_units(context) if unit in context.calibration.weights]
        parameters = parameters_of(context, units)
        generators = {
            unit: torch.Generator("cpu").manual_seed(context.seed ^ zlib.crc32(unit.encode()))
            for unit in units
        }
        traces = {unit: Trace() for unit in units}
        for probe in range(self.probes):
            for done, (inputs, labels) in enumerate(images.batches(1)):
                with (
                    only_these(context.module, parameters.values()),
                    sdpa_kernel(SDPBackend.MATH),
                    recorded(context.module, units, "input"),
                ):
                    logits = logits_of(context.module, inputs)
                    _draw(_loss(logits, self._labels(images, labels, logits)), parameters, generators, traces)
                context.on_step(
                    probe * len(images) + done + 1, (probe + 1) * len(images)
                )  # of the rounds that are sure to be run
            if all(trace.error <= self.tolerance * abs(trace.mean) for trace in traces.values()):
                break
        return traces

    def _labels(self, images: SampleSet, labels: Tensor | None, logits: Tensor) -> Tensor | None:
        if self.target == "model" or (self.target == "auto" and labels is None):
            return None
        images.require_labels(logits.shape[1])
        return labels

    def _notes(self, traces: Mapping[str, Trace]) -> tuple[str, ...]:
        negative = [unit for unit, trace in traces.items() if trace.mean < 0]
        rough = [unit for unit, trace in traces.items() if trace.error > self.tolerance * abs(trace.mean)]
        notes = []
        if negative:
            notes.append(
                f"The Hessian trace of {len(negative)} units is negative and counts as its standard "
                f"error, such as {negative[0]!r}. Use target=model."
            )
        if rough and self.tolerance > 0:
            notes.append(
                f"The Hessian trace of {len(rough)} units has a standard error above {self.tolerance:g} "
                f"of it, such as {rough[0]!r}. Raise probes."
            )
        return tuple(notes)


def _loss(logits: Tensor, labels: Tensor | None) -> Tensor:
    target = logits.detach().softmax(1) if labels is None else labels.to(logits.device)
    with torch.enable_grad():
        return F.cross_entropy(logits, target)


def _draw(
    loss: Tensor,
    parameters: Mapping[str, nn.Parameter],
    generators: Mapping[str, torch.Generator],
    traces: Mapping[str, Trace],
) -> None:
    """Add v^T H v of each unit's own block of the Hessian, with one v for all units: what the blocks between
    units add has mean 0.
    """
    weights = list(parameters.values())
    probes = [
        (torch.randint(2, w.shape, generator=generators[unit], dtype=torch.int8, device="cpu") * 2 - 1).to(w)
        for unit, w in parameters.items()
    ]
    first = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    live = [(g, v) for g, v in zip(first, probes, strict=True) if g is not None and g.requires_grad]
    products: tuple[Tensor | None, ...] = (None,) * len(weights)
    if live:
        products = torch.autograd.grad([g for g, _ in live], weights, [v for _, v in live], allow_unused=True)
    found = [
        v.new_zeros((), dtype=wide_type(v.device)) if product is None else wide(v * product.detach()).sum()
        for v, product in zip(probes, products, strict=True)
    ]
    for unit, value in zip(parameters, torch.stack(found).tolist(), strict=True):  # read once for all units
        traces[unit].add(value)
