"""Units: convolution and linear modules with a weight of their own, the products of two activations, and
further functions of activations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from mpsearch.models.trace import Op, Trace
from mpsearch.models.tree import is_own_weight
from mpsearch.problem import Layer

Shape = tuple[int, ...]
_FUNCTIONS = {
    "softmax": "softmax",
    "_softmax": "softmax",
    "gelu": "gelu",
    "layer_norm": "layer_norm",
    "native_layer_norm": "layer_norm",
    "addcmul": "addcmul",
    "add": "add",
    "add_": "add",
    "scaled_dot_product_attention": "softmax",
}
"""Operation -> what a unit that is a call of it is named by."""
_MATMULS = {"matmul", "mm", "bmm", "addmm", "baddbmm", "linear", "einsum", "scaled_dot_product_attention"}


@dataclass(frozen=True)
class Unit:
    """A layer, its block and tie still open, and the operations that compute it, one or more for each
    call.
    """

    layer: Layer
    ops: tuple[Op, ...]


def find_units(trace: Trace, module: nn.Module, *, functions: bool = False) -> tuple[Unit, ...]:
    """All units in order of first execution.

    A convolution or linear layer below the root is a unit where its module is called and multiplies what
    comes from the input by its own `weight` parameter as it stands; a product is a unit,
    `<module>.matmul<i>`, where both operands are computed from the input.

    Args:
        trace: Trace of `module`.
        module: Model with its batch norms folded.
        functions: Whether further functions of activations are units too, as `mpsearch.quant.operands` names
            them: residual sums, softmax, GELU, layer norms.
    """
    found = [*_weight_units(trace, module), *_matmul_units(trace)]
    found += _function_units(trace) if functions else ()
    return tuple(sorted(found, key=lambda unit: unit.ops[0].id))


def find_ties(trace: Trace, units: Sequence[Unit]) -> dict[str, str]:
    """Unit -> the first of the units that read the same tensor, for units that are not alone in reading it.

    What counts is the tensor that enters the module: an explicit pad inside it (timm's Conv2dSame) comes
    after the quantiser.
    """
    order = {unit.layer.name: i for i, unit in enumerate(units)}
    head = {name: name for name in order}
    reader: dict[int, str] = {}
    for unit in units:
        for op in unit.ops if unit.layer.weight_shape else ():
            joined = {head[reader.setdefault(_entering(trace, op), unit.layer.name)], head[unit.layer.name]}
            first = min(joined, key=order.__getitem__)
            head = {name: first if h in joined else h for name, h in head.items()}
    sizes = Counter(head.values())
    return {name: h for name, h in head.items() if sizes[h] > 1}


def _entering(trace: Trace, op: Op) -> int:
    tensor = op.operands[0]
    while tensor in trace.producer and trace.producer[tensor].call == op.call:
        tensor = trace.producer[tensor].inputs[0]
    return tensor


def _weight_units(trace: Trace, module: nn.Module) -> Iterable[Unit]:
    uses: dict[str, list[Op]] = {}
    for op in trace.ops:
        if (
            op.kind not in ("conv2d", "linear")
            or not op.path
            or not isinstance(module.get_submodule(op.path), nn.Conv2d | nn.Linear)
        ):
            continue
        weight = trace.constant.get(op.operands[1])
        if (
            op.operands[0] in trace.dynamic
            and weight is not None
            and is_own_weight(module, op.path, weight.name)
        ):
            uses.setdefault(op.path, []).append(op)
    for name, ops in uses.items():
        weight_shape = trace.shape(ops[0].operands[1])
        layer = Layer(
            name,
            ops[0].kind,
            weight_shape,
            (_padded(trace.shape(ops[0].operands[0]), ops[0].input_pad),),
            ops[0].shape,
            sum(math.prod(op.shape) * math.prod(weight_shape[1:]) for op in ops),
            block="",
            bias=module.get_submodule(name)._parameters.get("bias") is not None,
            conv=ops[0].conv,
            calls=len(trace.calls[name]),
        )
        yield Unit(layer, tuple(ops))


def _padded(shape: Shape, pad: tuple[int, int]) -> Shape:
    return (*shape[:-2], shape[-2] + pad[0], shape[-1] + pad[1]) if pad != (0, 0) else shape


def _matmul_units(trace: Trace) -> Iterable[Unit]:
    units: dict[str, Unit] = {}
    count: Counter[tuple[str, str]] = Counter()
    for op in trace.ops:
        for left, right, out in _products(trace, op) if op.kind in _MATMULS else ():
            index = count[op.path, op.call]
            count[op.path, op.call] += 1
            name = f"{op.path}.matmul{index}".lstrip(".")
            macs = math.prod(out) * left[-1]
            if name in units:
                seen = units[name]
                units[name] = Unit(
                    replace(seen.layer, macs=seen.layer.macs + macs, calls=seen.layer.calls + 1),
                    (*seen.ops, op),
                )
            else:
                units[name] = Unit(Layer(name, "matmul", (), (left, right), out, macs, block=""), (op,))
    return units.values()


def _function_units(trace: Trace) -> Iterable[Unit]:
    units: dict[str, Unit] = {}
    count: Counter[tuple[str, str, str]] = Counter()
    for op in trace.ops:
        shapes = _read_shapes(trace, op) if op.kind in _FUNCTIONS else ()
        if not shapes:
            continue
        kind = _FUNCTIONS[op.kind]
        index = count[op.path, op.call, kind]
        count[op.path, op.call, kind] += 1
        name = f"{op.path}.{kind}{index}".lstrip(".")
        if name in units:
            seen = units[name]
            units[name] = Unit(replace(seen.layer, calls=seen.layer.calls + 1), (*seen.ops, op))
        else:
            units[name] = Unit(Layer(name, kind, (), shapes, op.shape, 0, block=""), (op,))
    return units.values()


def _read_shapes(trace: Trace, op: Op) -> tuple[Shape, ...]:
    """Shapes of the tensors that a function reads from the input: of the sum both or none, of any other
    one.
    """
    live = [i for i in op.inputs if i in trace.dynamic]
    if _FUNCTIONS[op.kind] == "add":
        operands = live * 2 if len(live) == 1 == len(op.inputs) else live  # x + x
        whole = len(operands) == 2 and all(trace.shape(i) == op.shape for i in operands)
        return tuple(trace.shape(i) for i in operands) if whole else ()
    if op.kind == "scaled_dot_product_attention":
        query, key, _ = op.operands
        scores = (*trace.shape(query)[:-1], trace.shape(key)[-2])
        return (scores,) if query in trace.dynamic or key in trace.dynamic else ()
    if op.kind == "addcmul" and len(live) != 1:
        return ()
    return (trace.shape(op.inputs[0] if op.kind != "addcmul" else live[0]),) if live else ()


def _products(trace: Trace, op: Op) -> Iterable[tuple[Shape, Shape, Shape]]:
    """(left, right, output) shapes, ... x M x K times ... x K x N, of the products in an operation whose
    operands both come from the input.
    """
    shapes = [trace.shape(i) for i in op.operands]
    live = [i in trace.dynamic for i in op.operands]
    if op.kind == "scaled_dot_product_attention":
        query, key, value = shapes
        scores = (*query[:-1], key[-2])
        if live[0] and live[1]:
            yield query, _transposed(key), scores
        if (live[0] or live[1]) and live[2]:
            yield scores, value, op.shape
    elif len(shapes) == 2 and all(live):
        left, right = shapes
        if op.kind == "einsum":
            yield _einsum_shapes(op.equation or "", left, right)
        else:
            yield left, _transposed(right) if op.kind == "linear" else right, op.shape


def _transposed(shape: Shape) -> Shape:
    return (*shape[:-2], shape[-1], shape[-2])


def _einsum_shapes(equation: str, left: Shape, right: Shape) -> tuple[Shape, Shape, Shape]:
    """The batched matrix product B x M x K times B x K x N that an einsum of two operands amounts to."""
    terms, _, result = equation.replace(" ", "").partition("->")
    a, b = (_letters(term, len(shape)) for term, shape in zip(terms.split(","), (left, right), strict=True))
    size = {**dict(zip(a, left, strict=True)), **dict(zip(b, right, strict=True))}
    if not result:  # implicit form: the letters that occur once
        out = {x for x in size if (a + b).count(x) == 1}
    else:
        out = (
            set(_letters(result, len(result) - 3 + len(set(size) & set(_DOTS))))
            if "..." in result
            else set(result)
        )
    batch = math.prod(size[x] for x in size if x in a and x in b and x in out)
    inner = math.prod(size[x] for x in size if x in a and x in b and x not in out)
    m, n = math.prod(size[x] for x in size if x not in b), math.prod(size[x] for x in size if x not in a)
    return (batch, m, inner), (batch, inner, n), (batch, m, n)


_DOTS = "0123456789"


def _letters(term: str, ndim: int) -> str:
    """The term with `...` written out; its last axis is `0`, the one before `1`, so that operands line up
    from the right.
    """
    return term.replace("...", _DOTS[: ndim - len(term) + 3][::-1]) if "..." in term else term
