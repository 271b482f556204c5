"""One block learns: its weights' codes and its activations' step sizes, against the float block's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.quant import QuantConv2d, QuantizedTensor, UnitState, quantize
from mpsearch.quant.inputs import InputQuantizer
from mpsearch.quant.rounding import Rounding, RoundingPolicy
from mpsearch.reconstruct.block import BlockData, BlockResult, ReconstructionConfig, Run
from mpsearch.reconstruct.capture import Repeated, recorder
from mpsearch.reconstruct.memory import section
from mpsearch.reconstruct.methods import Phase
from mpsearch.reconstruct.precision import in_bfloat16
from mpsearch.reconstruct.step import Step

__all__ = [
    "BlockData",
    "BlockResult",
    "ReconstructionConfig",
    "Run",
    "channel_axis",
    "install",
    "learn_block",
    "start_rounding",
]

Match = Callable[[dict[str, UnitState], float], tuple[dict[str, UnitState], float]]

WINDOWS = 20  # parts of a block's steps whose mean losses are compared,
LEAST_WINDOW = 50  # of at least so many steps: the mean of fewer is noise
PATIENCE = 3  # windows without progress before a block stops


def channel_axis(y: Tensor, layers: Mapping[str, Any]) -> int:
    """1 behind convolutions (N x C x H x W), the last in blocks of linear layers alone (N x T x C, N x H x W
    x C).
    """
    return 1 if y.ndim == 4 and any(isinstance(layer, QuantConv2d) for layer in layers.values()) else -1


def learn_block(
    run: Run,
    layers: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    states: Mapping[str, UnitState],
    data: BlockData,
    phase: Phase,
    config: ReconstructionConfig,
    seed: int,
    match: Match,
) -> tuple[dict[str, UnitState], float, float, int]:
    """The better of a block's start and what it learns; the layers are left computing it.

    Args:
        run: The block's forward.
        layers: Its quantised layers by unit, computing `states`.
        weights: Unit -> float weight.
        states: Where it starts.
        data: Inputs and outputs.
        phase: What is learned.
        config: How long.
        seed: Random seed for batches and dropping.
        match: From states and their error to the better of them and the same with biases that match the
            means, installed.
    Returns: States, error at the start, error of what was learned, steps taken.
    """
    device = data.y.read(0, 1).device
    config = replace(config, bfloat16=in_bfloat16(config.bfloat16, states.values(), device))
    section("chunk")
    before = data.error(run)
    inputs = [q for layer in layers.values() for q in layer.inputs()]
    roundings = (
        {} if phase.rounding is None else _started(phase.rounding, layers, weights, states, data.y.read(0, 1))
    )
    for quantizer in inputs:
        quantizer.place(device)
    steps = [p for p in (q.learn() for q in inputs if phase.steps) if p is not None]
    taken = 0
    section("step")
    try:
        if roundings or steps:
            taken = _descend(run, layers, roundings, inputs, data, phase, config, seed)
    finally:
        learned = {unit: _settled(state, layers[unit], roundings.get(unit)) for unit, state in states.items()}
        roundings.clear()  # and with them the buffers of the steps
        install(layers, learned)
    section("chunk")
    learned, after = match(learned, data.error(run))
    if after < before:
        return learned, before, after, taken
    install(layers, states)
    return dict(states), before, after, taken


def _started(
    policy: RoundingPolicy,
    layers: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    states: Mapping[str, UnitState],
    like: Tensor,
) -> dict[str, Rounding]:
    """The roundings of those units that have a weight, which their layers are given up for, and the bias that
    goes with it.
    """
    found: dict[str, Rounding] = {}
    for unit, state in states.items():
        if state.weight is not None:
            found[unit] = start_rounding(policy, weights[unit], state.weight, like)
            del layers[unit].inner._parameters["weight"]
            layers[unit].set_bias(None)  # what the soft weight needs: it starts near the float one
    return found


def start_rounding(policy: RoundingPolicy, weight: Tensor, tensor: QuantizedTensor, like: Tensor) -> Rounding:
    """A rounding that starts from given codes, whose variables lie in memory as the block's activations
    do.
    """
    last = weight.ndim == 4 and like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    codes = None if torch.equal(tensor.codes, quantize(weight, tensor.params)) else tensor.codes
    layout = torch.channels_last if last else torch.contiguous_format
    start = None if codes is None else codes.contiguous(memory_format=layout)
    return policy.start(weight.detach().contiguous(memory_format=layout), tensor.params, start)


def install(layers: Mapping[str, Any], states: Mapping[str, UnitState]) -> None:
    """Let the layers compute `states`, whatever the learning left behind in them."""
    for unit, state in states.items():
        inner = getattr(layers[unit], "inner", None)
        if isinstance(inner, nn.Module) and state.weight is not None:
            inner.__dict__.pop("weight", None)
            empty = state.weight.params.scale.new_empty(0)
            inner.register_parameter("weight", nn.Parameter(empty, requires_grad=False))
        layers[unit].set_state(state)


def _settled(state: UnitState, layer: Any, rounding: Rounding | None) -> UnitState:
    found = [q.settle() for q in layer.inputs()]
    named = dict(zip(("activation", "second"), found, strict=False))
    if rounding is None:
        return replace(state, **named)
    return replace(state, weight=_plain(rounding.hard()), bias=None, **named)


def _plain(tensor: QuantizedTensor) -> QuantizedTensor:
    """In memory as a loaded checkpoint has it: another layout would choose other kernels, whose sums differ
    in the last bits.
    """
    return replace(tensor, codes=tensor.codes.contiguous())


def _descend(
    run: Run,
    layers: Mapping[str, Any],
    roundings: Mapping[str, Rounding],
    inputs: list[InputQuantizer],
    data: BlockData,
    phase: Phase,
    config: ReconstructionConfig,
    seed: int,
) -> int:
    """The learning steps; returns how many were taken."""
    step = Step(run, layers, roundings, inputs, data, phase, config, seed)
    take = Repeated(
        step, recorder(step.device, step.generator, config.capture), f"The step of units {', '.join(layers)}"
    )
    watch = _Watch(config.iterations, config.tolerance)
    for number in range(config.iterations):
        take(step.prepare(number))
        if watch.on and watch.done(number, step.losses, roundings):
            return number + 1
    return config.iterations


class _Watch:
    """Sees when a block has converged. The losses are read once for each window, not at each step."""

    def __init__(self, total: int, tolerance: float) -> None:
        self._window, self._tolerance = max(LEAST_WINDOW, total // WINDOWS), tolerance
        self._best, self._idle = math.inf, 0

    @property
    def on(self) -> bool:
        """Whether it ever stops a block."""
        return self._tolerance > 0

    def done(self, step: int, losses: Tensor, roundings: Mapping[str, Rounding]) -> bool:
        """Whether to stop behind this step; `losses` is the sum of those since the window began, and is set
        to 0 where it ends.
        """
        if (step + 1) % self._window:
            return False
        mean = float(losses) / self._window
        losses.zero_()
        self._idle = 0 if mean < self._best * (1 - self._tolerance) else self._idle + 1
        self._best = min(self._best, mean)
        return self._idle >= PATIENCE and all(rounding.decided() for rounding in roundings.values())
