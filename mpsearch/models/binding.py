"""A model bound to its form: called with one batch, it gives one tensor.

A model of one tensor in and one tensor out stays as it is. Any other becomes an object of a subclass of its
own class, whose `forward` takes a `Batch` (or the one tensor that the model reads), calls the model as its
author meant it, and joins its float outputs; names of modules and weights stay what they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from mpsearch.models.form import Form
from mpsearch.models.tree import copied
from mpsearch.pytrees import Inputs, flatten

_FORM = "_mpsearch_form"


_APART = "_mpsearch_apart"


@dataclass(frozen=True)
class _Call:
    """Arguments of the model's own forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Bound(nn.Module):
    """First base of a model that was bound to a form; the other is the model's own class."""

    def forward(self, inputs: Inputs) -> Any:
        """N x ..., or, inside `apart`, the tensors one by one."""
        if isinstance(inputs, _Call):
            return super().forward(*inputs.args, **inputs.kwargs)
        form: Form = self.__dict__[_FORM]
        alone = self.__dict__.get(_APART, False)
        args, kwargs = form.arguments(inputs if alone else form.placed(inputs))
        leaves, _ = flatten(super().forward(*args, **kwargs))
        return tuple(leaves) if alone else form.flat(leaves)


class _AsGiven(nn.Module):
    """First base of a bound model that is called as its author meant it all the same."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What its own forward gives, with whatever units are quantised."""
        return super().forward(_Call(args, kwargs))


def as_given(module: nn.Module) -> nn.Module:
    """The model, which is changed in place, as its author calls it; itself where that is so already."""
    if isinstance(module, Bound) and not isinstance(module, _AsGiven):
        kind = type(module)
        module.__class__ = type(kind.__name__, (_AsGiven, kind), {"__module__": kind.__module__})
    return module


def bound(module: nn.Module, form: Form) -> nn.Module:
    """A copy of a model that is called with a batch and gives one tensor; the model itself where it is one
    that is anyway, or was bound before.
    """
    if form.plain or isinstance(module, Bound):
        return module
    found = copied(module)
    if isinstance(found, fx.GraphModule):
        found = _without_graph(found)
    kind = type(found)
    found.__class__ = type(kind.__name__, (Bound, kind), {"__module__": kind.__module__})
    found.__dict__[_FORM] = form
    return found


def form_of(module: nn.Module) -> Form | None:
    """The form that a model was bound to; None for one of one tensor in, one tensor out."""
    return module.__dict__.get(_FORM)


def rebound(module: nn.Module, like: nn.Module) -> nn.Module:
    """A model that is called as another is, of which it is a copy that was built anew."""
    form = form_of(like)
    return module if form is None else bound(module, form)


@contextlib.contextmanager
def apart(module: nn.Module) -> Iterator[None]:
    """While it lasts, a bound model reads and gives what a file of it does: a batch with the samples on the
    model's own axis, and a tuple of all its tensors.
    """
    module.__dict__[_APART] = True
    try:
        yield
    finally:
        del module.__dict__[_APART]


def _without_graph(module: fx.GraphModule) -> nn.Module:
    """The same modules and forward without torch.fx's own way of copying, which would lose what is added."""
    kind = type(type(module).__name__, (nn.Module,), {"forward": type(module).forward})
    plain: nn.Module = nn.Module.__new__(kind)
    plain.__dict__.update({key: value for key, value in module.__dict__.items() if key != "_graph"})
    return plain
