"""`output_mse` and `sqnr`: the error of each unit's own output when it alone is quantised, weight and input
together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mpsearch.errors import ModelError, OptionError
from mpsearch.objectives._base import OBJECTIVES, Objective, Passes, Rows, ScoringContext
from mpsearch.objectives._local import UnitRun, first_images, input_state, operand_shifts, unit_passes
from mpsearch.problem import Candidate
from mpsearch.quant import weightless_names
from mpsearch.quant.devices import wide
from mpsearch.quant.weightless import operands_of, unwrap_weightless, wrap_weightless


@OBJECTIVES.register("output_mse")
@dataclass(frozen=True)
class OutputMse(Objective):
    """E||Y_hat - Y||^2 / E||Y - mean(Y)||^2 of each unit, all other units float: the noise-to-signal ratio of
    its output.

    A product of two activations A and B has the sum of E||A_hat - A||^2 / E||A||^2 and the same of B: the
    relative error of the product where the two errors are independent.

    Args:
        images: Calibration images used.
        batch_size: Images of one pass.
    """

    needs_data: ClassVar[bool] = True
    unit: ClassVar[str] = "noise-to-signal ratio"
    images: int = 64
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch_size < 1:
            raise OptionError(
                f"output_mse needs at least 1 image and a batch of at least 1, not {self.images} and "
                f"{self.batch_size}."
            )

    def passes(self, context: ScoringContext) -> Passes:
        """One float forward pass over the images, and each unit alone at each candidate over the inputs it
        read in it.
        """
        count = min(self.images, len(context.images))
        return Passes(count, 0, count * unit_passes(context))

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`."""
        return noise_ratios(context, self.images, self.batch_size)


@OBJECTIVES.register("sqnr")
@dataclass(frozen=True)
class Sqnr(Objective):
    """Decibels by which the signal-to-quantisation-noise ratio of each unit's output falls short of `cap_db`,
    all other units float.

    cap_db + 10 log10(r + 10^(-cap_db / 10)) with r the ratio of `output_mse`. The sum over units is that of
    logarithms: halving the noise of a unit is worth the same whatever its noise, so a single very bad unit
    weighs less than in `output_mse`.

    References: after the SQNR phase of Qualcomm AIMET's automatic mixed precision, arXiv:2302.05397, which
    puts 10^-4 under the noise as the cap does here.

    Args:
        cap_db: Above it a unit counts as exact.
        images: Calibration images used.
        batch_size: Images of one pass.
    """

    needs_data: ClassVar[bool] = True
    unit: ClassVar[str] = "dB"
    cap_db: float = 60.0
    images: int = 64
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch_size < 1 or not 0 < self.cap_db <= 200:
            found = f"{self.images}, {self.batch_size} and {self.cap_db}"
            raise OptionError(
                "sqnr needs at least 1 image, a batch of at least 1 and a cap_db above 0 and at most "
                f"200, not {found}."
            )

    def passes(self, context: ScoringContext) -> Passes:
        """As `output_mse`."""
        return OutputMse(self.images, self.batch_size).passes(context)

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`."""
        return [
            [self.lost(ratio) for ratio in row] for row in noise_ratios(context, self.images, self.batch_size)
        ]

    def lost(self, ratio: float) -> float:
        """Decibels below the cap at a noise-to-signal ratio; 0 without noise."""
        return 10 * math.log1p(ratio * 10 ** (self.cap_db / 10)) / math.log(10)


def noise_ratios(context: ScoringContext, images: int, batch_size: int) -> Rows:
    """`L x C_l` noise-to-signal ratios, as `OutputMse` defines them."""
    chosen = first_images(context, images)
    rows = {layer.name: row for layer, row in zip(context.layers, context.candidates, strict=True)}
    held = [name for name in rows if name in context.calibration.products]
    weightless = weightless_names(context.module, held)
    probes: dict[str, _Probe] = {
        name: _OutputProbe(context, name, rows[name]) for name in rows if name in context.calibration.weights
    }
    probes |= {name: _OperandProbe(context, name, rows[name]) for name in weightless}
    wrapped = wrap_weightless(context.module, weightless)
    handles: list[RemovableHandle] = []
    try:
        for name, probe in probes.items():
            at = wrapped[name] if name in wrapped else context.module.get_submodule(name)
            handles.append(at.register_forward_hook(probe.take, with_kwargs=True))
        for done, (inputs, _) in enumerate(chosen.batches(batch_size)):
            context.module(inputs)
            context.on_step(done + 1, -(-len(chosen) // batch_size))
    finally:
        for handle in handles:
            handle.remove()
        unwrap_weightless(context.module, wrapped)
    return [probes[name].ratios() if name in probes else [0.0] * len(row) for name, row in rows.items()]


class _Probe(Protocol):
    """Watches one unit in the float pass."""

    def take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A forward hook."""

    def ratios(self) -> list[float]:
        """Of each candidate."""


class _OutputProbe:
    """Quantises one layer at each of its candidates, on the very inputs that the float pass gives it."""

    def __init__(self, context: ScoringContext, name: str, candidates: Sequence[Candidate]) -> None:
        self._context, self._name, self._candidates = context, name, candidates
        self._power: Tensor | float = 0.0  # numbers stay on the device until all batches are done
        self._mean: Tensor | float = 0.0
        self._count = 0
        self._errors: list[Tensor | float] = [0.0] * len(candidates)

    @torch.no_grad()
    def take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self._add_power(wide(output))
        run = UnitRun(module, args, kwargs)
        for i, candidate in enumerate(self._candidates):
            if not candidate.is_float:
                quantized = run.output(self._context.calibration.state(self._name, candidate))
                self._errors[i] = self._errors[i] + wide(quantized - output).square().sum()

    def _add_power(self, y: Tensor) -> None:
        """Update the sum of squares about the mean of all batches (Chan's formula), so that the batch size
        does not matter.
        """
        mean, total = y.mean(), self._count + y.numel()
        shift = mean - self._mean
        more = (y - mean).square().sum() + shift**2 * self._count * y.numel() / total
        self._power = self._power + more
        self._mean = self._mean + shift * y.numel() / total
        self._count = total

    def ratios(self) -> list[float]:
        if not self._count:
            raise ModelError(
                f"Unit {self._name!r} was never called in a forward pass. Leave it out, or give images "
                "that reach it."
            )
        power, errors = float(self._power), [float(error) for error in self._errors]
        if power <= 0 and any(errors):
            raise ModelError(
                f"Unit {self._name!r} gives a constant output on the calibration images, so its relative "
                "error has no meaning. Use weight_mse."
            )
        return [error / max(power, 1e-30) for error in errors]


class _OperandProbe:
    """Quantises what a unit without a weight reads at each of its candidates: both operands of a product."""

    def __init__(self, context: ScoringContext, name: str, candidates: Sequence[Candidate]) -> None:
        self._context, self._name, self._candidates = context, name, candidates
        self._powers: list[Tensor | float] = [0.0] * operands_of(name)
        self._errors: list[list[Tensor | float]] = [[0.0] * operands_of(name) for _ in candidates]

    @torch.no_grad()
    def take(self, _: nn.Module, args: tuple[Any, ...], __: dict[str, Any], ___: Any) -> None:
        self._powers = [power + wide(x).square().sum() for power, x in zip(self._powers, args, strict=True)]
        for errors, candidate in zip(self._errors, self._candidates, strict=True):
            if not candidate.is_float:
                for at, shift in enumerate(
                    operand_shifts(input_state(self._context, self._name, candidate), args)
                ):
                    errors[at] = errors[at] + wide(shift).square().sum()

    def ratios(self) -> list[float]:
        powers = [float(power) for power in self._powers]
        if not any(powers):
            raise ModelError(
                f"Unit {self._name!r} was never called in a forward pass, or only with zeros. Leave "
                "it out, or give images that reach it."
            )
        return [
            sum(float(error) / max(power, 1e-30) for error, power in zip(errors, powers, strict=True))
            for errors in self._errors
        ]
