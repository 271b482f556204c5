"""What a block learns from, what it is asked to do, and what it says of that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.quant.devices import wide, wide_type
from mpsearch.quant.pieces import pieces
from mpsearch.reconstruct.crops import Crop
from mpsearch.reconstruct.further import Further, Values
from mpsearch.reconstruct.rows import Rows

Run = Callable[[Tensor, Values], Tensor]
"""A block's forward: its one tensor, and what it reads beside it."""


@dataclass(frozen=True)
class ReconstructionConfig:
    """How long and how a block learns.

    Args:
        iterations: Steps for each block; 0 keeps nearest rounding everywhere.
        batch_size: Images of a step; all where there are fewer.
        chunk_size: Images of a forward pass outside the steps.
        learning_rate: Learning rate of Adam on the rounding variables; None for 20 / iterations, at most 0.1:
            a variable must be able to cross its range in the steps there are. At QDrop's 20,000 steps this is
            its 1e-3.
        step_learning_rate: Learning rate of Adam on the logarithms of the step sizes, falling to 0 along a
            cosine.
        tolerance: A block stops early when its loss has fallen by less than this share for three windows (a
            twentieth of its steps each, at least 50), and its rounding is decided; 0 never stops early.
        crops: Each step learns on a quarter of the output of a block that is exact on crops
            (`reconstruct.crops`): a third faster and, at equal steps, a little worse (ResNet20, 200 steps: KL
            0.049 against 0.046 at W4A4, 0.53 against 0.48 at W2A2).
        bfloat16: Convolutions and products of the learning steps in bfloat16; None where
            `reconstruct.precision` finds it faster and as good. What a block has learned is judged in float32
            in any case.
        capture: Whether steps are captured once as CUDA graphs and replayed; None where the device has them.
        method: Registered reconstruction method.
        seed: Random seed of the batches and the dropping.
    """

    iterations: int = 500
    batch_size: int = 32
    chunk_size: int = 64
    learning_rate: float | None = None
    step_learning_rate: float = 1e-3
    tolerance: float = 0.005
    crops: bool = False
    bfloat16: bool | None = None
    capture: bool | None = None
    method: str = "qdrop"
    seed: int = 0

    @property
    def rate(self) -> float:
        """The learning rate of the rounding variables."""
        return (
            self.learning_rate if self.learning_rate is not None else min(0.1, 20 / max(self.iterations, 1))
        )


@dataclass(frozen=True)
class BlockResult:
    """What a block gained: mean squared error of its output on the calibration images as it was and as it
    learned, and the steps it took.

    `kept` says whether what was learned is used: only if it is better. `calibrated` names the units of which
    an input keeps its calibrated levels where the method learns step sizes: those of a logarithm are not
    learned.
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
        x: 2N x ... inputs; for each chunk of images those in the float network, then those in the quantised
            network.
        y: N x ... outputs of the float block.
        sizes: Rows of `y` in each chunk.
        same: Whether both networks' inputs are equal: nothing before the block is quantised.
        weight: 1 x ... weight of each output's error, mean 1; None for 1.
        channel_axis: Axis of `y` that the loss sums over.
        further: What the block reads beside `x`.
        crops: Quarters of the output that a step may learn on; none for the whole.
        given: N x ... outputs of the quantised block as it is left, where they were kept.
    """

    x: Rows
    y: Rows
    sizes: list[int]
    same: bool
    weight: Tensor | None
    channel_axis: int
    further: Further
    crops: tuple[Crop, ...] = ()
    given: Rows | None = None

    def chunk(self, number: int) -> tuple[Tensor, Tensor]:
        """A chunk's inputs in the quantised network, and its float outputs, without a copy."""
        start, size = sum(self.sizes[:number]), self.sizes[number]
        return self.x.read(2 * start + size, 2 * (start + size)), self.y.read(start, start + size)

    def rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """For each row of `y` the row of its input in the float and in the quantised network."""
        size = torch.tensor(self.sizes, device="cpu")
        before = (size.cumsum(0) - size).repeat_interleave(size) + torch.arange(len(self.y), device="cpu")
        return before.to(device), (before + size.repeat_interleave(size)).to(device)

    def output(self, run: Run, number: int) -> Tensor:
        """What the quantised block gives for a chunk."""
        start, size = sum(self.sizes[:number]), self.sizes[number]
        if self.given is not None:
            return self.given.read(start, start + size)
        return run(self.chunk(number)[0], self.further.chunk(number))

    def error(self, run: Run, keep: bool = False) -> float:
        """(Weighted) mean squared error of the block on all images, summed in float64; the outputs are kept
        as `given` where they will be asked for.
        """
        kept = Rows(self.y.read(0, 1), len(self.y)) if keep else None
        found = sum(self._squared(run, number, kept) for number in range(len(self.sizes)))
        self.given = kept or self.given
        return float(found) / math.prod(self.y.shape)

    def _squared(self, run: Run, number: int, kept: Rows | None) -> Tensor:
        """The sum over a chunk, 0-d."""
        _, y = self.chunk(number)
        weights = [] if self.weight is None else [self.weight.expand_as(y)]
        total = torch.zeros((), dtype=wide_type(y.device), device=y.device)
        output = self.output(run, number)
        if kept is not None:
            kept.write(sum(self.sizes[:number]), output)
        for target, found, *w in pieces(y, output, *weights):
            error = wide(found - target)
            total += torch.dot(error * w[0] if w else error, error)
        return total
