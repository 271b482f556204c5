"""Range calibration: the quantiser of every weight and every input, for every candidate, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mpsearch.errors import DataError, ModelError
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import OBSERVERS, AffineParams, QuantizedTensor, UnitState, quantize

MAX_INPUT_VALUES = 2**18
"""Values of one unit's input that are kept for its range: 1 MiB for each unit, and as much for its output, whatever the number of images."""


@dataclass
class Calibration:
    """Quantisers by unit and bits, made on demand from a float model and samples of its inputs.

    Args:
        weights: Unit -> float32 weight, [C_out, ...]; not a copy.
        inputs: Unit -> sample of the values it reads, 1-D, with the extremes of all images in it.
        outputs: The same of what it gives, for targets that must quantise it.
        weight_observer: Registered observer for weights, symmetric, one scale for each output channel.
        input_observer: Registered observer for inputs, asymmetric, one scale.
    """

    weights: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    weight_observer: str = "mse:values=1024"
    input_observer: str = "mse"
    _weight_params: dict[tuple[str, int, str], AffineParams] = field(default_factory=dict, repr=False)
    _input_params: dict[tuple[str, int], AffineParams] = field(default_factory=dict, repr=False)

    def weight_params(self, unit: str, candidate: Candidate) -> AffineParams:
        """Quantiser of a unit's weight at an integer candidate."""
        bits = _bits(candidate.w_bits)
        key = (unit, bits, candidate.w_granularity)
        if key not in self._weight_params:
            axis = 0 if candidate.w_granularity == "channel" else None
            self._weight_params[key] = OBSERVERS.create(self.weight_observer).observe(self.weights[unit], bits, symmetric=True, axis=axis)
        return self._weight_params[key]

    def input_params(self, unit: str, candidate: Candidate) -> AffineParams:
        """Quantiser of a unit's input at an integer candidate."""
        key = (unit, _bits(candidate.a_bits))
        if key not in self._input_params:
            self._input_params[key] = OBSERVERS.create(self.input_observer).observe(self.inputs[unit], key[1], symmetric=False)
        return self._input_params[key]

    def state(self, unit: str, candidate: Candidate) -> UnitState:
        """The unit at a candidate, its weight rounded to nearest."""
        if candidate.is_float:
            return UnitState(candidate)
        params = self.weight_params(unit, candidate)
        return UnitState(candidate, QuantizedTensor(quantize(self.weights[unit], params), params), self.input_params(unit, candidate))

    def states(self, assignment: Assignment) -> dict[str, UnitState]:
        """Every unit that has a weight, at the candidate the assignment gives it."""
        return {unit: self.state(unit, assignment[unit]) for unit in self.weights}


def _bits(bits: int | None) -> int:
    if bits is None:
        raise ValueError("A float candidate has no quantiser.")
    return bits


@torch.no_grad()
def calibrate(
    module: nn.Module,
    units: Iterable[str],
    batches: Iterable[Tensor],
    *,
    weight_observer: str = "mse:values=1024",
    input_observer: str = "mse",
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Calibration:
    """One float pass over the calibration images, keeping a bounded sample of what each unit reads.

    Args:
        module: Float model in eval mode; left as found.
        units: Names of its convolution and linear units.
        batches: Normalised inputs, B x C x H x W each.
        weight_observer: For weights.
        input_observer: For inputs.
        seed: Of the sample.
        on_batch: Called with the number of images done.

    Raises:
        DataError: No images.
        ModelError: A unit was never reached, or read NaN or infinity; names it.
    """
    modules = {unit: module.get_submodule(unit) for unit in units}
    samples = {unit: _Sample(seed + i) for i, unit in enumerate(modules)}
    given = {unit: _Sample(seed + i) for i, unit in enumerate(modules)}
    handles = [m.register_forward_pre_hook(samples[unit].before) for unit, m in modules.items()]
    handles += [m.register_forward_hook(given[unit].after) for unit, m in modules.items()]
    done = 0
    try:
        for batch in batches:
            module(batch)
            done += len(batch)
            if on_batch is not None:
                on_batch(done)
    finally:
        for handle in handles:
            handle.remove()
    if not done:
        raise DataError("Calibration got no images. Give at least one with --data or --calibration-data.")
    inputs = {unit: sample.values(unit) for unit, sample in samples.items()}
    outputs = {unit: sample.values(unit) for unit, sample in given.items()}
    weights = {unit: m.get_parameter("weight").detach() for unit, m in modules.items()}
    return Calibration(weights, inputs, outputs, weight_observer, input_observer)


class _Sample:
    """A random sample of the values that pass by, of bounded size, with the extremes always in it."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._kept: list[Tensor] = []
        self._share = 1.0
        self._low, self._high = torch.tensor(torch.inf), torch.tensor(-torch.inf)

    def before(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._take(args[0])

    def after(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._take(output)

    def _take(self, values: Tensor) -> None:
        x = values.detach().flatten()
        self._low, self._high = torch.minimum(self._low, x.min()), torch.maximum(self._high, x.max())
        take = max(1, round(len(x) * self._share))
        self._kept.append(x[torch.randint(len(x), (take,), generator=self._generator)] if take < len(x) else x.clone())
        while sum(map(len, self._kept)) > MAX_INPUT_VALUES:
            self._share /= 2
            self._kept = [torch.cat(self._kept)]
            self._kept = [self._kept[0][torch.randperm(len(self._kept[0]), generator=self._generator)[: len(self._kept[0]) // 2]]]

    def values(self, unit: str) -> Tensor:
        if not self._kept:
            raise ModelError(f"Unit {unit!r} was never called in the calibration pass. Leave it out, or give images that reach it.")
        values = torch.cat([*self._kept, torch.stack([self._low, self._high])])
        if not torch.isfinite(values).all():
            raise ModelError(f"Unit {unit!r} meets NaN or infinity on the calibration images. Check the weights and the normalisation of the images.")
        return values
