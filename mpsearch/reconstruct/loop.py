"""The one reconstruction loop: each block of the network, in order, learns its rounding against the float block's output.

The whole calibration set walks through the network once. The batch holds two streams, 2N x ...: the first N images pass through the float
blocks, the last N through the quantised ones, so that at each block its float input, its quantised input and its float output are at
hand without ever running a prefix again. A layer is a block of one.

References: Li et al., BRECQ, ICLR 2021 (blocks); Wei et al., QDrop, ICLR 2022, arXiv:2203.05740 (input mixing, dropping).
Differs from QDrop in: a unit's quantiser sits on its input, step sizes of activations are not learned here, and a block whose learned
rounding is no better than nearest rounding on the calibration images keeps nearest rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.quant import QuantConv2d, QuantLayer, UnitState, wrap
from mpsearch.quant.rounding import ROUNDINGS, Rounding

CHUNK = 64  # images of a forward pass outside the learning steps


@dataclass(frozen=True)
class ReconstructionConfig:
    """How long and how a block learns.

    Args:
        iterations: Steps for each block; 0 keeps nearest rounding everywhere.
        batch_size: Images of a step.
        learning_rate: Of Adam on the rounding variables.
        keep_prob: Probability that an element of the block's input, and of each unit's input in it, is quantised (1 drops nothing).
        rounding: Registered rounding policy.
        seed: Of the batches and the dropping.
    """

    iterations: int = 500
    batch_size: int = 32
    learning_rate: float = 1e-2
    keep_prob: float = 0.5
    rounding: str = "adaround"
    seed: int = 0


@dataclass(frozen=True)
class BlockResult:
    """Mean squared error of one block's output on the calibration images, with nearest and with learned rounding."""

    block: str
    nearest_mse: float
    learned_mse: float


def reconstruct(
    module: nn.Module,
    blocks: Sequence[tuple[str, Sequence[str]]],
    states: Mapping[str, UnitState],
    inputs: Tensor,
    config: ReconstructionConfig,
    *,
    known: Mapping[str, UnitState] | None = None,
    on_block: Callable[[str, dict[str, UnitState], BlockResult | None], None] | None = None,
) -> dict[str, UnitState]:
    """Learn the rounding of every unit.

    Args:
        module: Float model in eval mode; left as found.
        blocks: (module name, names of its units with weights), in order of execution.
        states: Where to start: each unit rounded to nearest.
        inputs: N x C x H x W normalised calibration images.
        config: How long and how.
        known: Units that an interrupted call with the same arguments had learned: their blocks are not learned again.
        on_block: Called after each block with its name, the states of its units, and its errors (None where it was known or has no weights).
    Returns: The states with learned codes.
    Raises: ModelError: A block returns something that is not one tensor with the images on axis 0.
    """
    if config.iterations == 0 or not ROUNDINGS.create(config.rounding).learned:
        return dict(states)
    quantized = copy.deepcopy(module)
    layers = wrap(quantized, [unit for unit, state in states.items() if state.weight is not None])
    for unit, layer in layers.items():
        layer.set_state(states[unit])
    learned = {**states, **(known or {})}
    walkers = [_Walker(module.get_submodule(name), quantized, name, {u: layers[u] for u in units if u in layers}, config) for name, units in blocks]
    try:
        for index, walker in enumerate(walkers):
            skip = set(walker.units) <= set(known or {})
            walker.enter(learned, len(inputs), None if skip else config.seed + index, on_block)
        with torch.no_grad():
            quantized(torch.cat([inputs, inputs]))
    finally:
        for walker in walkers:
            walker.leave()
    return learned


class _Walker:
    """Stands in for one block of the quantised network while the two streams pass through it."""

    def __init__(self, float_block: nn.Module, quantized: nn.Module, name: str, layers: dict[str, QuantLayer], config: ReconstructionConfig) -> None:
        self._float, self._block = float_block, quantized.get_submodule(name)
        self._name, self._layers, self._config = name, layers, config
        self._forward = self._block.forward

    @property
    def units(self) -> list[str]:
        """Names of the units that learn."""
        return list(self._layers)

    def enter(
        self,
        learned: dict[str, UnitState],
        images: int,
        seed: int | None,
        on_block: Callable[[str, dict[str, UnitState], BlockResult | None], None] | None,
    ) -> None:
        """From now on the block learns when it is first called, and writes what it learned into `learned`; without a seed it takes what is there."""
        done = False

        def forward(both: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal done
            if not isinstance(both, Tensor) or len(both) % (2 * images) or any(isinstance(a, Tensor) for a in (*args, *kwargs.values())):
                raise ModelError(f"Block {self._name!r} does not read one tensor with the images on axis 0. Run with --iterations 0 (nearest rounding).")
            half = len(both) // 2  # a multiple of the images where windows were cut out of them
            x_float, x_quant = both[:half], both[half:]
            y_float = _chunked(lambda x: self._float(x, *args, **kwargs), x_float)
            self._forward_args = (args, kwargs)
            if not done:
                self._install(learned)
                result = None if seed is None else self._learn(x_float, x_quant, y_float, learned, seed)
                if on_block is not None:
                    on_block(self._name, {unit: learned[unit] for unit in self._layers}, result)
            done = True
            return torch.cat([y_float, _chunked(self._run, x_quant)])

        self._block.forward = forward

    def leave(self) -> None:
        """Undo `enter`."""
        self._block.__dict__.pop("forward", None)

    def _run(self, x: Tensor) -> Tensor:
        args, kwargs = self._forward_args
        return self._forward(x, *args, **kwargs)  # type: ignore[no-any-return]

    def _learn(self, x_float: Tensor, x_quant: Tensor, y_float: Tensor, learned: dict[str, UnitState], seed: int) -> BlockResult:
        nearest_mse = self._mse(x_quant, y_float)
        policy = ROUNDINGS.create(self._config.rounding)
        roundings: dict[str, Rounding] = {}
        for unit, layer in self._layers.items():
            tensor = learned[unit].weight
            if tensor is None:
                raise ModelError(f"Unit {unit!r} has no quantised weight to learn.")
            roundings[unit] = policy.start(self._float_weight(unit), tensor.params)
            del layer.inner._parameters["weight"]
        self._descend(roundings, x_float, x_quant, y_float, seed)
        trial = {unit: replace(learned[unit], weight=rounding.hard()) for unit, rounding in roundings.items()}
        self._install(trial)
        learned_mse = self._mse(x_quant, y_float)
        if learned_mse < nearest_mse:
            learned.update(trial)
        else:
            self._install({unit: learned[unit] for unit in self._layers})
        return BlockResult(self._name, nearest_mse, learned_mse)

    def _float_weight(self, unit: str) -> Tensor:
        inside = unit[len(self._name) :].lstrip(".")
        weight: Tensor = self._float.get_submodule(inside).get_parameter("weight")
        return weight.detach()

    def _install(self, states: Mapping[str, UnitState]) -> None:
        for unit, layer in self._layers.items():
            layer.inner.__dict__.pop("weight", None)
            layer.inner.register_parameter("weight", nn.Parameter(torch.empty(0), requires_grad=False))
            layer.set_state(states[unit])

    def _descend(self, roundings: Mapping[str, Rounding], x_float: Tensor, x_quant: Tensor, y_float: Tensor, seed: int) -> None:
        config = self._config
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam([p for r in roundings.values() for p in r.parameters()], lr=config.learning_rate, fused=True)
        images, channels = len(x_float), y_float.shape[self._channel_axis(y_float)]
        for layer in self._layers.values():
            layer.input.keep_prob, layer.input.generator = config.keep_prob, generator
        with torch.enable_grad():
            for step in range(config.iterations):
                picked = torch.randint(images, (min(config.batch_size, images),), generator=generator)
                x = self._mix(x_float[picked], x_quant[picked], generator)
                for unit, layer in self._layers.items():
                    layer.inner.__dict__["weight"] = roundings[unit].soft(step / config.iterations)
                loss = (self._run(x) - y_float[picked]).square().mean() * channels
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
        for layer in self._layers.values():
            layer.input.keep_prob, layer.input.generator = 1.0, None

    def _mix(self, x_float: Tensor, x_quant: Tensor, generator: torch.Generator) -> Tensor:
        if self._config.keep_prob >= 1.0:
            return x_quant
        return torch.lerp(x_float, x_quant, torch.empty_like(x_float).bernoulli_(self._config.keep_prob, generator=generator))

    def _channel_axis(self, y: Tensor) -> int:
        """Axis that the loss sums over: 1 behind convolutions (N x C x H x W), the last in blocks of linear layers (N x T x C, N x H x W x C)."""
        return 1 if y.ndim == 4 and any(isinstance(layer, QuantConv2d) for layer in self._layers.values()) else -1

    def _mse(self, x: Tensor, target: Tensor) -> float:
        error = 0.0
        for part, wanted in zip(torch.split(x, CHUNK), torch.split(target, CHUNK), strict=True):
            error += float((self._run(part) - wanted).double().square().sum())
        return error / target.numel()


def _chunked(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([function(part) for part in torch.split(x, CHUNK)])
