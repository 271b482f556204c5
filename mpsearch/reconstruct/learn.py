"""One block learns: its weights' codes and its activations' step sizes, against the float block's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.quant import QuantConv2d, QuantizedTensor, UnitState
from mpsearch.quant.inputs import InputQuantizer, keep_mask
from mpsearch.quant.rounding import Rounding, RoundingPolicy
from mpsearch.reconstruct.crops import Crop
from mpsearch.reconstruct.further import Further, Values
from mpsearch.reconstruct.methods import Phase
from mpsearch.reconstruct.rows import Rows

WINDOWS = 20  # parts of a block's steps whose mean losses are compared,
LEAST_WINDOW = 50  # of at least so many steps: the mean of fewer is noise
PATIENCE = 3  # windows without progress before a block stops

Run = Callable[[Tensor, Values], Tensor]
"""A block's forward: its one tensor, and what it reads beside it."""


@dataclass(frozen=True)
class ReconstructionConfig:
    """How long and how a block learns.

    Args:
        iterations: Steps for each block; 0 keeps nearest rounding everywhere.
        batch_size: Images of a step; all where there are fewer.
        learning_rate: Of Adam on the rounding variables; None for 20 / iterations, at most 0.1: a variable must be able to cross its range in the
            steps there are. At QDrop's 20,000 steps this is its 1e-3.
        step_learning_rate: Of Adam on the logarithms of the step sizes, falling to 0 along a cosine.
        tolerance: A block stops early when its loss has fallen by less than this share for three windows (a twentieth of its steps each, at least 50), and its
            rounding is decided; 0 never stops early.
        crops: Each step learns on a quarter of the output of a block that is exact on crops (`reconstruct.crops`): a third faster and, at equal steps, a
            little worse (ResNet20, 200 steps: KL 0.049 against 0.046 at W4A4, 0.53 against 0.48 at W2A2).
        bfloat16: Convolutions and products of the learning steps in bfloat16, where a device has units for it.
        method: Registered reconstruction method.
        seed: Of the batches and the dropping.
    """

    iterations: int = 500
    batch_size: int = 32
    learning_rate: float | None = None
    step_learning_rate: float = 1e-3
    tolerance: float = 0.005
    crops: bool = False
    bfloat16: bool = False
    method: str = "qdrop"
    seed: int = 0

    @property
    def rate(self) -> float:
        """The learning rate of the rounding variables."""
        return self.learning_rate if self.learning_rate is not None else min(0.1, 20 / max(self.iterations, 1))


@dataclass(frozen=True)
class BlockResult:
    """What a block gained: mean squared error of its output on the calibration images as it was and as it learned, and the steps it took.

    `kept` says whether what was learned is used: only if it is better. `calibrated` names the units of which an input keeps its calibrated levels where
    the method learns step sizes: those of a logarithm are not learned.
    """

    block: str
    start_mse: float
    learned_mse: float
    steps: int
    phase: int = 0
    calibrated: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the learned state is used."""
        return self.learned_mse < self.start_mse


@dataclass
class BlockData:
    """What a block learns from.

    Args:
        x: 2N x ... inputs; for each chunk of images those in the float network, then those in the quantised network.
        y: N x ... outputs of the float block.
        sizes: Rows of `y` in each chunk.
        same: Whether both networks' inputs are equal: nothing before the block is quantised.
        weight: 1 x ... weight of each output's error, mean 1; None for 1.
        channel_axis: Axis of `y` that the loss sums over.
        further: What the block reads beside `x`.
        crops: Quarters of the output that a step may learn on; none for the whole.
    """

    x: Rows
    y: Rows
    sizes: list[int]
    same: bool
    weight: Tensor | None
    channel_axis: int
    further: Further
    crops: tuple[Crop, ...] = ()

    def chunk(self, number: int) -> tuple[Tensor, Tensor]:
        """A chunk's inputs in the quantised network, and its float outputs, without a copy."""
        start, size = sum(self.sizes[:number]), self.sizes[number]
        return self.x.read(2 * start + size, 2 * (start + size)), self.y.read(start, start + size)

    def rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """For each row of `y` the row of its input in the float and in the quantised network."""
        size = torch.tensor(self.sizes)
        before = (size.cumsum(0) - size).repeat_interleave(size) + torch.arange(len(self.y))
        return before.to(device), (before + size.repeat_interleave(size)).to(device)

    def error(self, run: Run) -> float:
        """(Weighted) mean squared error of the block on all images."""
        total = 0.0
        for number in range(len(self.sizes)):
            x, y = self.chunk(number)
            difference = (run(x, self.further.chunk(number)) - y).double().square()
            total += float((difference if self.weight is None else difference * self.weight).sum())
        return total / math.prod(self.y.shape)


def channel_axis(y: Tensor, layers: Mapping[str, Any]) -> int:
    """1 behind convolutions (N x C x H x W), the last in blocks of linear layers alone (N x T x C, N x H x W x C)."""
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
        seed: Of batches and dropping.
    Returns: States, error at the start, error of what was learned, steps taken.
    """
    before = data.error(run)
    inputs = [q for layer in layers.values() for q in layer.inputs()]
    roundings: dict[str, Rounding] = {}
    for unit, tensor in ((u, s.weight) for u, s in states.items()):
        if phase.rounding is not None and tensor is not None:
            roundings[unit] = start_rounding(phase.rounding, weights[unit], tensor.params, data.y.read(0, 1))
            del layers[unit].inner._parameters["weight"]
    steps = [p for p in (q.learn() for q in inputs if phase.steps) if p is not None]
    taken = 0
    try:
        if roundings or steps:
            taken = _descend(run, layers, roundings, inputs, steps, data, phase, config, seed)
    finally:
        learned = {unit: _settled(state, layers[unit], roundings.get(unit)) for unit, state in states.items()}
        install(layers, learned)
    after = data.error(run)
    if after < before:
        return learned, before, after, taken
    install(layers, states)
    return dict(states), before, after, taken


def start_rounding(policy: RoundingPolicy, weight: Tensor, params: Any, like: Tensor) -> Rounding:
    """A rounding whose variables lie in memory as the block's activations do."""
    last = weight.ndim == 4 and like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return policy.start(weight.detach().contiguous(memory_format=torch.channels_last) if last else weight.detach(), params)


def install(layers: Mapping[str, Any], states: Mapping[str, UnitState]) -> None:
    """Let the layers compute `states`, whatever the learning left behind in them."""
    for unit, state in states.items():
        inner = getattr(layers[unit], "inner", None)
        if isinstance(inner, nn.Module) and state.weight is not None:
            inner.__dict__.pop("weight", None)
            inner.register_parameter("weight", nn.Parameter(torch.empty(0), requires_grad=False))
        layers[unit].set_state(state)


def _settled(state: UnitState, layer: Any, rounding: Rounding | None) -> UnitState:
    found = [q.settle() for q in layer.inputs()]
    named = dict(zip(("activation", "second"), found, strict=False))
    return replace(state, weight=state.weight if rounding is None else _plain(rounding.hard()), **named)


def _plain(tensor: QuantizedTensor) -> QuantizedTensor:
    """In memory as a loaded checkpoint has it: another layout would choose other kernels, whose sums differ in the last bits."""
    return replace(tensor, codes=tensor.codes.contiguous())


def _descend(
    run: Run,
    layers: Mapping[str, Any],
    roundings: Mapping[str, Rounding],
    inputs: list[InputQuantizer],
    steps: list[nn.Parameter],
    data: BlockData,
    phase: Phase,
    config: ReconstructionConfig,
    seed: int,
) -> int:
    """The learning steps; returns how many were taken."""
    images, device = len(data.y), data.y.read(0, 1).device
    batch, total = min(config.batch_size, images), config.iterations
    generator = torch.Generator(device=device).manual_seed(seed)
    optimizer = torch.optim.Adam(_groups(roundings, steps, config), fused=True)
    for quantizer in inputs:
        quantizer.keep_prob, quantizer.generator = phase.keep_prob, generator
    watch = _Watch(total, config.tolerance)
    mix = phase.keep_prob < 1 and not data.same
    float_row, quant_row = data.rows(device)
    cast = torch.autocast(device.type, torch.bfloat16) if config.bfloat16 else nullcontext()
    for step in range(total):
        picked = torch.randint(images, (batch,), generator=generator, device=device)
        crop = data.crops[step % len(data.crops)] if data.crops else None
        read, whole = (None, None) if crop is None else (crop.read, crop.whole)
        x, y = data.x.take(quant_row[picked], read), data.y.take(picked, whole)
        if mix:
            x = torch.lerp(data.x.take(float_row[picked], read), x, keep_mask(x, phase.keep_prob, generator))
        if steps:
            optimizer.param_groups[-1]["lr"] = config.step_learning_rate * 0.5 * (1 + math.cos(math.pi * step / total))
        further = data.further.of(picked)
        with torch.enable_grad():
            for unit, rounding in roundings.items():
                layers[unit].inner.__dict__["weight"] = rounding.soft(step / total)
            with cast:
                output = run(x, further) if crop is None else run(x, further)[:, :, *crop.own]
        difference = output.detach().float() - y
        weight = data.weight if data.weight is None or crop is None else data.weight[:, :, *crop.whole]
        gradient = difference if weight is None else difference * weight
        share = y.shape[data.channel_axis] / y.numel()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(output, (gradient * (2 * share)).to(output.dtype))
        optimizer.step()
        if watch.on and watch.done(step, (gradient * difference).sum() * share, roundings):
            return step + 1
    return total


def _groups(roundings: Mapping[str, Rounding], steps: list[nn.Parameter], config: ReconstructionConfig) -> list[dict[str, Any]]:
    variables = [p for rounding in roundings.values() for p in rounding.parameters()]
    groups = [{"params": variables, "lr": config.rate}, {"params": steps, "lr": config.step_learning_rate}]
    return [group for group in groups if group["params"]]


class _Watch:
    """Sees when a block has converged. The losses are read once for each window, not at each step."""

    def __init__(self, total: int, tolerance: float) -> None:
        self._window, self._tolerance = max(LEAST_WINDOW, total // WINDOWS), tolerance
        self._sum: Tensor | float = 0.0
        self._best, self._idle = math.inf, 0

    @property
    def on(self) -> bool:
        """Whether it ever stops a block."""
        return self._tolerance > 0

    def done(self, step: int, loss: Tensor, roundings: Mapping[str, Rounding]) -> bool:
        """Whether to stop behind this step."""
        self._sum = self._sum + loss
        if (step + 1) % self._window:
            return False
        mean, self._sum = float(self._sum) / self._window, 0.0
        self._idle = 0 if mean < self._best * (1 - self._tolerance) else self._idle + 1
        self._best = min(self._best, mean)
        return self._idle >= PATIENCE and all(rounding.decided() for rounding in roundings.values())
