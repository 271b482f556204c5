"""Gradients of the float model at the weights, inputs and outputs of its units: what the objectives of
curvature share.

Nothing here accumulates into `.grad`; hooks, wrapped products and `requires_grad` are put back whatever
happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mpsearch.data import SampleSet
from mpsearch.errors import ModelError
from mpsearch.objectives._base import ScoringContext
from mpsearch.objectives._local import UnitRun, operand_shifts
from mpsearch.pytrees import Inputs
from mpsearch.quant import UnitState, weightless_names
from mpsearch.quant.devices import wide
from mpsearch.quant.weightless import unwrap_weightless, wrap_weightless

Target = Literal["model", "labels"]


@dataclass(frozen=True)
class Call:
    """One call of a unit in a forward pass.

    Args:
        nodes: Tensors of the graph that belong to this call alone: the output of a layer, or what a unit
            reads.
        shifts: By how much a state of the unit moves each of them; new tensors, which may be written over.
        reads: Whether the nodes are what the unit reads.
    """

    nodes: tuple[Tensor, ...]
    shifts: Callable[[UnitState], tuple[Tensor, ...]]
    reads: bool = False


@dataclass(frozen=True)
class Scored:
    """A call with the squared gradients at its nodes, each the mean over the draws; None where the logits do
    not depend on the node.
    """

    call: Call
    powers: tuple[Tensor | None, ...]


class Cotangents:
    """What is put in front of the logits' Jacobian: `draws` rows for each image, the same whatever the batch.

    Args:
        kind: `rademacher`: entries of +-1. `model`: p - e_y, the gradient of the cross entropy, with y drawn
            from the model's own softmax p, whose second moment is the Fisher information of the logits.
            `labels`: the same with the true label.
        images: Whose labels are used.
        seed: Random seed of the draws.
        draws: For each image.
    """

    def __init__(
        self, kind: Literal["rademacher", "model", "labels"], images: SampleSet, seed: int, draws: int = 1
    ) -> None:
        self._kind, self._images, self._draws = kind, images, draws
        self._generator = torch.Generator("cpu").manual_seed(seed)  # the same draws on every device
        self._done = 0

    def of(self, logits: Tensor) -> Tensor:
        """D x B x K for the next B images, from their logits, B x K."""
        count, classes = logits.shape
        if self._kind == "rademacher":
            each = [
                torch.randint(2, (self._draws, classes), generator=self._generator, device="cpu")
                for _ in range(count)
            ]
            rows = torch.stack(each, 1).to(logits) * 2 - 1
        else:
            chance = wide(logits.detach()).softmax(1)
            picked = self._true(classes, count) if self._kind == "labels" else self._drawn(chance)
            rows = (chance - nn.functional.one_hot(picked.to(logits.device), classes)).to(logits.dtype)
        self._done += count
        return rows

    def _true(self, classes: int, count: int) -> Tensor:
        return self._images.require_labels(classes)[self._done : self._done + count].expand(self._draws, -1)

    def _drawn(self, chance: Tensor) -> Tensor:
        """D x B labels by inversion of the cumulative distribution: a batch needs no more random numbers than
        its images.
        """
        points = torch.stack(
            [
                torch.rand(self._draws, generator=self._generator, dtype=torch.float64, device="cpu")
                for _ in range(len(chance))
            ]
        ).to(chance)
        edges = chance.cumsum(1)
        return torch.searchsorted(edges, points * edges[:, -1:], right=True).clamp(max=chance.shape[1] - 1).T


def calibrated_units(context: ScoringContext) -> list[str]:
    """Units that have quantisers, sorted by name, so that the order of layers does not reach the
    arithmetic.
    """
    calibration = context.calibration
    return sorted(
        layer.name
        for layer in context.layers
        if layer.name in calibration.weights or layer.name in calibration.products
    )


def parameters_of(context: ScoringContext, units: Iterable[str]) -> dict[str, nn.Parameter]:
    """The weights of those units that have one."""
    return {
        unit: context.module.get_submodule(unit).get_parameter("weight")
        for unit in units
        if unit in context.calibration.weights
    }


def logits_of(module: nn.Module, inputs: Inputs, *, any_shape: bool = False) -> Tensor:
    """N x K, or N x ... in `any_shape`, with a graph. Raises ModelError where the model gives something
    else.
    """
    with torch.enable_grad():
        logits = module(inputs)
    if not isinstance(logits, Tensor) or (logits.ndim != 2 and not any_shape):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"The model gives {found} for {len(inputs)} images; gradients are taken of N x K logits. Use "
            "an objective without gradients."
        )
    return logits


@contextmanager
def only_these(module: nn.Module, weights: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Of all parameters, only `weights` need gradients."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    try:
        module.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


@contextmanager
def recorded(
    module: nn.Module, units: Iterable[str], at: Literal["input", "output"]
) -> Iterator[dict[str, list[Call]]]:
    """The calls of each unit in the forward pass that is made inside, with nodes at their input or output.

    A unit without a weight has its nodes at what it quantises in either case: it has no module of its own.
    Layers read a copy and give away a copy of what is kept, so that functions that write in place do not
    reach it.

    Raises: ModelError: A unit was not called.
    """
    units = list(units)
    calls: dict[str, list[Call]] = {unit: [] for unit in units}
    wrapped = wrap_weightless(module, weightless_names(module, units))
    handles: list[RemovableHandle] = []
    try:
        for unit in units:
            if unit in wrapped:
                handles.append(
                    wrapped[unit].register_forward_pre_hook(
                        partial(_keep_operands, calls[unit], len(wrapped[unit].inputs()))
                    )
                )
            elif at == "input":
                handles.append(
                    module.get_submodule(unit).register_forward_pre_hook(
                        partial(_keep_operands, calls[unit], 1)
                    )
                )
            else:
                handles.append(module.get_submodule(unit).register_forward_pre_hook(_copy_input))
                handles.append(
                    module.get_submodule(unit).register_forward_hook(
                        partial(_keep_output, calls[unit]), with_kwargs=True
                    )
                )
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        unwrap_weightless(module, wrapped)
    for unit, found in calls.items():
        if not found:
            raise ModelError(
                f"Unit {unit!r} was never called in a forward pass. Leave it out, or give images that "
                "reach it."
            )


def _keep_operands(calls: list[Call], count: int, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    with torch.enable_grad():
        nodes = tuple(_node(x).clone() for x in args[:count])
    held = tuple(x.detach() for x in nodes)
    calls.append(Call(nodes, lambda state: operand_shifts(state, held), reads=True))
    return (*nodes, *args[count:])


def _copy_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    with torch.enable_grad():
        return (args[0].clone(), *args[1:])


def _keep_output(
    calls: list[Call], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> Tensor:
    node = _node(output)
    held, run = node.detach(), UnitRun(module, (args[0].detach(), *args[1:]), kwargs)
    calls.append(Call((node,), lambda state: (run.output(state) - held,)))
    with torch.enable_grad():
        return node.clone()


def _node(x: Tensor) -> Tensor:
    """`x` as part of a graph; a leaf where it is in none."""
    return x if x.requires_grad else x.detach().requires_grad_()


def mean_squares(logits: Tensor, tensors: Sequence[Tensor], cotangents: Tensor) -> list[Tensor | None]:
    """The squared gradient of cotangent times logits at each tensor, its mean over D draws; None where the
    logits do not depend on it.

    Args:
        logits: B x K.
        tensors: In the graph of the logits.
        cotangents: D x B x K; one backward pass each.
    """
    squares: list[Tensor | None] = [None] * len(tensors)
    for i, cotangent in enumerate(cotangents):
        grads = torch.autograd.grad(
            logits, tensors, cotangent, retain_graph=i + 1 < len(cotangents), allow_unused=True
        )
        for at, grad in enumerate(grads):
            if grad is not None:
                square = grad.square_().div_(len(cotangents))
                held = squares[at]
                squares[at] = square if held is None else held.add_(square)
    return squares


def nodes_of(calls: Mapping[str, list[Call]]) -> list[Tensor]:
    """All nodes, in the order of `by_call`."""
    return [node for found in calls.values() for call in found for node in call.nodes]


def by_call(calls: Mapping[str, list[Call]], squares: Iterable[Tensor | None]) -> dict[str, list[Scored]]:
    """Each call with what belongs to its nodes."""
    left = iter(squares)
    return {
        unit: [Scored(call, tuple(next(left) for _ in call.nodes)) for call in found]
        for unit, found in calls.items()
    }


def walk(
    context: ScoringContext, images: SampleSet, batch_size: int, cotangents: Cotangents
) -> Iterator[dict[str, list[Scored]]]:
    """For each batch the calls of every calibrated unit, nodes at outputs, with squared gradients there.

    Memory: inputs, outputs and gradients of all units for one batch.
    """
    units = calibrated_units(context)
    steps = -(-len(images) // batch_size)
    for done, (inputs, _) in enumerate(images.batches(batch_size)):
        with only_these(context.module), recorded(context.module, units, "output") as calls:
            logits = logits_of(context.module, inputs)
        yield by_call(calls, mean_squares(logits, nodes_of(calls), cotangents.of(logits)))
        context.on_step(done + 1, steps)
