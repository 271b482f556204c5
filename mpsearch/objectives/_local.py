"""One unit alone: what its weight and its output become at a candidate, all other units float."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.data import SampleSet
from mpsearch.objectives._base import ScoringContext
from mpsearch.problem import Candidate, Layer
from mpsearch.quant import ActivationQuantizer, UnitState
from mpsearch.quant.devices import wide


def first_images(context: ScoringContext, count: int) -> SampleSet:
    """The first `count` calibration images, or all where there are fewer."""
    return context.images.subset(range(min(count, len(context.images))))


class UnitRun:
    """One call of a convolution or linear layer, to be run again at other states. Hooks do not run, and the
    layer is left as found.

    Args:
        module: The float layer.
        args: Positional arguments of the call; the first is what the layer reads.
        kwargs: Keyword arguments of the call.
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._module, self._args, self._kwargs = module, args, kwargs
        self._last: tuple[ActivationQuantizer, Tensor] | None = None

    def output(self, state: UnitState) -> Tensor:
        """What the layer gives with the weight and the input of `state`."""
        read, held = self._read(state.activation), dict(self._module._parameters)
        try:
            if state.weight is not None:
                self._module._parameters["weight"] = nn.Parameter(
                    state.weight.dequantize(), requires_grad=False
                )
            if state.bias is not None:
                self._module._parameters["bias"] = nn.Parameter(state.bias, requires_grad=False)
            return self._module.forward(read, *self._args[1:], **self._kwargs)  # type: ignore[no-any-return]  # not __call__: that would run the hooks
        finally:
            self._module._parameters.update(held)

    def _read(self, quantizer: ActivationQuantizer | None) -> Tensor:
        """The input, quantised; the last one is kept, since most candidates differ in the weight alone."""
        if quantizer is None:
            return self._args[0]  # type: ignore[no-any-return]
        if self._last is None or self._last[0] is not quantizer:
            self._last = quantizer, quantizer.fake_quantize(self._args[0])
        return self._last[1]


def operand_shifts(state: UnitState, operands: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """By how much quantisation moves what a unit reads: its input, or both operands of a product."""
    quantizers = (q for q in (state.activation, state.second) if q is not None)
    return tuple(q.fake_quantize(x) - x for q, x in zip(quantizers, operands, strict=False))


def input_state(context: ScoringContext, unit: str, candidate: Candidate) -> UnitState:
    """The unit with its inputs quantised and its weight float."""
    if candidate.weight_only:
        return UnitState(candidate)
    calibration = context.calibration
    both = len(calibration.products.get(unit, ())) > 1
    second = calibration.input_params(unit, candidate, 1) if both else None
    return UnitState(candidate, None, calibration.input_params(unit, candidate), second)


def weight_state(context: ScoringContext, unit: str, candidate: Candidate) -> UnitState:
    """The unit with its weight quantised and its input float."""
    state = context.calibration.state(unit, candidate)
    return UnitState(candidate, state.weight, bias=state.bias)


def bits_of(bits: int | None) -> int:
    """The bits of an integer candidate."""
    if bits is None:
        raise ValueError("A float candidate has no bits.")
    return bits


def weight_kind(candidate: Candidate) -> tuple[int | None, str]:
    """What of a candidate the weight depends on."""
    return candidate.w_bits, candidate.w_granularity


def by_kind(
    candidates: Iterable[Candidate], kind: Callable[[Candidate], Any], value: Callable[[Candidate], float]
) -> list[float]:
    """`value` of each candidate, computed once for all of one kind; 0 for float."""
    known: dict[Any, float] = {}
    row = []
    for candidate in candidates:
        if not candidate.is_float and kind(candidate) not in known:
            known[kind(candidate)] = value(candidate)
        row.append(0.0 if candidate.is_float else known[kind(candidate)])
    return row


@torch.no_grad()
def weight_errors(
    context: ScoringContext, layer: Layer, candidates: Iterable[Candidate], importance: Tensor | None = None
) -> list[float]:
    """Sum of (W_hat - W)^2 at each candidate, each term times its `importance` (shape of W); 0 for float and
    for a unit without a weight.
    """
    if layer.name not in context.calibration.weights:
        return [0.0 for _ in candidates]
    weight = context.calibration.weights[layer.name]

    def error(candidate: Candidate) -> float:
        codes = weight_state(context, layer.name, candidate).weight
        squares = torch.zeros_like(weight) if codes is None else (codes.dequantize() - weight).square()
        return float(wide(squares if importance is None else squares * importance).sum())

    return by_kind(candidates, weight_kind, error)


def unit_passes(context: ScoringContext, contributions: bool = False) -> int:
    """Passes of single units that one image costs: for each unit with a weight its calls times its integer
    candidates.

    Args:
        context: What is scored.
        contributions: Whether weight and input are also quantised one without the other.
    """
    total = 0
    for layer, candidates in zip(context.layers, context.candidates, strict=True):
        integer = [c for c in candidates if not c.is_float]
        more = (
            len({weight_kind(c) for c in integer}) + len({c.a_bits for c in integer}) if contributions else 0
        )
        total += layer.calls * (len(integer) + more) if layer.name in context.calibration.weights else 0
    return total
