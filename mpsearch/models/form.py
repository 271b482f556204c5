"""How a model is called and what it gives, seen once; `binding` then hides it from all else."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.foreign import first_line
from mpsearch.models.tree import prepared
from mpsearch.pytrees import (
    LEAF,
    Batch,
    Inputs,
    Structure,
    flatten,
    joined,
    leaves_of,
    like,
    shape_text,
    shapes,
)

ONE_TENSOR = Structure("tuple", parts=(Structure("tuple", parts=(LEAF,)), Structure("dict")))
"""Positional and keyword arguments of a model that reads one tensor."""


@dataclass(frozen=True)
class Leaf:
    """One tensor that a model reads or gives.

    Args:
        name: Where it stands, such as `boxes.0`.
        shape: Of one sample, without the batch axis; of the whole where it has none.
        dtype: Such as `float32`.
        batched: Whether it has a row for each sample.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    batched: bool = True

    @property
    def counts(self) -> bool:
        """Whether its error is damage: floats with a row for each sample."""
        return self.batched and self.dtype.startswith(("float", "bfloat"))

    @property
    def numel(self) -> int:
        """Numbers of one sample."""
        return int(torch.Size(self.shape).numel())

    def __str__(self) -> str:
        return f"{self.name or 'tensor'} {shape_text(self.shape)} {self.dtype}"


@dataclass(frozen=True)
class Form:
    """What a model reads and gives.

    Args:
        inputs: Tensors that it reads.
        call: Positional and keyword arguments, built from these.
        outputs: Tensors that it gives, in order.
        result: What they are nested in; None where that is not known, as in a file of before it was kept.
        batch_axis: Axis of the samples in every one of them.
    """

    inputs: tuple[Leaf, ...]
    call: Structure
    outputs: tuple[Leaf, ...]
    result: Structure | None = None
    batch_axis: int = 0

    @property
    def plain(self) -> bool:
        """Whether the model is a function of one tensor that gives one."""
        one = self.call == ONE_TENSOR and self.result == LEAF and self.outputs[0].counts
        return one and not self.batch_axis

    @property
    def counted(self) -> tuple[Leaf, ...]:
        """The outputs whose error is damage."""
        return tuple(leaf for leaf in self.outputs if leaf.counts)

    def placed(self, inputs: Inputs) -> Inputs:
        """With the samples on the model's own axis."""
        return like(inputs, (leaf.movedim(0, self.batch_axis) for leaf in leaves_of(inputs)))

    def arguments(self, placed: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of a call."""
        found = self.call.build(leaves_of(placed))
        return tuple(found[0]), dict(found[1])

    def flat(self, leaves: Sequence[Tensor]) -> Tensor:
        """N x ... of the one output that counts, or N x K of all of them, from what a model gives."""
        counted = [
            leaf.movedim(self.batch_axis, 0)
            for leaf, about in zip(leaves, self.outputs, strict=True)
            if about.counts
        ]
        if len(counted) == 1:
            return counted[0]
        return torch.cat([leaf.reshape(len(leaf), -1).float() for leaf in counted], 1)

    def parts(self, outputs: Tensor) -> dict[str, Tensor]:
        """The outputs that count by name, N x ... each, from what `flat` gave."""
        if len(self.counted) == 1:
            return {self.counted[0].name: outputs}
        pieces = torch.split(outputs, [leaf.numel for leaf in self.counted], 1)
        return {
            leaf.name: piece.reshape(len(piece), *leaf.shape)
            for leaf, piece in zip(self.counted, pieces, strict=True)
        }

    def require(self, batch: Inputs) -> None:
        """Raises ModelError where a batch is not what this model reads."""
        found = leaves_of(batch)
        same = len(found) == len(self.inputs) and all(
            leaf.shape[1:] == about.shape for leaf, about in zip(found, self.inputs, strict=True)
        )
        if not same:
            wanted = ", ".join(map(str, self.inputs))
            raise ModelError(f"The model reads {wanted}; it was given {shapes(batch)}.")

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`; of what the model gives classes of objects are left out."""
        found: dict[str, Any] = {
            side: [[leaf.name, list(leaf.shape), leaf.dtype, leaf.batched] for leaf in leaves]
            for side, leaves in (("inputs", self.inputs), ("outputs", self.outputs))
        }
        if self.result is not None:
            found["result"] = self.result.without_classes().to_json()
        return found | {"call": self.call.to_json(), "batch_axis": self.batch_axis}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Form:
        """Inverse of `to_json`."""
        inputs, outputs = (
            tuple(Leaf(str(n), tuple(map(int, s)), str(d), bool(b)) for n, s, d, b in data[side])
            for side in ("inputs", "outputs")
        )
        result = Structure.from_json(data["result"]) if "result" in data else None
        return cls(inputs, Structure.from_json(data["call"]), outputs, result, int(data["batch_axis"]))


def observe_form(
    module: nn.Module, inputs: Inputs, call: Structure = ONE_TENSOR, batch_axis: int = 0
) -> Form:
    """See what a model gives for one sample and for two.

    Args:
        module: In eval mode during the passes, as found afterwards.
        inputs: N x ... samples.
        call: Positional and keyword arguments, built from their tensors.
        batch_axis: Where the model has the samples in what it reads and gives.
    Raises: ModelError: It does not take them, or gives no float tensor with a row for each sample, or one
        whose size depends on the data.
    """
    names = _input_names(module, call)
    reads = tuple(
        Leaf(name, tuple(leaf.shape[1:]), _type(leaf))
        for name, leaf in zip(names, leaves_of(inputs), strict=True)
    )
    form = Form(reads, call, (), None, batch_axis)
    one = inputs[:1]
    two = joined([one, inputs[1:2] if len(inputs) > 1 else one])
    (single, result), (double, again) = _leaves(module, one, form), _leaves(module, two, form)
    if result != again and len(single) != len(double):
        raise ModelError(
            f"The model gives {len(single)} tensors for one sample and {len(double)} for two: a result for "
            f"each sample, as after non-maximum suppression. Give the model without it. {_HEADS}"
        )
    gives = tuple(
        _output(name, a, b, batch_axis) for name, a, b in zip(result.names(), single, double, strict=True)
    )
    form = Form(reads, call, gives, result, batch_axis)
    if not form.counted:
        raise ModelError(
            f"The model gives {', '.join(map(str, gives)) or 'no tensor'}: no float tensor with a row for "
            f"each sample on axis {batch_axis}. Let it return its logits, or say --batch-axis."
        )
    return form


_HEADS = "Return the outputs of the heads, and decode them in the file of --metric."


def _leaves(module: nn.Module, inputs: Inputs, form: Form) -> tuple[list[Tensor], Structure]:
    args, kwargs = form.arguments(form.placed(inputs))
    with prepared(module), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            output = module(*args, **kwargs)
        except Exception as error:  # a model may raise anything on what it does not take
            raise ModelError(refused(form, inputs, error)) from error
    return flatten(output)


def refused(form: Form, inputs: Inputs, error: Exception) -> str:
    """What is told of a model that does not take what it is given."""
    several = "" if len(form.inputs) == 1 else f", {len(form.inputs)} tensors,"
    hint = (
        "Give inputs of the size it was built for (--input-size)."
        if len(form.inputs) == 1
        else "Give samples as its forward takes them: a tuple of arguments, or a dict of them by name."
    )
    if isinstance(error, TypeError) and "argument" in str(error):
        hint = (
            "Give every argument of its forward: samples ((a, b), label) or {'a': ..., 'b': ...}, from "
            "--data file.py:function."
        )
    return f"The model does not take an input of shape {shapes(inputs)}{several}: {first_line(error)} {hint}"


def _output(name: str, one: Tensor, two: Tensor, axis: int) -> Leaf:
    if one.ndim > axis and one.shape[axis] == 1 and two.shape[axis : axis + 1] == (2,):
        inside, other = list(one.shape), list(two.shape)
        del inside[axis], other[axis]
        if inside == other:
            return Leaf(name, tuple(inside), _type(one))
    if one.shape != two.shape:
        raise ModelError(
            f"The output {name or 'tensor'} has shape {shape_text(one.shape)} for one sample and "
            f"{shape_text(two.shape)} for two: not a row for each on axis {axis}. {_HEADS}"
        )
    return Leaf(name, tuple(one.shape), _type(one), batched=False)


def _input_names(module: nn.Module, call: Structure) -> tuple[str, ...]:
    """Those of the parameters of its forward."""
    args, kwargs = call.parts
    known = [
        name
        for name, about in inspect.signature(module.forward).parameters.items()
        if about.kind in (about.POSITIONAL_ONLY, about.POSITIONAL_OR_KEYWORD)
    ]
    found = list[str]()
    for place, part in enumerate(args.parts):
        found += part.names(known[place] if place < len(known) else f"input{place}")
    return (*found, *kwargs.names())


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def as_batch(tensors: Sequence[Tensor], call: Structure) -> Inputs:
    """Tensors as a model of this call reads them: one alone, or several."""
    return tensors[0] if len(tensors) == 1 and call == ONE_TENSOR else Batch(tensors)
