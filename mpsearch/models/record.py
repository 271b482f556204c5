"""Recording a `Trace`: one run of torch.export, of which nothing but plain data is kept."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from mpsearch.errors import ModelError
from mpsearch.foreign import first_line
from mpsearch.models.trace import PRODUCTS, Constant, Frame, Op, Trace
from mpsearch.models.tree import canonical_names, prepared
from mpsearch.problem import ConvAttributes
from mpsearch.pytrees import Batch, Inputs, leaves_of, shapes

_HANDED_ON = {"alias", "clone", "contiguous", "detach", "lift_fresh_copy"}
_DROPOUTS = {"dropout", "dropout_", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}


def trace_model(module: nn.Module, example: Inputs) -> Trace:
    """Record one forward pass in eval mode, without gradients, on the first sample of `example`.

    Attention runs unfused where the module has timm's `fused_attn` switch, so that its two activation
    products are visible. The module's modes and switches are as found afterwards.

    Args:
        module: Model of one batch in, one tensor out.
        example: N x C x H x W float, N x ... int64 where the model reads token numbers, or several tensors.
    Raises: ModelError: The model does not take the example, does not return one tensor, or cannot be
        exported.
    """
    _require_example(example)
    image = example[:1].detach()
    with prepared(module), torch.no_grad():
        try_forward(module, image)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the exporter's advice to those who keep the program
                exported = torch.export.export(module, (image,), strict=False)
        except Exception as error:  # torch.export has no common base class for its errors
            raise ModelError(
                f"The model cannot be traced by torch.export: {first_line(error)} Remove data-dependent "
                "control flow from its forward."
            ) from error
        return _Recorder(module, exported).record([tuple(leaf.shape) for leaf in leaves_of(image)])


def _require_example(example: Any) -> None:
    """Raises ModelError where an example is no batch that a model could read."""
    one = isinstance(example, Tensor) and (example.is_floating_point() or example.dtype == torch.int64)
    if len(example) < 1 if isinstance(example, Batch) else not one or example.ndim < 2 or len(example) < 1:
        found = (
            f"{example.dtype} of shape {tuple(example.shape)}"
            if isinstance(example, Tensor)
            else type(example).__name__
        )
        raise ModelError(f"The example input is {found}. Give float images, N x C x H x W, or int64 tokens.")


def try_forward(module: nn.Module, image: Inputs) -> Tensor:
    """The output of a forward pass. Raises ModelError where the model takes no such input, or does not return
    one tensor.
    """
    try:
        output = module(image)
    except Exception as error:  # a model may raise anything on an input that it does not take
        raise ModelError(
            f"The model does not take an input of shape {shapes(image)}: {first_line(error)} Give "
            "inputs of the size it was built for."
        ) from error
    if not isinstance(output, Tensor):
        raise ModelError(
            f"The model returns a {type(output).__name__}, not one tensor. Wrap it in a module that "
            "returns the logits alone."
        )
    return output


class _Recorder:
    """Turns an exported graph into a `Trace`."""

    def __init__(self, module: nn.Module, exported: torch.export.ExportedProgram) -> None:
        self._exported = exported
        self._module_names, self._tensor_names = canonical_names(module)
        self._cell: dict[fx.Node, int] = {}  # nodes that share memory share a cell
        self._value: dict[int, int] = {}  # cell -> number of the tensor it holds now
        self._results: dict[fx.Node, list[int]] = {}  # caller of a subgraph -> cells of its results
        self._ops: list[Op] = []
        self._constants: list[Constant] = []
        self._count = 0

    def record(self, input_shapes: Sequence[tuple[int, ...]]) -> Trace:
        """The whole graph."""
        specs = {spec.arg.name: spec for spec in self._exported.graph_signature.input_specs}
        sources, output = list[int](), -1
        for node in self._exported.graph.nodes:
            if node.op == "placeholder":
                number = self._new(node)
                if specs[node.name].kind is InputKind.USER_INPUT:
                    sources.append(number)
                else:
                    target = specs[node.name].target or ""
                    self._constants.append(
                        Constant(number, self._tensor_names.get(target), tuple(node.meta["val"].shape))
                    )
            elif node.op == "output":
                output = self._numbers(node)[0]
            else:
                self._call(node)
        return Trace(tuple(self._ops), tuple(self._constants), tuple(sources), output, tuple(input_shapes))

    def _new(self, node: fx.Node, cell: int | None = None) -> int:
        number = self._count
        self._count += 1
        self._cell[node] = number if cell is None else cell
        self._value[self._cell[node]] = number
        return number

    def _numbers(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self._value[self._cell[n]] for n in node.all_input_nodes if n in self._cell)

    def _call(self, node: fx.Node) -> None:
        if node.op == "get_attr":  # a subgraph; met again as an argument of its caller
            return
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            self._inline(node)
        elif (
            node.all_input_nodes and node.all_input_nodes[0] in self._results
        ):  # picks one result of a subgraph
            self._cell[node] = self._results[node.all_input_nodes[0]][int(str(node.args[1]))]
        elif node.meta.get("val") is not None:  # assertions on shapes and types have none
            self._operate(node)

    def _inline(self, node: fx.Node) -> None:
        """Record a subgraph that only runs under another autocast or gradient mode."""
        name = getattr(node.target, "__name__", "")
        subgraphs = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
        if not name.startswith("wrap_with_") or len(subgraphs) != 1 or node.graph.owning_module is None:
            where = self._stack(node)[-1].path or "the model"
            raise ModelError(
                f"The forward of {where} branches or loops on data ({name}). Remove this from its forward."
            )
        given = iter(node.args[node.args.index(subgraphs[0]) + 1 :])
        body = node.graph.owning_module.get_submodule(str(subgraphs[0].target))
        for inner in body.graph.nodes:  # type: ignore[union-attr]
            if inner.op == "placeholder":
                self._cell[inner] = self._cell[next(given)]  # type: ignore[index]
            elif inner.op == "output":
                self._results[node] = [self._cell[n] for n in inner.all_input_nodes]
            else:
                self._call(inner)

    def _operate(self, node: fx.Node) -> None:
        kind, arguments, sources, value = (
            _kind(node),
            _arguments(node),
            node.all_input_nodes,
            node.meta["val"],
        )
        if _is_handed_on(kind, arguments, node):
            self._hand_on(node, copied=kind == "clone")
            return
        inputs = self._numbers(node)
        operands = self._operands(kind, arguments)
        conv, pad = _conv(arguments) if kind == "conv2d" else (None, (0, 0))
        number = self._new(node, self._cell[sources[0]] if sources and _writes_in_place(node) else None)
        shape = tuple(int(d) for d in value.shape) if isinstance(value, Tensor) else ()
        equation = arguments.get("equation") if kind == "einsum" else None
        self._ops.append(Op(number, kind, self._stack(node), inputs, shape, operands, conv, pad, equation))

    def _hand_on(self, node: fx.Node, copied: bool) -> None:
        """Give the node the tensor that it read: the same memory, or, for a copy, a cell of its own."""
        held = self._cell[node.all_input_nodes[0]]
        self._cell[node] = -1 - len(self._cell) if copied else held
        self._value[self._cell[node]] = self._value[held]

    def _operands(self, kind: str, arguments: dict[str, Any]) -> tuple[int, ...]:
        found: list[int] = []
        for name in PRODUCTS.get(kind, ()):
            value = arguments.get(name, ())  # an overload for packed sequences names its input otherwise
            found.extend(
                self._value[self._cell[n]] for n in (value if isinstance(value, Sequence) else [value])
            )
        return tuple(found)

    def _stack(self, node: fx.Node) -> tuple[Frame, ...]:
        stack = node.meta.get("nn_module_stack") or {"": ("", None)}
        return tuple(Frame(self._module_names.get(path, path), key) for key, (path, _) in stack.items())


def _kind(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return (
        str(schema.name).rpartition("::")[2]
        if schema is not None
        else str(getattr(node.target, "__name__", node.target))
    )


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    names = [a.name for a in schema.arguments]
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    return {**bound, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _is_handed_on(kind: str, arguments: dict[str, Any], node: fx.Node) -> bool:
    if kind in _DROPOUTS:
        return arguments.get("train") is False
    if kind in ("to", "_to_copy"):
        source, value = node.all_input_nodes[0].meta.get("val"), node.meta["val"]
        return isinstance(source, Tensor) and (source.dtype, source.device) == (value.dtype, value.device)
    return kind in _HANDED_ON


def _writes_in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(
        schema
        and schema.arguments
        and schema.arguments[0].alias_info
        and schema.arguments[0].alias_info.is_write
    )


def _conv(arguments: dict[str, Any]) -> tuple[ConvAttributes, tuple[int, int]]:
    """Attributes of a conv2d, and what `padding="same"` adds to its input where that is not the same on both
    sides.
    """
    stride, dilation, padding = _pair(arguments["stride"]), _pair(arguments["dilation"]), arguments["padding"]
    extra = (0, 0)
    if isinstance(padding, str):
        kernel = arguments["weight"].meta["val"].shape[2:]
        total = (
            (0, 0) if padding == "valid" else (dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1))
        )
        if total[0] % 2 or total[1] % 2:
            padding, extra = (0, 0), total
        else:
            padding = (total[0] // 2, total[1] // 2)
    return ConvAttributes(stride, _pair(padding), dilation, int(arguments["groups"])), extra


def _pair(value: Any) -> tuple[int, int]:
    values = [value] * 2 if isinstance(value, int) else list(value)
    return int(values[0]), int(values[-1])
