"""Range calibration: the quantiser of every weight and every input, for every candidate, computed once and
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mpsearch.errors import DataError, ModelError
from mpsearch.problem import Assignment, Candidate
from mpsearch.pytrees import Inputs
from mpsearch.quant import OBSERVERS, ActivationQuantizer, AffineParams, QuantizedTensor, UnitState, quantize
from mpsearch.quant.devices import on_device, wide
from mpsearch.quant.weighted import FEW_BITS, weighted
from mpsearch.quant.weightless import weightless_names
from mpsearch.reconstruct.ranges import MAX_INPUT_VALUES, SEARCHED, Operand, input_quantizer
from mpsearch.reconstruct.watched import Watched

__all__ = ["MAX_INPUT_VALUES", "Calibration", "calibrate"]


@dataclass
class Calibration:
    """Quantisers by unit and bits, made on demand from a float model and samples of its inputs.

    Args:
        weights: Unit -> float32 weight, [C_out, ...]; not a copy.
        inputs: Unit -> sample of the values it reads, 1-D, with the extremes of all images in it.
        outputs: The same of what it gives, for targets that must quantise it.
        call_outputs: For a unit that a pass calls more than once, the same of each call, in order: the ranges
            may differ.
        weight_observer: Registered observer for weights, symmetric, one scale for each output channel.
        input_observer: Registered observer for inputs, one scale; or `opt_m`, which may choose two steps or
            logarithmic levels for a unit.
        products: Unit without a weight -> what is known of what it quantises: the left and the right operand
            of a product of two activations, or the tensor that a module returns.
        softmax: Grid of operands that are probabilities: `uniform`, `log2`, or `two_region` by the error of
            the tensor; `uniform` leaves them to `input_observer`.
        chosen: (unit, bits, operand) -> name and grid that were chosen for it; all others are observed.
        twins: Unit -> another that reads the very same tensor, and whose grid it shares.
        symmetric_inputs: Whether the uniform grids of inputs are signed around zero, which integer kernels
            without zero points need.
        learned: (unit, candidate) -> its state after a reconstruction, which is given instead of rounding.
        means: Unit -> G x n mean of the rows that meet its weight. Where it is known and the unit has a bias,
            the bias of every quantised state makes up for the mean error of its weight (`mean_matched`).
        biases: Unit -> its float bias.
        powers: Unit -> G x n mean square of the rows that meet its weight. Where it is known, grids of
            weights of few bits are those of least error weighted by it (`quant.weighted`).
        rounded: (unit, weight bits, granularity) -> codes, int8, that stand in place of rounding to nearest.
    """

    weights: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    weight_observer: str = "mse"
    input_observer: str = "mse"
    products: Mapping[str, tuple[Operand, ...]] = field(default_factory=dict)
    symmetric_inputs: bool = False
    learned: Mapping[tuple[str, Candidate], UnitState] = field(default_factory=dict)
    means: Mapping[str, Tensor] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    powers: Mapping[str, Tensor] = field(default_factory=dict)
    rounded: Mapping[tuple[str, int, str], Tensor] = field(default_factory=dict)
    call_outputs: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    twins: Mapping[str, str] = field(default_factory=dict)
    softmax: str = "uniform"
    chosen: Mapping[tuple[str, int, int], tuple[str, ActivationQuantizer]] = field(default_factory=dict)
    _weight_params: dict[tuple[str, int, str], AffineParams] = field(default_factory=dict, repr=False)
    _input_params: dict[tuple[str, int, int], ActivationQuantizer] = field(default_factory=dict, repr=False)

    def weight_params(self, unit: str, candidate: Candidate) -> AffineParams:
        """Quantiser of a unit's weight at an integer candidate."""
        bits = _bits(candidate.w_bits)
        key = (unit, bits, candidate.w_granularity)
        if key not in self._weight_params:
            axis = 0 if candidate.w_granularity == "channel" else None
            weight = self.weights[unit]
            found = OBSERVERS.create(self.weight_observer).observe(weight, bits, symmetric=True, axis=axis)
            counts = bits <= FEW_BITS and unit in self.powers
            self._weight_params[key] = weighted(weight, found, self._power(unit)) if counts else found
        return self._weight_params[key]

    @property
    def weight_grids(self) -> str:
        """What the grids of weights depend on beside the calibration images."""
        return (
            f"{self.weight_observer}, up to {FEW_BITS} bits by power" if self.powers else self.weight_observer
        )

    def _power(self, unit: str) -> Tensor:
        """G x n: that of a linear layer whose bias makes up for the mean is the variance."""
        linear = self.weights[unit].ndim == 2 and self.corrects(unit)
        found = self.powers[unit] - self.means[unit].square() if linear else self.powers[unit]
        return found.clamp(min=0)

    def input_params(self, unit: str, candidate: Candidate, operand: int = 0) -> ActivationQuantizer:
        """Quantiser of a unit's input at an integer candidate; of a product's left operand (0) or right one
        (1).
        """
        held = self.learned.get((unit, candidate))
        params = None if held is None else held.second if operand else held.activation
        if params is not None:
            return params
        unit = self.twins.get(unit, unit)
        key = (unit, _bits(candidate.a_bits), operand)
        if key in self.chosen:
            return self.chosen[key][1]
        if key not in self._input_params:
            seen = self.products[unit][operand] if unit in self.products else Operand(self.inputs[unit])
            self._input_params[key] = input_quantizer(
                self.observer_of(seen), seen, key[1], symmetric=self.symmetric_inputs
            )
        return self._input_params[key]

    @property
    def uniform_observer(self) -> str:
        """The observer of tensors that must have a uniform grid."""
        return self.input_observer if self.input_observer not in SEARCHED else "mse"

    def observer_of(self, seen: Operand) -> str:
        """What chooses the grid of a tensor."""
        return self.softmax if seen.is_distribution and self.softmax != "uniform" else self.input_observer

    def state(self, unit: str, candidate: Candidate) -> UnitState:
        """The unit at a candidate, as it was learned, else with its weight rounded to nearest. A unit without
        one has what it quantises at the candidate's `a_bits`.
        """
        if (unit, candidate) in self.learned:
            return self.learned[unit, candidate]
        if candidate.is_float:
            return UnitState(candidate)
        if unit in self.products:
            if candidate.weight_only:
                return UnitState(candidate)
            second = self.input_params(unit, candidate, 1) if len(self.products[unit]) > 1 else None
            return UnitState(candidate, None, self.input_params(unit, candidate), second)
        activation = None if candidate.weight_only else self.input_params(unit, candidate)
        weight = self._rounded(unit, candidate)
        return UnitState(candidate, weight, activation, bias=self.bias(unit, weight))

    def corrects(self, unit: str) -> bool:
        """Whether the unit's bias makes up for the mean error of its weight."""
        return unit in self.means and unit in self.biases

    def bias(self, unit: str, weight: QuantizedTensor) -> Tensor | None:
        """The unit's bias beside a quantised weight; None for its own."""
        if not self.corrects(unit):
            return None
        return mean_matched(self.biases[unit], self.weights[unit], self.means[unit], weight, self.means[unit])

    def _rounded(self, unit: str, candidate: Candidate) -> QuantizedTensor:
        params = self.weight_params(unit, candidate)
        codes = self.rounded.get((unit, params.bits, candidate.w_granularity))
        return QuantizedTensor(
            quantize(self.weights[unit], params) if codes is None else codes.to(torch.int16), params
        )

    def on(self, device: torch.device) -> Calibration:
        """The same on a device; itself where it is there already."""
        return on_device(self, device)

    def states(self, assignment: Assignment) -> dict[str, UnitState]:
        """Every unit that was calibrated, at the candidate the assignment gives it."""
        return {unit: self.state(unit, assignment[unit]) for unit in (*self.weights, *self.products)}


def mean_matched(
    bias: Tensor, weight: Tensor, float_mean: Tensor, quantized: QuantizedTensor, mean: Tensor
) -> Tensor:
    """The bias b + W E[x] - W_hat E[x_q], [C_out]: the mean of the output stays what it is in the float
    network.

    Args:
        bias: b, [C_out].
        weight: W, [C_out, ...].
        float_mean: E[x], G x n, of the rows that meet the weight in the float network.
        quantized: W_hat.
        mean: E[x_q], of those that meet it in the quantised network; E[x] again where that is not known.
    References: Nagel et al., Data-Free Quantization, ICCV 2019, arXiv:1906.04721, section 4.2, with the means
        of samples.
    """
    groups, columns = mean.shape
    before = wide(weight).reshape(groups, -1, columns) @ wide(float_mean)[:, :, None]
    now = wide(quantized.dequantize()).reshape(groups, -1, columns) @ wide(mean)[:, :, None]
    return (wide(bias) + (before - now).flatten()).float()


def _bits(bits: int | None) -> int:
    if bits is None:
        raise ValueError("A float candidate has no quantiser.")
    return bits


@torch.no_grad()
def calibrate(
    module: nn.Module,
    units: Iterable[str],
    batches: Iterable[Inputs],
    *,
    weight_observer: str = "mse",
    input_observer: str = "mse",
    symmetric_inputs: bool = False,
    softmax: str = "uniform",
    bias_correction: bool = True,
    weigh: bool = False,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Calibration:
    """One float pass over the calibration images, keeping a bounded sample of what each unit reads.

    Args:
        module: Float model in eval mode; left as found.
        units: Names of its convolution and linear units, and of those without a weight that are to be
            quantised.
        batches: Normalised inputs, B x C x H x W each, or what else the model reads.
        weight_observer: For weights.
        input_observer: For inputs and operands.
        symmetric_inputs: Whether uniform grids of inputs are signed around zero.
        softmax: Grid of the probabilities of attention, as in `Calibration`.
        bias_correction: Whether the biases of quantised units make up for the mean error of their weights.
        weigh: Whether the power of inputs is taken too, for grids of weights of few bits.
        seed: Of the sample.
        on_batch: Called with the number of images done.

    Raises:
        DataError: No images.
        ModelError: There is no such unit, or it was never reached, or read NaN or infinity; names it.
    """
    modules, weightless = _found(module, list(units))
    watched = Watched(modules, weightless, seed, squares=weigh)
    with watched.units_of(module):
        _pass_by(module, batches, watched, on_batch)
    weights = {unit: m.get_parameter("weight").detach() for unit, m in modules.items()}
    biases = {
        unit: m.get_parameter("bias").detach()
        for unit, m in modules.items()
        if watched.means[unit].adds(m._parameters.get("bias"))
    }
    return Calibration(
        weights,
        {unit: sample.values(unit) for unit, sample in watched.read.items()},
        {unit: sample.whole.values(unit) for unit, sample in watched.given.items()},
        weight_observer,
        input_observer,
        {unit: tuple(each.operand(unit) for each in taken) for unit, taken in watched.operands.items()},
        symmetric_inputs,
        means=watched.known_means if bias_correction else {},
        biases=biases,
        powers=watched.known_squares,
        call_outputs={unit: given.of_calls(unit) for unit, given in watched.given.items() if given.calls},
        twins=watched.twins(),
        softmax=softmax,
    )


def _found(module: nn.Module, units: Sequence[str]) -> tuple[dict[str, nn.Module], list[str]]:
    """The layers by name, and the units without a weight. Raises ModelError where there is no such unit."""
    weightless = weightless_names(module, units)
    there = dict(module.named_modules())
    unknown = [unit for unit in units if unit not in weightless and unit not in there]
    if unknown:
        raise ModelError(
            f"The model has no units {unknown[:5]}. Give names of its modules, as `analyze` finds them."
        )
    return {unit: there[unit] for unit in units if unit not in weightless}, weightless


def _pass_by(
    module: nn.Module, batches: Iterable[Inputs], watched: Watched, on_batch: Callable[[int], None] | None
) -> None:
    done = 0
    for batch in batches:
        watched.begin()
        module(batch)
        done += len(batch)
        if on_batch is not None:
            on_batch(done)
    if not done:
        raise DataError("Calibration got no images. Give at least one with --data or --calibration-data.")
