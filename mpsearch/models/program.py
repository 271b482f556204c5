"""Programs of `torch.export` (`.pt2`) as modules: what multiplies a weight becomes a layer again, so that it
can be quantised.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from mpsearch.errors import ModelError
from mpsearch.foreign import first_line

_Layer = tuple[nn.Module, fx.Node]
"""A layer, and the node that it reads."""


def load_program(path: Path) -> nn.Module:
    """The module of a program, in eval mode; its convolutions, linear layers and batch norms have the names
    of their weights.

    Raises: ModelError: The file is missing, damaged or of another version of torch.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {path}. Give a program of torch.export.save.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
            module = program.module(check_guards=False)
    except Exception as error:  # its reader raises what zip, JSON and torch raise
        raise ModelError(
            f"{path} is no program of torch.export.save that this torch ({torch.__version__}) reads: "
            f"{first_line(error)} Export it again."
        ) from error
    for node in list(module.graph.nodes):
        make = _MAKERS.get(str(node.target)) if node.op == "call_function" else None
        if make is not None:
            _replace(module, node, make)
    module.graph.eliminate_dead_code()
    module.recompile()
    return plain(module, path.stem)


def _replace(module: fx.GraphModule, node: fx.Node, make: Callable[..., nn.Module | None]) -> None:
    """Put a layer in the place of a node whose weight is a parameter that nothing else reads."""
    arguments = _arguments(node)
    weight, given = arguments["weight"], arguments["input"]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or len(weight.users) > 1:
        return
    name = str(weight.target).rpartition(".")[0]
    held = module.get_submodule(name) if name else None
    tensors = {key: _tensor(module, value) for key, value in arguments.items()}
    if held is None or list(held.children()):
        return
    with torch.no_grad():
        layer = make(arguments, tensors)
    if layer is None:
        return
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer.eval())
    with module.graph.inserting_before(node):
        new = module.graph.call_module(name, (given,))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _conv(arguments: dict[str, Any], tensors: dict[str, Tensor | None]) -> nn.Module | None:
    weight = tensors["weight"]
    if weight is None or weight.ndim != 4:
        return None
    out, per_group, *kernel = weight.shape
    groups, padding = int(arguments["groups"]), arguments["padding"]
    layer = nn.Conv2d(
        per_group * groups,
        out,
        cast(Any, tuple(kernel)),
        _pair(arguments["stride"]),
        padding if isinstance(padding, str) else _pair(padding),
        _pair(arguments["dilation"]),
        groups,
        bias=tensors["bias"] is not None,
    )
    return _filled(layer, tensors, ("weight", "bias"))


def _linear(arguments: dict[str, Any], tensors: dict[str, Tensor | None]) -> nn.Module | None:
    weight = tensors["weight"]
    if weight is None or weight.ndim != 2:
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=tensors["bias"] is not None)
    return _filled(layer, tensors, ("weight", "bias"))


def _norm(arguments: dict[str, Any], tensors: dict[str, Tensor | None]) -> nn.Module | None:
    mean = tensors["running_mean"]
    if arguments.get("training") or mean is None or tensors["weight"] is None:
        return None
    node = arguments["input"].meta.get("val")
    kind = nn.BatchNorm2d if isinstance(node, Tensor) and node.ndim == 4 else nn.BatchNorm1d
    layer = kind(len(mean), eps=float(arguments["eps"]))
    return _filled(layer, tensors, ("weight", "bias", "running_mean", "running_var"))


_MAKERS: dict[str, Callable[..., nn.Module | None]] = {
    "aten.conv2d.default": _conv,
    "aten.conv2d.padding": _conv,
    "aten.linear.default": _linear,
    "aten.batch_norm.default": _norm,
}


def _filled(layer: nn.Module, tensors: dict[str, Tensor | None], names: tuple[str, ...]) -> nn.Module:
    for name in names:
        if (value := tensors[name]) is not None:
            getattr(layer, name).data = value.detach().clone()
    return layer


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = cast(Any, node.target)._schema
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    names = [a.name for a in schema.arguments]
    return {**bound, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _tensor(module: fx.GraphModule, value: Any) -> Tensor | None:
    """What a `get_attr` node stands for."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    found: Any = module
    for part in str(value.target).split("."):
        found = getattr(found, part)
    return found if isinstance(found, Tensor) else None


def _pair(value: Any) -> tuple[int, int]:
    values = [value] * 2 if isinstance(value, int) else list(value)
    return int(values[0]), int(values[-1])


def plain(module: fx.GraphModule, name: str) -> nn.Module:
    """A module of a class of its own, with the graph's forward: it is copied as any other."""
    kind = type(module)
    plain: nn.Module = nn.Module.__new__(type(name, (nn.Module,), {"forward": kind.forward}))
    kept = {key: value for key, value in module.__dict__.items() if key not in ("_graph", "train", "eval")}
    plain.__dict__.update(kept)
    for hooks in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):  # they ask for the graph
        plain.__dict__[hooks] = OrderedDict()
    return plain
