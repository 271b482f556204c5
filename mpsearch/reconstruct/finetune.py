"""Short quantisation-aware fine-tuning of any model: all its parameters and all step sizes learn, against the
float model and the labels.

Weights and inputs are fake-quantised with straight-through gradients and learned steps; what comes out holds
grid weights only. This changes a model's weights by training on images, so its results are not results of
post-training quantisation.

References: Esser et al., LSQ, ICLR 2020, arXiv:1902.08153 (learned steps); Hinton et al., arXiv:1503.02531
(distillation). Differs from LSQ in: the logarithm of a factor on the calibrated scale is learned, not the
scale; batch norms and dropout stay in eval mode.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsearch.data import ImageSet
from mpsearch.data.augment import Augment
from mpsearch.errors import MpsearchError, OptionError
from mpsearch.quant import UnitState
from mpsearch.reconstruct.finetune_file import fingerprint, load_checkpoint, save_checkpoint
from mpsearch.reconstruct.student import float_module, settled, student_of

EVERY = 60.0
"""Seconds between two checkpoints."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How long and how a model learns.

    Args:
        epochs: Passes over the images.
        steps: Steps in all, in place of `epochs`; None for as many as these have.
        batch_size: Images of a step; an epoch leaves out what does not fill a last batch.
        chunk: Images of one forward and backward pass; gradients of a batch are added up over its chunks, so
            this bounds the memory.
        learning_rate: Learning rate of AdamW on all parameters of the model, at the top of a cosine.
        step_learning_rate: Learning rate of the logarithms of the step sizes, likewise.
        weight_decay: Weight decay of parameters with two axes or more.
        warmup: Share of the steps over which the rates rise linearly.
        temperature: Temperature of the distillation.
        label_weight: Share of the labels' cross entropy in the loss, 0 to 1; the rest is distillation. 0
            needs no labels.
        seed: Random seed of the order of the images and their augmentation.
    """

    epochs: int = 3
    steps: int | None = None
    batch_size: int = 128
    chunk: int = 64
    learning_rate: float = 2e-4
    step_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.1
    temperature: float = 2.0
    label_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.steps or 0) < 0 or self.batch_size < 1 or self.chunk < 1:
            raise OptionError(
                "Fine-tuning needs epochs and steps of 0 or more, and a batch_size and a chunk of 1 or more, "
                f"not {self.epochs}, {self.steps}, {self.batch_size} and {self.chunk}."
            )
        if min(self.learning_rate, self.step_learning_rate, self.weight_decay) < 0 or self.temperature <= 0:
            raise OptionError(
                "Fine-tuning needs learning rates and a weight decay of 0 or more, and a temperature above 0."
            )
        if not (0 <= self.warmup <= 1 and 0 <= self.label_weight <= 1):
            raise OptionError(
                f"warmup and label_weight are shares, 0 to 1, not {self.warmup} and {self.label_weight}."
            )

    def per_epoch(self, images: int) -> int:
        """Steps of a pass over so many images."""
        return max(1, images // self.batch_size)

    def total(self, images: int) -> int:
        """Steps in all."""
        return self.epochs * self.per_epoch(images) if self.steps is None else self.steps


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning gives; `quant.install(module, states)` is the finished model.

    Args:
        module: Float model with the learned biases, norms and embeddings, and the float weights behind the
            codes, from which fine-tuning may go on.
        states: Learned codes and scales of each unit.
    """

    module: nn.Module
    states: dict[str, UnitState]


def finetune(
    module: nn.Module,
    states: Mapping[str, UnitState],
    images: ImageSet,
    config: FinetuneConfig,
    *,
    teacher: nn.Module | None = None,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    every: float = EVERY,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Finetuned:
    """Train a model at the bits of its states.

    A parameter that requires no gradient stays as it is, and so do logarithmic levels. Units in float train
    in float.

    Args:
        module: Float model in eval mode; left as found.
        states: Where to start, by unit; learned codes are kept as the starting point.
        images: What it learns from.
        config: How long and how.
        teacher: Float model in eval mode whose outputs are to be met; `module` where None.
        augment: Applied to each batch.
        checkpoint: File that is written as it goes on and at the end, and taken up again where it exists; of
            one call with the same arguments.
        every: Seconds between two checkpoints.
        on_step: Called after each step with its number from 1, the number of steps, and the loss.
    Returns: The float module and the states, both new.

    Raises:
        DataError: `label_weight` is positive and the images have no labels.
        CheckpointError: The checkpoint is damaged, or of another call.
        MpsearchError: The loss became NaN or infinite; names the step.
    """
    student, layers = student_of(module, states)
    run = _Run(student, module if teacher is None else teacher, images, config, augment)
    total, done, saved = config.total(len(images)), 0, time.monotonic()
    name = fingerprint(student, states, [images.content_hash, asdict(config)])
    if checkpoint is not None and checkpoint.exists():
        done = load_checkpoint(checkpoint, name, run.parameters, run.optimizer)
    for step in range(done, total):
        loss = run.step(step, total)
        if checkpoint is not None and (step + 1 == total or time.monotonic() - saved >= every):
            save_checkpoint(checkpoint, name, run.parameters, run.optimizer, step + 1)
            saved = time.monotonic()
        if on_step is not None:
            on_step(step + 1, total, loss)
    return Finetuned(
        float_module(module, student, states), {unit: settled(states[unit], layers[unit]) for unit in states}
    )


class _Run:
    """The student with its optimiser: what a checkpoint holds."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        images: ImageSet,
        config: FinetuneConfig,
        augment: Augment | None,
    ) -> None:
        self._student, self._teacher, self._images, self._config, self._augment = (
            student,
            teacher,
            images,
            config,
            augment,
        )
        self.parameters = {name: p for name, p in student.named_parameters() if p.requires_grad}
        self._labels = images.require_labels() if config.label_weight > 0 else None
        self._device = next(iter(self.parameters.values())).device
        self.optimizer = torch.optim.AdamW(_groups(self.parameters, config), fused=True)
        self._per_epoch = config.per_epoch(len(images))
        self._order: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def step(self, step: int, total: int) -> float:
        """Learn from the batch of a step, from 0, of so many; its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["top"] * rate(step, total, self._config.warmup)
        loss = self.descend(self._batch(step), _generator(self._config.seed, 2 * step + 1))
        if not math.isfinite(loss):
            raise MpsearchError(
                f"The loss is {loss} at step {step + 1} of {total}. Lower learning_rate "
                f"({self._config.learning_rate}) or raise warmup ({self._config.warmup}); if it is the first "
                "step, check that the model's outputs on these images are finite."
            )
        return loss

    def _batch(self, step: int) -> Tensor:
        """Which images a step learns from: each pass over them is in an order of its own."""
        epoch, index = divmod(step, self._per_epoch)
        if self._order[0] != epoch:
            generator = _generator(self._config.seed, 2 * epoch)
            order = torch.randperm(len(self._images), generator=generator, device="cpu")
            self._order = epoch, torch.split(order, self._config.batch_size)
        return self._order[1][index]

    def descend(self, picked: Tensor, generator: torch.Generator) -> float:
        """One step of the optimiser on these images, unless the loss is not finite; the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in torch.split(picked, self._config.chunk):
            x = self._images.inputs(part)
            x = (x if self._augment is None else self._augment(x, generator)).to(self._device)
            with torch.enable_grad():
                loss = self._loss(
                    x, None if self._labels is None else self._labels[part].to(self._device)
                ) * (len(part) / len(picked))
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if math.isfinite(total):
            self.optimizer.step()
        return total

    def _loss(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """(1 - w) T^2 KL(teacher || student) at temperature T, plus w times the labels' cross entropy."""
        share, temperature = self._config.label_weight, self._config.temperature
        logits = self._student(x)
        loss = torch.zeros((), device=x.device)
        if share < 1:
            with torch.no_grad():
                target = F.log_softmax(self._teacher(x) / temperature, 1)
            learned = F.log_softmax(logits / temperature, 1)
            loss = loss + (1 - share) * temperature**2 * F.kl_div(
                learned, target, reduction="batchmean", log_target=True
            )
        return loss if labels is None else loss + share * F.cross_entropy(logits, labels)


def _generator(seed: int, number: int) -> torch.Generator:
    """Random numbers of one step or epoch, so that a run may begin at any."""
    return torch.Generator("cpu").manual_seed(1_000_003 * seed + number)


def rate(step: int, total: int, warmup: float) -> float:
    """Factor on the learning rate at a step from 0: a linear rise over the warm-up, times half a cosine."""
    rise = min(1.0, (step + 1) / max(1.0, warmup * total))
    return rise * 0.5 * (1 + math.cos(math.pi * step / total))


def _groups(parameters: Mapping[str, nn.Parameter], config: FinetuneConfig) -> list[dict[str, Any]]:
    steps = [p for name, p in parameters.items() if name.endswith("log_step")]
    rest = [p for name, p in parameters.items() if not name.endswith("log_step")]
    groups = [
        {
            "params": [p for p in rest if p.ndim >= 2],
            "top": config.learning_rate,
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in rest if p.ndim < 2], "top": config.learning_rate, "weight_decay": 0.0},
        {"params": steps, "top": config.step_learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
