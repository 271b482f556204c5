"""Errors of single units seen along random directions of the output's curvature, which `sketch` squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpsearch.data import SampleSet
from mpsearch.models.reads import Products, Read, read_of
from mpsearch.objectives._base import ScoringContext
from mpsearch.objectives._grads import Call, calibrated_units, logits_of, only_these, recorded
from mpsearch.objectives._local import input_state, weight_kind, weight_state
from mpsearch.problem import Candidate
from mpsearch.quant.devices import device_of

MOST_GRADIENTS = 2**26
"""Numbers of the weight gradients of single images that are held at a time."""


@dataclass
class Met:
    """One product of a unit's weight in a pass: its input, and nodes of the graph that belong to it alone."""

    read: Read
    given: Tensor
    result: Tensor


class Taps(Products):
    """Puts a node before and behind every product of a unit's weight."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.met: dict[str, list[Met]] = {unit: [] for unit in weights}

    def meet(self, units: list[str], func: Any, given: dict[str, Any]) -> Tensor:
        """The product, a copy."""
        with torch.enable_grad():
            x = given["input"]
            node = (x if x.requires_grad else x.detach().requires_grad_()).clone()
            result: Tensor = func(**{**given, "input": node})
            for unit in units:
                self.met[unit].append(Met(read_of({**given, "input": node}), node, result))
            return result.clone()


@dataclass
class Sketches:
    """What each unit's error is along each direction, before squaring.

    Args:
        context: What is scored.
        weights: Unit -> kind of weight -> N x K: of the quantised weight (and bias) alone.
        inputs: Unit -> input bits -> N x K: of the quantised input alone.
        whole: Unit -> candidate -> N x K, of units whose weight and input could not be told apart.
        unreached: Units that the output does not depend on.
    """

    context: ScoringContext
    weights: dict[str, dict[Any, Tensor]] = field(default_factory=dict)
    inputs: dict[str, dict[int | None, Tensor]] = field(default_factory=dict)
    whole: dict[str, dict[Candidate, Tensor]] = field(default_factory=dict)
    unreached: set[str] = field(default_factory=set)

    def at(self, unit: str, candidate: Candidate) -> Tensor | None:
        """N x K of a unit at a candidate; None where it is float or was not calibrated."""
        if candidate.is_float or (unit not in self.weights and unit not in self.whole):
            return None
        if unit in self.whole:
            return self.whole[unit][candidate]
        return self.weights[unit][weight_kind(candidate)] + self.inputs[unit][candidate.a_bits]


def sketches(
    context: ScoringContext, images: SampleSet, probes: int, batch_size: int, memory_bytes: int
) -> Sketches:
    """One forward pass over the images and a backward pass for each of `probes` directions.

    Memory: N x K float32 for each unit and width; for a batch of images, whose size is lowered to keep
    `memory_bytes`, inputs and outputs of all units with their gradients; `MOST_GRADIENTS` numbers; the weight
    errors of all widths.
    """
    return _Walk(context, images, probes, batch_size, memory_bytes).run()


class _Walk:
    def __init__(
        self, context: ScoringContext, images: SampleSet, probes: int, batch_size: int, memory_bytes: int
    ) -> None:
        self._context, self._images, self._probes = context, images, probes
        self._generator = torch.Generator("cpu").manual_seed(context.seed)  # the same draws on every device
        self._found = Sketches(context)
        rows = dict(zip((layer.name for layer in context.layers), context.candidates, strict=True))
        self._choices = {
            unit: [c for c in rows[unit] if not c.is_float] for unit in calibrated_units(context)
        }
        weights = {u: self._weight(u) for u in self._choices if u in context.calibration.weights}
        met, numbers = self._try(weights)
        self._weights = {u: w for u, w in weights.items() if u in met}
        self._others = [u for u in self._choices if u not in self._weights]
        self._batch = max(1, min(batch_size, memory_bytes // max(16 * numbers, 1)))
        self._shifts = {u: self._errors(u) for u in self._weights}

    def run(self) -> Sketches:
        """All images."""
        self._prepare()
        done, batches = 0, -(-len(self._images) // self._batch)
        for number, (inputs, _) in enumerate(self._images.batches(self._batch), start=1):
            with (
                only_these(self._context.module),
                recorded(self._context.module, self._others, "output") as calls,
                Taps(self._weights) as taps,
            ):
                outputs = logits_of(self._context.module, inputs, any_shape=True)
            self._add(outputs, taps.met, calls, slice(done, done + len(inputs)))
            done += len(inputs)
            self._context.on_step(number, batches)
        return self._found

    def _weight(self, unit: str) -> Tensor:
        return self._context.module.get_submodule(unit).get_parameter("weight")

    def _try(self, weights: Mapping[str, Tensor]) -> tuple[set[str], int]:
        """Units that multiply their weight as it is, and numbers that one image holds there."""
        with torch.no_grad(), Taps(weights) as taps:
            self._context.module(self._images.inputs([0]))
        numbers = sum(m.given.numel() + m.result.numel() for calls in taps.met.values() for m in calls)
        return {unit for unit, calls in taps.met.items() if calls}, numbers

    def _errors(self, unit: str) -> tuple[dict[Any, int], Tensor, Tensor | None]:
        """Where each kind of weight stands; its errors, W x numel; those of the bias, W x C_out."""
        first = {weight_kind(c): c for c in reversed(self._choices[unit])}
        weight = self._context.calibration.weights[unit]
        bias = self._context.module.get_submodule(unit)._parameters.get("bias")
        shifts, biases = [], []
        for candidate in first.values():
            state = weight_state(self._context, unit, candidate)
            shifts.append(
                torch.zeros_like(weight) if state.weight is None else state.weight.dequantize() - weight
            )
            if bias is not None:
                biases.append(torch.zeros_like(bias) if state.bias is None else state.bias - bias)
        moved = torch.stack([b.detach() for b in biases]) if biases else None
        return {kind: at for at, kind in enumerate(first)}, torch.stack(shifts).flatten(1), moved

    def _prepare(self) -> None:
        zeros = partial(torch.zeros, len(self._images), self._probes, device=device_of(self._context.module))
        for unit, choices in self._choices.items():
            if unit in self._weights:
                self._found.weights[unit] = {weight_kind(c): zeros() for c in choices}
                self._found.inputs[unit] = {c.a_bits: zeros() for c in choices}
            else:
                self._found.whole[unit] = {c: zeros() for c in choices}

    def _add(
        self,
        outputs: Tensor,
        met: Mapping[str, Sequence[Met]],
        calls: Mapping[str, Sequence[Call]],
        at: slice,
    ) -> None:
        nodes = [node for found in met.values() for m in found for node in (m.given, m.result)]
        nodes += [node for found in calls.values() for call in found for node in call.nodes]
        directions = self._context.task.directions(outputs.detach(), self._probes, self._generator)
        for probe, direction in enumerate(directions):
            more = probe + 1 < self._probes
            grads = iter(torch.autograd.grad(outputs, nodes, direction, retain_graph=more, allow_unused=True))
            with torch.no_grad():
                for unit, found in met.items():
                    for m in found:
                        self._tapped(unit, m, next(grads), next(grads), at, probe)
                for unit, recorded_calls in calls.items():
                    for call in recorded_calls:
                        self._whole(unit, call, [next(grads) for _ in call.nodes], at, probe)

    def _tapped(
        self, unit: str, met: Met, before: Tensor | None, behind: Tensor | None, at: slice, probe: int
    ) -> None:
        if behind is None or before is None:
            self._found.unreached.add(unit)
            return
        images = at.stop - at.start
        kinds, shifts, biases = self._shifts[unit]
        along = _along(met.read, behind, shifts, images)
        if biases is not None:
            axis = 1 if met.read.kernel is not None else -1
            by_channel = behind.movedim(axis, -1)
            along += _by_image(by_channel, images, behind.shape[axis]).sum(1) @ biases.T
        for kind, number in kinds.items():
            self._found.weights[unit][kind][at, probe] += along[:, number]
        x = met.given.detach()
        for a_bits, candidate in {c.a_bits: c for c in self._choices[unit]}.items():
            quantizer = input_state(self._context, unit, candidate).activation
            if quantizer is not None:
                moved = (quantizer.fake_quantize(x) - x) * before
                self._found.inputs[unit][a_bits][at, probe] += _by_image(moved, images, 1).sum((1, 2))

    def _whole(self, unit: str, call: Call, grads: Sequence[Tensor | None], at: slice, probe: int) -> None:
        if all(grad is None for grad in grads):
            self._found.unreached.add(unit)
            return
        for candidate in self._choices[unit]:
            shifts = call.shifts(self._context.calibration.state(unit, candidate))
            for shift, grad in zip(shifts, grads, strict=False):
                if grad is not None:
                    moved = _by_image(shift * grad, at.stop - at.start, 1).sum((1, 2))
                    self._found.whole[unit][candidate][at, probe] += moved


def _along(read: Read, behind: Tensor, shifts: Tensor, images: int) -> Tensor:
    """B x W: the products of each image's weight gradient and the weight's errors."""
    if read.kernel is None:
        x, grad = (_by_image(t, images, t.shape[-1])[:, None].transpose(2, 3) for t in (read.x, behind))
    else:
        x, grad = read.windows(), behind.reshape(len(behind), read.groups, behind.shape[1] // read.groups, -1)
    step = max(1, MOST_GRADIENTS // shifts.shape[1])
    found = [
        (g @ w.transpose(2, 3)).flatten(1) @ shifts.T
        for g, w in zip(torch.split(grad, step), torch.split(x, step), strict=True)
    ]
    along = torch.cat(found)
    return (
        along
        if len(along) == images
        else torch.cat([along.sum(0, keepdim=True), along.new_zeros(images - 1, along.shape[1])])
    )


def _by_image(x: Tensor, images: int, last: int) -> Tensor:
    """B x T x `last`, the numbers of each image together.

    Where they cannot be told apart, all count as the first image's: the square of the sum over a batch is the
    sum of the squares in the mean over directions, which are drawn for each image by itself.
    """
    if x.ndim and len(x) % images == 0:
        return x.reshape(images, -1, last)
    return torch.cat([x.reshape(1, -1, last), x.new_zeros(images - 1, x.numel() // last, last)])
