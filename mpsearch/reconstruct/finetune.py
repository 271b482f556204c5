"""Short quantisation-aware fine-tuning of any model: all its parameters and all step sizes learn, against the float model and the labels.

Weights and inputs are fake-quantised with straight-through gradients and learned steps; what comes out holds grid weights only. This
changes a model's weights by training on images, so its results are not results of post-training quantisation.

References: Esser et al., LSQ, ICLR 2020, arXiv:1902.08153 (learned steps); Hinton et al., arXiv:1503.02531 (distillation). Differs from
LSQ in: the logarithm of a factor on the calibrated scale is learned, not the scale; batch norms and dropout stay in eval mode.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mpsearch.data import ImageSet
from mpsearch.errors import CheckpointError, MpsearchError, OptionError
from mpsearch.files import digest, replacing
from mpsearch.models import weights_hash
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import OBSERVERS, AffineParams, QuantizedTensor, UnitState, quantize, wrap
from mpsearch.quant.inputs import learned_step
from mpsearch.reconstruct.calibrate import Calibration

INSIDE = 0.499  # of a step: how far from a code's value its weight may start, so that it still rounds to the code
CHUNK = 64  # images of a forward pass that learns nothing
_FORMAT = "mpsearch fine-tuning 1"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""From normalised inputs, B x C x H x W, to others of the same shape; all its chance must come from the generator."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How long and how a model learns.

    Args:
        epochs: Passes over the images.
        batch_size: Images of a step; an epoch leaves out what does not fill a last batch.
        chunk: Images of one forward and backward pass; gradients of a batch are added up over its chunks, so this bounds the memory.
        learning_rate: Of AdamW on all parameters of the model, at the top of a cosine.
        step_learning_rate: Of the logarithms of the step sizes, likewise.
        weight_decay: Of parameters with two axes or more.
        warmup: Share of the steps over which the rates rise linearly.
        temperature: Of the distillation.
        label_weight: Share of the labels' cross entropy in the loss, 0 to 1; the rest is distillation. 0 needs no labels.
        seed: Of the order of the images and their augmentation.
    """

    epochs: int = 3
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
        if self.epochs < 0 or self.batch_size < 1 or self.chunk < 1:
            raise OptionError(f"Fine-tuning needs epochs >= 0, batch_size >= 1, chunk >= 1, not {self.epochs}, {self.batch_size}, {self.chunk}.")
        if min(self.learning_rate, self.step_learning_rate, self.weight_decay) < 0 or self.temperature <= 0:
            raise OptionError("Fine-tuning needs learning rates and a weight decay of 0 or more, and a temperature above 0.")
        if not (0 <= self.warmup <= 1 and 0 <= self.label_weight <= 1):
            raise OptionError(f"warmup and label_weight are shares, 0 to 1, not {self.warmup} and {self.label_weight}.")


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning gives; `quant.install(module, states)` is the finished model.

    Args:
        module: Float model with the learned biases, norms and embeddings, and the float weights behind the codes, from which fine-tuning may go on.
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
    on_step: Callable[[int, int, float], None] | None = None,
) -> Finetuned:
    """Train a model at the bits of its states.

    A parameter that requires no gradient stays as it is, and so do logarithmic levels. Units in float train in float.

    Args:
        module: Float model in eval mode; left as found.
        states: Where to start, by unit; learned codes are kept as the starting point.
        images: What it learns from.
        config: How long and how.
        teacher: Float model in eval mode whose outputs are to be met; `module` where None.
        augment: Applied to each batch.
        checkpoint: File that is written after each epoch, and taken up again where it exists; of one call with the same arguments.
        on_step: Called after each step with its number from 1, the number of steps, and the loss.
    Returns: The float module and the states, both new.

    Raises:
        DataError: `label_weight` is positive and the images have no labels.
        CheckpointError: The checkpoint is damaged, or of another call.
        MpsearchError: The loss became NaN or infinite; names the step.
    """
    student, layers = _student(module, states)
    run = _Run(student, module if teacher is None else teacher, images, config, augment)
    name = "" if checkpoint is None else _fingerprint(student, states, images, config)
    done = _load(checkpoint, name, run) if checkpoint is not None and checkpoint.exists() else 0
    for epoch in range(done, config.epochs):
        run.epoch(epoch, on_step)
        if checkpoint is not None:
            _save(checkpoint, name, run, epoch + 1)
    return Finetuned(_float_module(module, student, states), {unit: _settled(states[unit], layers[unit]) for unit in states})


class LearnedWeight(nn.Module):
    """A parametrisation of `weight`: its fake-quantised form, with a learned factor on each scale."""

    def __init__(self, params: AffineParams) -> None:
        super().__init__()
        self.params = params
        self.log_step = nn.Parameter(torch.zeros_like(params.scale))

    def forward(self, weight: Tensor) -> Tensor:
        """Same shape as `weight`."""
        return learned_step(weight, self.params, self.log_step.exp())

    def settle(self, weight: Tensor) -> QuantizedTensor:
        """Codes of the weight on the learned grid."""
        params = replace(self.params, scale=(self.params.scale * self.log_step.exp()).detach())
        return QuantizedTensor(quantize(weight.detach(), params), params)


class _Run:
    """The student with its optimiser: what a checkpoint holds."""

    def __init__(self, student: nn.Module, teacher: nn.Module, images: ImageSet, config: FinetuneConfig, augment: Augment | None) -> None:
        self._student, self._teacher, self._images, self._config, self._augment = student, teacher, images, config, augment
        self.parameters = {name: p for name, p in student.named_parameters() if p.requires_grad}
        self._labels = images.require_labels() if config.label_weight > 0 else None
        self._device = next(iter(self.parameters.values())).device
        self.optimizer = torch.optim.AdamW(_groups(self.parameters, config), fused=True)
        self._per_epoch = max(1, len(images) // config.batch_size)

    def epoch(self, epoch: int, on_step: Callable[[int, int, float], None] | None) -> None:
        generator = torch.Generator().manual_seed(1_000_003 * self._config.seed + epoch)
        order = torch.randperm(len(self._images), generator=generator)
        total = self._per_epoch * self._config.epochs
        for index, picked in enumerate(torch.split(order, self._config.batch_size)[: self._per_epoch]):
            step = epoch * self._per_epoch + index
            for group in self.optimizer.param_groups:
                group["lr"] = group["top"] * rate(step, total, self._config.warmup)
            loss = self._step(picked, generator)
            if not math.isfinite(loss):
                raise MpsearchError(
                    f"The loss is {loss} at step {step + 1} of {total}. Lower learning_rate ({self._config.learning_rate}) or raise warmup "
                    f"({self._config.warmup}); if it is the first step, check that the model's outputs on these images are finite."
                )
            if on_step is not None:
                on_step(step + 1, total, loss)

    def _step(self, picked: Tensor, generator: torch.Generator) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in torch.split(picked, self._config.chunk):
            x = self._images.inputs(part)
            x = (x if self._augment is None else self._augment(x, generator)).to(self._device)
            with torch.enable_grad():
                loss = self._loss(x, None if self._labels is None else self._labels[part].to(self._device)) * (len(part) / len(picked))
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
            loss = loss + (1 - share) * temperature**2 * F.kl_div(learned, target, reduction="batchmean", log_target=True)
        return loss if labels is None else loss + share * F.cross_entropy(logits, labels)


def rate(step: int, total: int, warmup: float) -> float:
    """Factor on the learning rate at a step from 0: a linear rise over the warm-up, times half a cosine."""
    rise = min(1.0, (step + 1) / max(1.0, warmup * total))
    return rise * 0.5 * (1 + math.cos(math.pi * step / total))


def _groups(parameters: Mapping[str, nn.Parameter], config: FinetuneConfig) -> list[dict[str, Any]]:
    steps = [p for name, p in parameters.items() if name.endswith("log_step")]
    rest = [p for name, p in parameters.items() if not name.endswith("log_step")]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "top": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "top": config.learning_rate, "weight_decay": 0.0},
        {"params": steps, "top": config.step_learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _student(module: nn.Module, states: Mapping[str, UnitState]) -> tuple[nn.Module, Mapping[str, Any]]:
    """A copy that computes with the states, and in which all that may learn is a parameter; its quantised layers by unit."""
    student = copy.deepcopy(module).eval()
    layers: Mapping[str, Any] = wrap(student, states)
    for unit, layer in layers.items():
        state = states[unit]
        layer.set_state(state)
        for quantizer in layer.inputs():
            quantizer.learn()
        if state.weight is not None:
            layer.set_weight(start_weight(module.get_submodule(unit).get_parameter("weight").detach(), state.weight))
            parametrize.register_parametrization(layer.inner, "weight", LearnedWeight(state.weight.params))
    return student, layers


def start_weight(weight: Tensor, tensor: QuantizedTensor) -> Tensor:
    """The weight nearest to the float one that rounds to the codes of `tensor`; outside the grid's range the float one stays."""
    scale, _ = tensor.params.expanded(weight.ndim)
    middle = tensor.dequantize()
    low = torch.where(tensor.codes == tensor.params.qmin, -torch.inf, middle - INSIDE * scale)
    high = torch.where(tensor.codes == tensor.params.qmax, torch.inf, middle + INSIDE * scale)
    return torch.clamp(weight, low, high)


def _settled(state: UnitState, layer: Any) -> UnitState:
    found = [quantizer.settle() for quantizer in layer.inputs()]
    state = replace(state, **dict(zip(("activation", "second"), found, strict=False)))
    if state.weight is None:
        return state
    behind = layer.inner.parametrizations.weight
    return replace(state, weight=behind[0].settle(behind.original))


def _float_module(module: nn.Module, student: nn.Module, states: Mapping[str, UnitState]) -> nn.Module:
    """A copy of the module with the student's parameters."""
    result = copy.deepcopy(module)
    learned = dict(student.named_parameters())
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            parameter.copy_(learned[_student_name(name, states)])
    return result


def _student_name(name: str, states: Mapping[str, UnitState]) -> str:
    """What the student calls a parameter of the module."""
    unit, _, leaf = name.rpartition(".")
    if unit not in states:
        return name
    behind = "parametrizations.weight.original" if leaf == "weight" and states[unit].weight is not None else leaf
    return f"{unit}.inner.{behind}"


def _fingerprint(student: nn.Module, states: Mapping[str, UnitState], images: ImageSet, config: FinetuneConfig) -> str:
    """Of the arguments that a checkpoint belongs to; teacher and augmentation are functions, and cannot be told apart."""
    grids = [(unit, str(s.candidate), *(_grid(q) for q in (s.weight and s.weight.params, s.activation, s.second))) for unit, s in states.items()]
    return digest([weights_hash(student), grids, images.content_hash, asdict(config)])


def _grid(params: object) -> Any:
    if params is None:
        return "NoneType"
    if not isinstance(params, AffineParams):
        return [type(params).__name__, *(v.tolist() if isinstance(v, Tensor) else v for v in vars(params).values())]
    return [params.scale.tolist(), params.zero_point.tolist(), params.bits, params.symmetric, params.axis]


def _held(run: _Run) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint holds, by name: the parameters, and the moments of the optimiser."""
    for name, parameter in run.parameters.items():
        yield f"value.{name}", parameter.detach()
        for moment in _MOMENTS if parameter in run.optimizer.state else ():
            yield f"{moment}.{name}", run.optimizer.state[parameter][moment]


def _save(path: Path, name: str, run: _Run, epochs: int) -> None:
    with replacing(path) as beside:
        save_file({key: value.contiguous() for key, value in _held(run)}, beside, {"format": _FORMAT, "run": name, "epochs": str(epochs)})


def _load(path: Path, name: str, run: _Run) -> int:
    """Put a checkpoint into the run; returns the epochs that are done."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of fine-tuning, or is damaged: {error}. Remove it to start anew.") from None
    if about.get("format") != _FORMAT or about.get("run") != name:
        raise CheckpointError(
            f"{path} belongs to another fine-tuning (model, states, images or settings differ). Name another file, or remove it to start anew."
        )
    with torch.no_grad():
        for key, parameter in run.parameters.items():
            parameter.copy_(found[f"value.{key}"])
            if f"step.{key}" in found:
                run.optimizer.state[parameter] = {m: found[f"{m}.{key}"].to(parameter.device) for m in _MOMENTS}
    return int(about["epochs"])


@torch.no_grad()
def sensitive_units(module: nn.Module, calibration: Calibration, assignment: Assignment, inputs: Tensor) -> dict[str, float]:
    """How much a symmetric grid on each unit's input alone costs: KL(float || that), in nats, most sensitive first.

    References: after Zhao, Dong, Keutzer, Q-MLP, arXiv:2209.06383 ("asymmetric quantiser for sensitive operations"); the measure is chosen here.

    Args:
        module: Float model in eval mode; left as found.
        calibration: Of its units.
        assignment: Bits of each unit's input; float units are left out.
        inputs: N x C x H x W normalised images.
    Returns: Unit -> KL.
    """
    student = copy.deepcopy(module)
    layers = wrap(student, calibration.weights)
    logits = _log_probabilities(student, inputs)
    found: dict[str, float] = {}
    for unit, layer in layers.items():
        if not assignment[unit].is_float:
            layer.input.params = symmetric_input(calibration, unit, assignment[unit])
            found[unit] = float(F.kl_div(_log_probabilities(student, inputs), logits, reduction="batchmean", log_target=True))
            layer.input.params = None
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def mixed_states(calibration: Calibration, assignment: Assignment, sensitivity: Mapping[str, float], threshold: float) -> dict[str, UnitState]:
    """Every unit at its candidate, with an asymmetric grid on its input where `sensitivity` is above `threshold`, else a symmetric one."""
    states = calibration.states(assignment)
    return {
        unit: replace(state, activation=symmetric_input(calibration, unit, state.candidate))
        if not state.candidate.is_float and sensitivity[unit] <= threshold
        else state
        for unit, state in states.items()
    }


def symmetric_input(calibration: Calibration, unit: str, candidate: Candidate) -> AffineParams:
    """The symmetric quantiser of a unit's input, by the calibration's observer."""
    if candidate.a_bits is None:
        raise ValueError("A float candidate has no quantiser.")
    return OBSERVERS.create(calibration.input_observer).observe(calibration.inputs[unit], candidate.a_bits, symmetric=True)


def _log_probabilities(module: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([F.log_softmax(module(part).double(), 1) for part in torch.split(inputs, CHUNK)])
