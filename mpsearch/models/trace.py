"""One forward pass as plain data: operations, who ran them, and which tensor each one read.

Everything that `models` knows of a network comes from this record and the module tree; no list of layer names
or model families exists. Tensors are numbered: in-place operations give their target a new number, and
operations that hand on their input unchanged (dropout in eval mode, contiguous) give none. An in-place write
through a view (`x[:, 0] += 1`) is not followed back to its base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from mpsearch.problem import ConvAttributes

PRODUCTS: dict[str, tuple[str, ...]] = {
    "conv1d": ("input", "weight"),
    "conv2d": ("input", "weight"),
    "conv3d": ("input", "weight"),
    "conv_transpose1d": ("input", "weight"),
    "conv_transpose2d": ("input", "weight"),
    "conv_transpose3d": ("input", "weight"),
    "convolution": ("input", "weight"),
    "linear": ("input", "weight"),
    "matmul": ("self", "other"),
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "einsum": ("tensors",),
    "scaled_dot_product_attention": ("query", "key", "value"),
    "lstm": ("input", "params"),
    "gru": ("input", "params"),
    "rnn_tanh": ("input", "params"),
    "rnn_relu": ("input", "params"),
}
"""Operation -> the arguments that it multiplies with each other."""


@dataclass(frozen=True)
class Frame:
    """One call of one module.

    Args:
        path: Its first name in `named_modules`; the root is "".
        call: Tells the calls of a module apart; equal for two operations of the same call.
    """

    path: str
    call: str


@dataclass(frozen=True)
class Constant:
    """A parameter or buffer (`name` as in `state_dict`, the first where it has several) or a tensor made
    while tracing (`name` None).
    """

    id: int
    name: str | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """One operation.

    Args:
        id: Number of the tensor (or list of tensors) that it gives.
        kind: Name in ATen without overload, such as `conv2d`.
        stack: Modules it ran in, outermost first.
        inputs: Numbers of the tensors it read.
        operands: For one of `PRODUCTS`, the tensors that it multiplies.
        shape: Shape of its output; empty where that is a list.
        conv: Attributes of a `conv2d`; `input_pad` is added to its input's height and width before.
        equation: Equation of an `einsum`.
    """

    id: int
    kind: str
    stack: tuple[Frame, ...]
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    operands: tuple[int, ...] = ()
    conv: ConvAttributes | None = None
    input_pad: tuple[int, int] = (0, 0)
    equation: str | None = None

    @property
    def path(self) -> str:
        """Name of the innermost module."""
        return self.stack[-1].path if self.stack else ""

    @property
    def call(self) -> str:
        """Call of the innermost module."""
        return self.stack[-1].call if self.stack else ""


@dataclass(frozen=True)
class Trace:
    """One forward pass at batch 1.

    Args:
        ops: In order of execution.
        constants: Parameters, buffers and literal tensors.
        inputs: Numbers of the tensors that the model reads.
        output: Number of its output.
        input_shapes: 1 x C x H x W, or 1 x ... of what else the model reads, for each of them.
    """

    ops: tuple[Op, ...]
    constants: tuple[Constant, ...]
    inputs: tuple[int, ...]
    output: int
    input_shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def producer(self) -> dict[int, Op]:
        """Tensor number -> operation that gave it."""
        return {op.id: op for op in self.ops}

    @cached_property
    def constant(self) -> dict[int, Constant]:
        """Tensor number -> constant."""
        return {c.id: c for c in self.constants}

    @cached_property
    def users(self) -> dict[int, tuple[Op, ...]]:
        """Tensor number -> operations that read it."""
        found: dict[int, list[Op]] = {}
        for op in self.ops:
            for i in dict.fromkeys(op.inputs):
                found.setdefault(i, []).append(op)
        return {i: tuple(ops) for i, ops in found.items()}

    @cached_property
    def calls(self) -> dict[str, dict[str, tuple[Op, ...]]]:
        """Module name -> its calls -> the operations in each."""
        found: dict[str, dict[str, list[Op]]] = {}
        for op in self.ops:
            for frame in op.stack:
                found.setdefault(frame.path, {}).setdefault(frame.call, []).append(op)
        return {path: {call: tuple(ops) for call, ops in calls.items()} for path, calls in found.items()}

    @cached_property
    def dynamic(self) -> frozenset[int]:
        """Numbers of the tensors that are computed from what the model reads."""
        found = set(self.inputs)
        for op in self.ops:
            if not found.isdisjoint(op.inputs):
                found.add(op.id)
        return frozenset(found)

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Shape of a tensor by its number."""
        if tensor in self.inputs:
            return self.input_shapes[self.inputs.index(tensor)]
        return self.constant[tensor].shape if tensor in self.constant else self.producer[tensor].shape

    def constants_behind(self, tensor: int) -> Iterator[Constant]:
        """The constants that a tensor is computed from, each once."""
        seen, todo = {tensor}, [tensor]
        while todo:
            tensor = todo.pop()
            if tensor in self.constant:
                yield self.constant[tensor]
            new = [
                i for i in (self.producer[tensor].inputs if tensor in self.producer else ()) if i not in seen
            ]
            seen.update(new)
            todo.extend(new)
