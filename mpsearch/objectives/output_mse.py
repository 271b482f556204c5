"""`output_mse`: the squared error of each unit's own output when it alone is quantised, weight and input together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mpsearch.errors import ModelError, OptionError
from mpsearch.objectives._base import OBJECTIVES, Objective, Rows, ScoringContext
from mpsearch.problem import Candidate


@OBJECTIVES.register("output_mse")
@dataclass(frozen=True)
class OutputMse(Objective):
    """E||Y_hat - Y||^2 / E||Y - mean(Y)||^2 of each unit, all other units float: the noise-to-signal ratio of its output.

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
            raise OptionError(f"output_mse needs at least 1 image and a batch of at least 1, not {self.images} and {self.batch_size}.")

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`; cost: one float forward pass over the images, and C_l passes of each unit alone over the inputs it read in it."""
        probes = {
            layer.name: _Probe(layer.name, candidates, context)
            for layer, candidates in zip(context.layers, context.candidates, strict=True)
            if layer.name in context.calibration.weights
        }
        chosen = context.images.subset(range(min(self.images, len(context.images))))
        handles = [context.module.get_submodule(name).register_forward_hook(probe.hook) for name, probe in probes.items()]
        try:
            for done, (inputs, _) in enumerate(chosen.batches(self.batch_size)):
                context.module(inputs)
                context.on_step(done + 1, -(-len(chosen) // self.batch_size))
        finally:
            for handle in handles:
                handle.remove()
        return [
            probes[layer.name].ratios() if layer.name in probes else [0.0] * len(candidates)
            for layer, candidates in zip(context.layers, context.candidates, strict=True)
        ]


class _Probe:
    """Quantises one unit at each of its candidates, on the very inputs that the float pass gives it."""

    def __init__(self, name: str, candidates: Sequence[Candidate], context: ScoringContext) -> None:
        self._name, self._power, self._mean, self._count = name, 0.0, 0.0, 0
        self._states = [context.calibration.state(name, c) for c in candidates]
        self._errors = [0.0] * len(candidates)

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._add_power(output.double())
        weight = module._parameters["weight"]
        try:
            for i, state in enumerate(self._states):
                if state.weight is None or state.activation is None:
                    continue
                module._parameters["weight"] = nn.Parameter(state.weight.dequantize(), requires_grad=False)
                quantized = module.forward(state.activation.fake_quantize(args[0]), *args[1:])  # not __call__: that would run this hook again
                self._errors[i] += float((quantized - output).double().square().sum())
        finally:
            module._parameters["weight"] = weight

    def _add_power(self, y: Tensor) -> None:
        """Update the sum of squares about the mean of all batches (Chan's formula), so that the batch size does not matter."""
        mean, total = float(y.mean()), self._count + y.numel()
        shift = mean - self._mean
        self._power += float((y - mean).square().sum()) + shift**2 * self._count * y.numel() / total
        self._mean += shift * y.numel() / total
        self._count = total

    def ratios(self) -> list[float]:
        if self._power <= 0 and any(self._errors):
            raise ModelError(f"Unit {self._name!r} gives a constant output on the calibration images, so its relative error has no meaning. Use weight_mse.")
        return [error / max(self._power, 1e-30) for error in self._errors]
