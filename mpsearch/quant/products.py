"""Quantised products of two activations, such as the two of attention, without a copy of any model's forward.

A module that multiplies activations becomes a subclass of its own class (as `torch.nn.utils.parametrize`
does), whose forward runs under a `TorchFunctionMode` that puts the quantised operands in the place of the
float ones. The module keeps its name, its children and its parameters; each product is a new child
`matmul<i>`, so that its path is the name of its unit.

What counts as a product, and in which order, is what `mpsearch.models` finds by tracing: matmul, mm, bmm,
addmm, baddbmm, linear, einsum of two operands, and scaled_dot_product_attention as two, called by the module
itself and not by a child, where both operands depend on more than parameters, buffers and literals. Tensors
that a caller computes from parameters alone and passes in count as activations here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from mpsearch.errors import ModelError, UnknownNameError
from mpsearch.quant.attention import attention
from mpsearch.quant.inputs import InputQuantizer
from mpsearch.quant.states import UnitState

_NAME = re.compile(r"(?:(?P<path>.+)\.)?matmul(?P<index>\d+)")
_ATTENTION = "scaled_dot_product_attention"
_OPERANDS: Mapping[str, tuple[tuple[int, tuple[str, ...]], tuple[int, tuple[str, ...]]]] = {
    "matmul": ((0, ("input", "self")), (1, ("other", "tensor2"))),
    "__matmul__": ((0, ("self",)), (1, ("other",))),
    "mm": ((0, ("input", "self")), (1, ("mat2",))),
    "bmm": ((0, ("input", "self")), (1, ("mat2",))),
    "addmm": ((1, ("mat1",)), (2, ("mat2",))),
    "baddbmm": ((1, ("batch1",)), (2, ("batch2",))),
    "linear": ((0, ("input",)), (1, ("weight",))),
}
"""Function -> position and names of the arguments that it multiplies."""


class QuantProduct(nn.Module):
    """The quantisers of the operands of one product.

    Attributes:
        left: Quantiser of the left operand: queries, probabilities.
        right: Quantiser of the right operand: keys, values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = InputQuantizer(), InputQuantizer()

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Both operands, quantised."""
        return self.left(left), self.right(right)

    def inputs(self) -> tuple[InputQuantizer, ...]:
        """The quantisers of what the product reads."""
        return self.left, self.right

    def set_state(self, state: UnitState) -> None:
        """Quantise as `state` says: `activation` is the left operand's quantiser, `second` the right
        one's.
        """
        self.left.params, self.right.params = state.activation, state.second


def product_names(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of `names` that are products of activations: `<module>.matmul<i>`, and no module of the model."""
    modules = dict(module.named_modules())
    return [name for name in names if name not in modules and _NAME.fullmatch(name)]


def wrap_products(module: nn.Module, names: Iterable[str]) -> dict[str, QuantProduct]:
    """Make the named products of a module quantisable, in place.

    Returns: The quantised products by name, still computing in float.

    Raises:
        UnknownNameError: A name is not `<module>.matmul<i>`.
        ModelError: The module's forward is replaced on the instance, or has a child of that name.
    """
    owners = {name: _owner(module, name) for name in names}
    for name, owner in owners.items():
        child = name.rpartition(".")[2]
        if "forward" in owner.__dict__ or hasattr(owner, child):
            held = "a forward of its own" if "forward" in owner.__dict__ else f"a member {child!r} already"
            raise ModelError(
                f"The product {name!r} cannot be quantised: its module has {held}. Rename or remove it."
            )
    products = {name: QuantProduct().train(owner.training) for name, owner in owners.items()}
    for name, owner in owners.items():
        if not isinstance(owner, _Multiplying):
            owner.__class__ = _multiplying(type(owner))
        owner.add_module(name.rpartition(".")[2], products[name])
    return products


def unwrap_products(module: nn.Module, names: Iterable[str]) -> None:
    """Undo `wrap_products` for the same names."""
    for name in names:
        owner = _owner(module, name)
        delattr(owner, name.rpartition(".")[2])
        if isinstance(owner, _Multiplying) and not owner.held_products():
            owner.__class__ = type(owner).__mro__[2]


def _owner(module: nn.Module, name: str) -> nn.Module:
    match = _NAME.fullmatch(name)
    try:
        if match is not None:
            return module.get_submodule(match["path"] or "")
    except AttributeError:
        pass
    raise UnknownNameError(
        "product", name, [], "A product is written <module>.matmul<i>, with a module of the model."
    )


class _Multiplying(nn.Module):
    """What a module's class is mixed with when it has quantised products."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward with its products quantised."""
        with _Products(self):
            return super().forward(*args, **kwargs)

    def held_products(self) -> dict[int, QuantProduct]:
        """The quantised products by their place in the forward."""
        held = ((_NAME.fullmatch(name), child) for name, child in self.named_children())
        return {
            int(match["index"]): child for match, child in held if match and isinstance(child, QuantProduct)
        }

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (type(self).__mro__[2],), self.__getstate__()  # type: ignore[no-untyped-call]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _multiplying(cls: type[nn.Module]) -> type[nn.Module]:
    """The one subclass of a class whose products can be quantised."""
    if cls not in _CLASSES:
        _CLASSES[cls] = type(
            cls.__name__, (_Multiplying, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__}
        )
    return _CLASSES[cls]


def _blank(cls: type[nn.Module]) -> nn.Module:
    """An instance without members, for copy and pickle."""
    made = _multiplying(cls)
    return made.__new__(made)


_RUNNING: ContextVar[_Products | None] = ContextVar("_RUNNING", default=None)
"""The innermost call of a module with quantised products; each coroutine of a walk through a network has its
own.
"""


class _Products(TorchFunctionMode):
    """Counts the products of one call of a module and quantises their operands. It is off while a child runs,
    which may hand over to another coroutine.
    """

    def __init__(self, module: _Multiplying) -> None:
        super().__init__()
        self._module, self._held = module, module.held_products()
        self._constants: dict[int, Tensor] = {id(t): t for t in (*module.parameters(), *module.buffers())}
        self._count = 0
        self._depth = 0  # of calls of children
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> _Products:
        for child in self._module.modules():
            if child is not self._module and not isinstance(child, QuantProduct | InputQuantizer):
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
        result = self._multiply(func, getattr(func, "__name__", ""), args, kwargs)
        self._remember(result, args, kwargs)
        return result

    def _multiply(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if name == "multi_head_attention_forward":
            raise ModelError(
                "The products inside nn.MultiheadAttention run in one call and cannot be quantised. "
                "Leave them float, or write the attention out."
            )
        if name == _ATTENTION:
            return self._attention(func, *args, **kwargs)
        if name == "__rmatmul__":
            return torch.matmul(*self._operands(args[1], args[0]))
        if name == "einsum":
            return self._einsum(func, *args, **kwargs)
        places = _OPERANDS.get(name)
        if places is None:
            return func(*args, **kwargs)
        held, named = list(args), dict(kwargs)
        where: list[tuple[Any, Any]] = [
            (held, at) if at < len(held) else (named, next(k for k in keys if k in named))
            for at, keys in places
        ]
        pair = self._operands(*(holder[key] for holder, key in where))
        for (holder, key), operand in zip(where, pair, strict=True):
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
        scores, mixes = (
            self._is_live(query) and self._is_live(key),
            (self._is_live(query) or self._is_live(key)) and self._is_live(value),
        )
        first = self._next() if scores else None
        second = self._next() if mixes else None
        if first is None and second is None:
            return func(query, key, value, *args, **kwargs)  # type: ignore[no-any-return]
        return attention(query, key, value, *args, **kwargs, first=first, second=second)

    def _operands(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        product = self._next() if self._is_live(left) and self._is_live(right) else None
        return (left, right) if product is None else product(left, right)

    def _next(self) -> QuantProduct | None:
        self._count += 1
        return self._held.get(self._count - 1)

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
