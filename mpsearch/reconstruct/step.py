"""One learning step of a block. It reads tensors alone, so that it can be captured; what changes from step to
step is written into them before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpsearch.quant.inputs import InputQuantizer, keep_mask
from mpsearch.quant.pieces import Workspace, empty_like, pieces
from mpsearch.quant.rounding import Rounding
from mpsearch.reconstruct.block import BlockData, ReconstructionConfig, Run
from mpsearch.reconstruct.crops import Crop
from mpsearch.reconstruct.methods import Phase


@dataclass(frozen=True)
class Form:
    """The courses that a step can take.

    Args:
        crop: Number of the quarter of the output that it learns on; None for the whole.
        regularized: Whether the rounding's regulariser has set in.
    """

    crop: int | None
    regularized: bool


class Step:
    """Draws images, runs the block, and moves what is learned: `step(step.prepare(n))` is the n-th step.

    Attributes:
        device: Where it computes.
        generator: Random generator of all its random numbers.
        losses: Sum of the losses since it was last set to 0.
    """

    def __init__(
        self,
        run: Run,
        layers: Mapping[str, Any],
        roundings: Mapping[str, Rounding],
        inputs: list[InputQuantizer],
        data: BlockData,
        phase: Phase,
        config: ReconstructionConfig,
        seed: int,
    ) -> None:
        self.device = data.y.read(0, 1).device
        self.generator = torch.Generator(device=self.device).manual_seed(seed)
        self.losses, self._progress, self._rate = (torch.zeros((), device=self.device) for _ in range(3))
        self._run, self._layers, self._roundings, self._data, self._phase, self._config = (
            run,
            layers,
            roundings,
            data,
            phase,
            config,
        )
        self._workspace = Workspace()
        self._low = bool(config.bfloat16)
        for quantizer in inputs:
            quantizer.keep_prob, quantizer.generator, quantizer.workspace = (
                phase.keep_prob,
                self.generator,
                self._workspace,
            )
            quantizer.dtype = torch.bfloat16 if self._low else None
        for rounding in roundings.values():
            rounding.workspace, rounding.dtype = self._workspace, torch.bfloat16 if self._low else None
        variables = [p for rounding in roundings.values() for p in rounding.parameters()]
        steps = [q.log_step for q in inputs if q.log_step is not None]
        groups = [{"params": variables, "lr": config.rate}, {"params": steps, "lr": self._rate}]
        self._optimizer = torch.optim.Adam(
            [g for g in groups if g["params"]], fused=True, capturable=self.device.type == "cuda"
        )
        self._rows = data.rows(self.device)
        self._batch = min(config.batch_size, len(data.y))

    def prepare(self, number: int) -> Form:
        """Write what the step of this number reads, and say which form it has."""
        progress = number / self._config.iterations
        self._progress.fill_(progress)
        self._rate.fill_(self._config.step_learning_rate * 0.5 * (1 + math.cos(math.pi * progress)))
        crop = number % len(self._data.crops) if self._data.crops else None
        return Form(crop, any(rounding.regularized(progress) for rounding in self._roundings.values()))

    def __call__(self, form: Form) -> None:
        """Take one."""
        self._workspace.begin()
        crop = None if form.crop is None else self._data.crops[form.crop]
        picked = torch.randint(
            len(self._data.y), (self._batch,), generator=self.generator, device=self.device
        )
        x, further = self._inputs(picked, crop), self._data.further.of(picked)
        y = self._data.y.take(picked, None if crop is None else crop.whole, self._workspace)
        with torch.enable_grad():
            for unit, rounding in self._roundings.items():
                self._layers[unit].inner.__dict__["weight"] = rounding.soft(
                    self._progress if form.regularized else 0.0
                )
            with self._precision():
                output = self._run(x, further) if crop is None else self._run(x, further)[:, :, *crop.own]
        weight = self._data.weight
        gradient = self._gradient(
            output.detach(), y, weight if weight is None or crop is None else weight[:, :, *crop.whole]
        )
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(output, gradient)
        self._optimizer.step()

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Of the block's forward pass."""
        if not self._low:
            yield
            return
        # torch 2.15's fused attention runs backward in bfloat16 four times slower on a CPU than in float32;
        # its plain form does not
        attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False), attention:
            yield

    def _inputs(self, picked: Tensor, crop: Crop | None) -> Tensor:
        """What the block reads: the quantised network's values, or of each element that or the float
        network's.
        """
        window, (float_row, quant_row) = None if crop is None else crop.read, self._rows
        x = self._data.x.take(quant_row[picked], window, self._workspace)
        if self._phase.keep_prob < 1 and not self._data.same:
            floats, keep = (
                self._data.x.take(float_row[picked], window, self._workspace),
                keep_mask(x, self._phase.keep_prob, self.generator, self._workspace),
            )
            for into, f, k in pieces(x, floats, keep):
                torch.lerp(f, into, k, out=into)
        return x

    def _gradient(self, output: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """Of the loss, which is added to `losses`: squared errors, summed over channels and averaged over the
        rest. Overwrites `y`.
        """
        share = y.shape[self._data.channel_axis] / y.numel()
        gradient = empty_like(y, self._workspace, output.dtype)
        weights = [] if weight is None else [weight.expand_as(y)]
        for error, into, found, *w in pieces(y, gradient, output, *weights):
            error.sub_(
                found
                if found.dtype == error.dtype
                else self._workspace.scratch(0, error, error.dtype).copy_(found)
            )
            pull = torch.mul(error, w[0], out=self._workspace.scratch(0, error, error.dtype)) if w else error
            self.losses.add_(torch.dot(pull, error), alpha=share)
            into.copy_(pull.mul_(-2 * share))
        return gradient
