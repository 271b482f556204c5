"""Quantised functions of activations, such as the two products of attention, without a copy of any model's
forward.

A module that calls such functions becomes a subclass of its own class (as `torch.nn.utils.parametrize` does),
whose forward runs under a `TorchFunctionMode` (`interception`) that puts the quantised operands in the place
of the float ones. The module keeps its name, its children and its parameters; each quantised function is a
new child `<op><i>` (`operands`), so that its path is the name of its unit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from mpsearch.errors import ModelError, UnknownNameError
from mpsearch.quant.interception import Interception
from mpsearch.quant.operands import FUNCTIONS, ONE_OPERAND, UNIT, QuantOperand, QuantProduct

__all__ = ["QuantFunction", "QuantProduct", "product_names", "unwrap_products", "wrap_products"]

QuantFunction = QuantProduct | QuantOperand


def product_names(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of `names` that are functions of activations, `<module>.<op><i>`, and no module of the model."""
    modules = dict(module.named_modules())
    return [name for name in names if name not in modules and UNIT.fullmatch(name)]


def wrap_products(module: nn.Module, names: Iterable[str]) -> dict[str, QuantFunction]:
    """Make the named functions of a module quantisable, in place.

    Returns: The quantised functions by name, still computing in float.

    Raises:
        UnknownNameError: A name is not `<module>.<op><i>`.
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
    found = {name: _quantiser(module, name).train(owner.training) for name, owner in owners.items()}
    for name, owner in owners.items():
        if not isinstance(owner, _Multiplying):
            owner.__class__ = _multiplying(type(owner))
        owner.add_module(name.rpartition(".")[2], found[name])
    return found


def unwrap_products(module: nn.Module, names: Iterable[str]) -> None:
    """Undo `wrap_products` for the same names."""
    for name in names:
        owner, child = _owner(module, name), name.rpartition(".")[2]
        held = getattr(owner, child)
        for attention in held.unfused if isinstance(held, QuantOperand) else ():
            attention.fused_attn = True  # type: ignore[assignment]
        delattr(owner, child)
        if isinstance(owner, _Multiplying) and not owner.held_functions():
            owner.__class__ = type(owner).__mro__[2]


def _quantiser(module: nn.Module, name: str) -> QuantFunction:
    """The quantisers of a function. timm's attentions that hold one as a child, such as Swin's softmax, are
    told to call it.
    """
    path, _, called = name.rpartition(".")
    if not called.startswith(ONE_OPERAND):
        return QuantProduct()
    found, around = QuantOperand(), path.rpartition(".")[0]
    attention = module.get_submodule(around) if around else module
    if called.startswith("softmax") and path and getattr(attention, "fused_attn", False) is True:
        attention.fused_attn = False  # type: ignore[assignment]
        found.unfused.append(attention)
    return found


def _owner(module: nn.Module, name: str) -> nn.Module:
    match = UNIT.fullmatch(name)
    try:
        if match is not None:
            return module.get_submodule(match["path"] or "")
    except AttributeError:
        pass
    others = ", ".join(FUNCTIONS[1:])
    how = (
        f"A product is written <module>.matmul<i>, with a module of the model; other functions are {others}."
    )
    raise UnknownNameError("product", name, [], how)


class _Multiplying(nn.Module):
    """What a module's class is mixed with when it has quantised functions."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward with its functions quantised."""
        with Interception(self, self.held_functions()):
            return super().forward(*args, **kwargs)

    def held_functions(self) -> dict[str, QuantFunction]:
        """The quantised functions by name."""
        return {
            name: child
            for name, child in self.named_children()
            if UNIT.fullmatch(name) and isinstance(child, QuantFunction)
        }

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (type(self).__mro__[2],), self.__getstate__()  # type: ignore[no-untyped-call]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _multiplying(cls: type[nn.Module]) -> type[nn.Module]:
    """The one subclass of a class whose functions can be quantised."""
    if cls not in _CLASSES:
        _CLASSES[cls] = type(
            cls.__name__, (_Multiplying, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__}
        )
    return _CLASSES[cls]


def _blank(cls: type[nn.Module]) -> nn.Module:
    """An instance without members, for copy and pickle."""
    made = _multiplying(cls)
    return made.__new__(made)
