"""One phase of a reconstruction: a quantised copy of the network walks beside the float one, and each block
learns when the images have come to it.

A chunk of the walk holds two streams: its first half passes through the float blocks, its second half through
the quantised ones, so that at each block its float input, its quantised input and its float output are at
hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.pytrees import Inputs, joined, leaves_of, like, split
from mpsearch.quant import LogParams, QuantLayer, UnitState, wrap_units
from mpsearch.quant.outputs import QuantOutput
from mpsearch.reconstruct.channels_last import channels_last, convolving_fast
from mpsearch.reconstruct.closed_form import match_means, round_block
from mpsearch.reconstruct.crops import quarters
from mpsearch.reconstruct.further import Further, Values
from mpsearch.reconstruct.learn import (
    BlockData,
    BlockResult,
    ReconstructionConfig,
    Run,
    channel_axis,
    install,
    learn_block,
)
from mpsearch.reconstruct.memory import section
from mpsearch.reconstruct.methods import Phase
from mpsearch.reconstruct.rows import Rows
from mpsearch.reconstruct.walk import Answer, Halt, walk

TRIED = 4  # images on which it is seen whether a block is exact on crops

Blocks = Sequence[tuple[str, Sequence[str]]]
OnBlock = Callable[[str, dict[str, UnitState], BlockResult | None], None]


class PhaseWalk:
    """One phase: a quantised copy of the network, whose blocks learn as the images come to them."""

    def __init__(
        self,
        module: nn.Module,
        blocks: Blocks,
        states: dict[str, UnitState],
        phase: Phase,
        number: int,
        config: ReconstructionConfig,
        weights: Mapping[str, Tensor],
        known: Mapping[str, UnitState],
        on_block: OnBlock | None,
        corrected: set[str],
    ) -> None:
        self._corrected = corrected
        self._module, self._blocks, self._phase, self._number, self._config = (
            module,
            blocks,
            phase,
            number,
            config,
        )
        self._weights, self._known, self._on_block = weights, known, on_block
        self._states = {**states, **known}
        self._network = copy.deepcopy(module)
        held = {unit for _, units in blocks for unit in units}
        quantized = [
            unit
            for unit, state in states.items()
            if not state.candidate.is_float and (unit in held or state.weight is None)
        ]
        self._layers = wrap_units(self._network, quantized)
        self._part_streams()
        install(self._layers, {unit: self._shown(self._states[unit]) for unit in quantized})
        self._forwards = [self._network.get_submodule(name).forward for name, _ in blocks]
        self._done: set[int] = set()
        self._incoming: Rows | None = None

    def _part_streams(self) -> None:
        """Both streams pass what lies in no block together: there a unit without a weight quantises in the
        second alone.
        """
        inside = tuple(f"{name}." for name, _ in self._blocks)
        for unit, layer in self._layers.items():
            if not isinstance(layer, QuantLayer):
                owner = unit.rpartition(".")[
                    0
                ]  # what a block returns lies outside of it, its functions inside
                within = owner if isinstance(layer, QuantOutput) else f"{owner}."
                for quantizer in layer.inputs():
                    quantizer.second_half = not within.startswith(inside)

    def run(self, inputs: Inputs) -> dict[str, UnitState]:
        """Walk, learn, and return the states."""
        with torch.no_grad():
            arrange = channels_last if convolving_fast(self._network, inputs[:1]) else torch.Tensor.contiguous
        parts = list(split(inputs, self._config.chunk_size))
        self._sizes = [len(part) for part in parts]
        section("chunk")
        walk(
            self._network,
            [name for name, _ in self._blocks],
            (like(part, map(arrange, leaves_of(joined([part, part])))) for part in parts),
            self._at_block,
            self._arrive,
        )
        return self._states

    def _shown(self, state: UnitState) -> UnitState:
        return state if self._phase.activations else replace(state, activation=None, second=None)

    def _arrive(self, number: int, halt: Halt) -> None:
        """Move what a chunk brings to a block into rows."""
        images, before = self._sizes[number], sum(self._sizes[:number])
        each, rest = divmod(len(halt.x), 2 * images) if halt.x.ndim else (0, 1)
        if rest or not each:
            raise ModelError(
                f"Block {self._blocks[halt.block][0]!r} does not read one tensor with the images on axis "
                "0. Use --method nearest."
            )
        if not number:
            self._incoming = Rows(halt.x, 2 * each * sum(self._sizes))
        assert self._incoming is not None  # the first chunk has arrived
        self._incoming.adopt(2 * each * before, halt.x)
        if number == len(self._sizes) - 1:
            section("chunk")

    def _at_block(self, index: int, halts: list[Halt]) -> Answer:
        section("chunk")  # what the block before was given is gone
        name = self._blocks[index][0]
        original, forward = self._module.get_submodule(name), self._forwards[index]
        layers = {unit: self._layers[unit] for unit in self._blocks[index][1] if unit in self._layers}
        data = self._gather(name, halts, original, layers)

        def run(x: Tensor, further: Values) -> Tensor:
            return _call(forward, x, further)

        if index not in self._done:
            self._done.add(index)
            self._learn(index, run, layers, data, original)

        def answer(number: int) -> Tensor:
            y = data.chunk(number)[1]
            return torch.cat([y, data.output(run, number) if self._phase.asymmetric else y])

        return answer

    def _gather(
        self, name: str, halts: list[Halt], original: Callable[..., Tensor], layers: Mapping[str, Any]
    ) -> BlockData:
        """Run the float block on what the chunks have brought."""
        sizes = [len(halt.x) // 2 for halt in halts]
        rows, start, same = sum(sizes), 0, True
        further = Further(name, [(halt.args, halt.kwargs) for halt in halts], sizes)
        x, self._incoming, outputs = self._incoming, None, None
        finite = list[Tensor]()
        for number, (size, halt) in enumerate(zip(sizes, halts, strict=True)):
            x_float, x_quant = halt.x[:size], halt.x[size:]
            y = _call(original, x_float, further.chunk(number))
            if not (isinstance(y, Tensor) and len(y) == size):
                raise ModelError(_unusable(name, finite=True))
            finite.append(torch.stack([_finite(y), _finite(x_quant)]))
            same = same and torch.equal(x_float, x_quant)
            outputs = outputs or Rows(y, rows)
            outputs.write(start, y)
            start += size
            del y
        assert x is not None and outputs is not None  # there is at least one chunk
        gives, reads = torch.stack(finite).all(0).tolist()  # read once, not for each chunk
        if not (gives and reads):
            raise ModelError(_unusable(name, finite=gives))
        return BlockData(
            x,
            outputs,
            sizes,
            same,
            self._weights.get(name),
            channel_axis(outputs.read(0, 1), layers),
            further,
        )

    def _learn(
        self, index: int, run: Run, layers: Mapping[str, Any], data: BlockData, original: nn.Module
    ) -> None:
        name, result = self._blocks[index][0], None
        if layers and not set(layers) <= set(self._known):
            start = {unit: self._shown(self._states[unit]) for unit in layers}
            if self._config.crops and data.channel_axis == 1 and not data.further.any_by_image:
                data.crops = quarters(
                    lambda x: _call(original, x, data.further.chunk(0)),
                    data.x.read(0, min(TRIED, data.sizes[0])),
                )
            seed = self._config.seed + 1000 * self._number + index
            if self._phase.closed:
                (unit,) = layers
                found, before, after = round_block(unit, layers[unit], original, start[unit], run, data, seed)
                steps = 0
            else:
                found, before, after, steps = self._by_steps(run, layers, start, data, original, seed)
            for unit, state in found.items():
                self._states[unit] = (
                    state
                    if self._phase.activations
                    else replace(self._states[unit], weight=state.weight, bias=state.bias)
                )
            logs = [
                u
                for u, s in start.items()
                if self._phase.steps
                and (isinstance(s.activation, LogParams) or isinstance(s.second, LogParams))
            ]
            result = BlockResult(name, before, after, steps, self._number, tuple(logs))
        if self._on_block is not None:
            self._on_block(name, {unit: self._states[unit] for unit in layers}, result)

    def _by_steps(
        self,
        run: Run,
        layers: Mapping[str, Any],
        start: dict[str, UnitState],
        data: BlockData,
        original: nn.Module,
        seed: int,
    ) -> tuple[dict[str, UnitState], float, float, int]:
        """As `learn_block`, the biases matched to the means of what was learned."""
        weighted = {
            unit: self._module.get_submodule(unit)
            for unit, state in start.items()
            if state.weight is not None
        }
        weights = {unit: layer.get_parameter("weight") for unit, layer in weighted.items()}
        originals = {unit: layer for unit, layer in weighted.items() if unit in self._corrected}

        def float_run(x: Tensor, further: Values) -> Tensor:
            return _call(original, x, further)

        def match(states: dict[str, UnitState], error: float) -> tuple[dict[str, UnitState], float]:
            return match_means(layers, originals, states, run, float_run, data, error)

        return learn_block(run, layers, weights, start, data, self._phase, self._config, seed, match)


def _call(block: Callable[..., Tensor], x: Tensor, further: Values) -> Tensor:
    return block(x, *further[0], **further[1])


def _finite(x: Tensor) -> Tensor:
    """By the extremes, which are NaN where a value is: one look at each, and nothing is made; 0-d bool."""
    low, high = x.aminmax()
    return torch.isfinite(low) & torch.isfinite(high)


def _unusable(name: str, finite: bool) -> str:
    """Why a block cannot learn; `finite` is whether what it gives is."""
    if not finite:
        return (
            f"Block {name!r} gives NaN or infinity on the calibration images. Check the weights and "
            "the normalisation of the images."
        )
    return (
        f"Block {name!r} does not give one tensor with the images on axis 0, or reads NaN or "
        "infinity. Use --method nearest."
    )
