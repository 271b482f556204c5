"""What runs around the forward of a module whose functions are quantised: it counts the calls of each kind of
function, and puts quantised operands in the place of the float ones.

What counts, and in which order, is what `mpsearch.models` finds by tracing. A product (matmul, mm, bmm,
addmm, baddbmm, linear, einsum of two operands, and scaled_dot_product_attention as two with a softmax
between) counts where both operands depend on more than parameters, buffers and literals; a sum where they do
and have one shape; softmax, gelu and layer_norm where their operand does. Only calls by the module itself
count, not those of a child. Tensors that a caller computes from parameters alone and passes in count as
activations here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from mpsearch.errors import ModelError
from mpsearch.quant.attention import attention
from mpsearch.quant.inputs import InputQuantizer
from mpsearch.quant.operands import QuantOperand, QuantProduct

Place = tuple[int, tuple[str, ...]]
_PRODUCTS: Mapping[str, tuple[Place, Place]] = {
    "matmul": ((0, ("input", "self")), (1, ("other", "tensor2"))),
    "__matmul__": ((0, ("self",)), (1, ("other",))),
    "mm": ((0, ("input", "self")), (1, ("mat2",))),
    "bmm": ((0, ("input", "self")), (1, ("mat2",))),
    "addmm": ((1, ("mat1",)), (2, ("mat2",))),
    "baddbmm": ((1, ("batch1",)), (2, ("batch2",))),
    "linear": ((0, ("input",)), (1, ("weight",))),
}
"""Function -> position and names of the arguments that it multiplies."""
_ADDENDS: tuple[Place, Place] = ((0, ("input", "self")), (1, ("other",)))
_SUMS = dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), _ADDENDS)
_IN_PLACE = ("add_", "__iadd__")
_SINGLE = ("softmax", "gelu", "layer_norm")
_HIDDEN = -1e4
"""A score at or below it is one that a mask hides; it is passed on as it is."""

_RUNNING: ContextVar[Interception | None] = ContextVar("_RUNNING", default=None)
"""The innermost call of a module with quantised functions; each coroutine of a walk through a network has its
own.
"""


class Interception(TorchFunctionMode):
    """One call of a module. It is off while a child runs, which may hand over to another coroutine.

    Args:
        module: Whose forward runs.
        held: Its quantised functions by name: `matmul0`, `softmax0`.
    """

    def __init__(self, module: nn.Module, held: Mapping[str, QuantProduct | QuantOperand]) -> None:
        super().__init__()
        self._module, self._held = module, held
        self._constants: dict[int, Tensor] = {id(t): t for t in (*module.parameters(), *module.buffers())}
        self._counts: Counter[str] = Counter()
        self._depth = 0  # of calls of children
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Interception:
        for child in self._module.modules():
            if child is not self._module and not isinstance(
                child, QuantProduct | QuantOperand | InputQuantizer
            ):
                self._handles.append(child.register_forward_pre_hook(self._go_in))
                self._handles.append(
                    child.register_forward_hook(self._come_out, with_kwargs=True, always_call=True)
                )
        self._outer = _RUNNING.set(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        if self._depth == 0:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
        _RUNNING.reset(self._outer)
        for handle in self._handles:
            handle.remove()

    def _go_in(self, _: nn.Module, __: Any) -> None:
        if _RUNNING.get() is self:
            self._depth += 1
            if self._depth == 1:
                super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _come_out(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if _RUNNING.get() is self:
            self._depth -= 1
            if self._depth == 0:
                self._remember(output, args, kwargs)
                super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = self._called(func, getattr(func, "__name__", ""), args, kwargs)
        self._remember(result, args, kwargs)
        return result

    def _called(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if name == "multi_head_attention_forward":
            raise ModelError(
                "The products inside nn.MultiheadAttention run in one call and cannot be quantised. "
                "Leave them float, or write the attention out."
            )
        if name == "scaled_dot_product_attention":
            return self._attention(func, *args, **kwargs)
        if name == "__rmatmul__":
            return torch.matmul(*self._operands(args[1], args[0]))
        if name == "einsum":
            return self._einsum(func, *args, **kwargs)
        if name in _PRODUCTS:
            return self._replaced(func, _PRODUCTS[name], self._operands, args, kwargs)
        if name in _SUMS:
            summed = partial(self._summed, name in _IN_PLACE)
            return self._replaced(func, _SUMS[name], summed, args, kwargs)
        if name in _SINGLE:
            place: Place = (0, ("input", "self"))
            return self._replaced(func, (place,), partial(self._single, name), args, kwargs)
        if name == "addcmul":
            places = ((0, ("input", "self")), (1, ("tensor1",)), (2, ("tensor2",)))
            return self._replaced(func, places, self._scaled, args, kwargs)
        return func(*args, **kwargs)

    def _replaced(
        self,
        func: Callable[..., Any],
        places: Sequence[Place],
        operands: Callable[..., tuple[Any, ...]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """The function with what `operands` makes of the arguments at `places`."""
        held, named = list(args), dict(kwargs)
        where: list[tuple[Any, Any]] = [
            (held, at) if at < len(held) else (named, next(k for k in keys if k in named))
            for at, keys in places
        ]
        found = operands(*(holder[key] for holder, key in where))
        for (holder, key), operand in zip(where, found, strict=True):
            holder[key] = operand
        return func(*held, **named)

    def _einsum(self, func: Callable[..., Any], equation: str, *operands: Any) -> Any:
        given = (
            list(operands[0]) if len(operands) == 1 and isinstance(operands[0], Sequence) else list(operands)
        )
        return func(equation, *(self._operands(*given) if len(given) == 2 else given))

    def _attention(
        self, func: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        live = self._is_live(query), self._is_live(key), self._is_live(value)
        first = self._next("matmul") if live[0] and live[1] else None
        scores = self._next("softmax") if live[0] or live[1] else None
        second = self._next("matmul") if (live[0] or live[1]) and live[2] else None
        if first is None and second is None and scores is None:
            return func(query, key, value, *args, **kwargs)  # type: ignore[no-any-return]
        return attention(query, key, value, *args, **kwargs, first=first, second=second, scores=scores)

    def _operands(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        product = self._next("matmul") if self._is_live(left) and self._is_live(right) else None
        return (left, right) if product is None else product(left, right)

    def _summed(self, in_place: bool, left: Any, right: Any) -> tuple[Any, Any]:
        both = isinstance(left, Tensor) and isinstance(right, Tensor) and left.shape == right.shape
        unit = self._next("add") if both and self._is_live(left) and self._is_live(right) else None
        if unit is None:
            return left, right
        quantized = unit(left, right)
        return (left.copy_(quantized[0]), quantized[1]) if in_place else quantized

    def _single(self, op: str, x: Tensor) -> tuple[Tensor]:
        unit = self._next(op) if self._is_live(x) else None
        if unit is None:
            return (x,)
        hidden = x <= _HIDDEN if op == "softmax" else None
        if hidden is None or not bool(hidden.any()):
            return (unit(x),)
        return (torch.where(hidden, x, unit(x.masked_fill(hidden, 0))),)

    def _scaled(self, *operands: Tensor) -> tuple[Tensor, ...]:
        live = [isinstance(x, Tensor) and self._is_live(x) for x in operands]
        unit = self._next("addcmul") if sum(live) == 1 else None
        return (
            operands
            if unit is None
            else tuple(unit(x) if is_live else x for x, is_live in zip(operands, live, strict=True))
        )

    def _next(self, op: str) -> Any:
        """The quantisers of the next call of a kind; None where it stays float."""
        self._counts[op] += 1
        return self._held.get(f"{op}{self._counts[op] - 1}")

    def _is_live(self, tensor: Tensor) -> bool:
        return id(tensor) not in self._constants and not isinstance(tensor, nn.Parameter)

    def _remember(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the results of functions of constants alone; a tensor that was written over with an activation
        is one no longer.
        """
        constant = not any(self._is_live(t) for t in _tensors((args, kwargs)))
        for tensor in _tensors(result):
            if constant:
                self._constants[id(tensor)] = tensor
            elif id(tensor) in self._constants and not isinstance(tensor, nn.Parameter):
                del self._constants[id(tensor)]


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested sequences and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)
