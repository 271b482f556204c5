"""Blocks: the parts of a model that are rebuilt together, found from what the forward pass does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mpsearch.models.calls import Calls
from mpsearch.models.trace import PRODUCTS, Op, Trace

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """Units that are reconstructed together.

    Args:
        name: A module that turns one tensor (beside tensors on which no unit has worked) into one, the module
            of a single unit, or the name of an activation product, which has no module.
        units: Names in order of execution.
        learns: Whether it can be reconstructed: what its module reads and gives has the images on axis 0.
            Else it is a block of one unit.
    """

    name: str
    units: tuple[str, ...]
    learns: bool = True


def find_blocks(trace: Trace, module: nn.Module, units: Sequence[str], calls: Calls) -> tuple[Block, ...]:
    """Put each unit into one block; blocks in order of their first unit.

    A block is the topmost module, below the root, whose own forward adds two tensors that both come from the
    input (a residual), else the topmost of a class that occurs twice or more with at least two units and no
    residual inside. Only modules that read one tensor and give one are taken; the search goes on inside the
    others. Those that repeat may read further tensors on which no unit has worked, such as an attention mask.
    What is left are blocks of one unit.

    Args:
        trace: Trace of `module`.
        module: The model.
        units: Names of all units in order of execution.
        calls: How the modules around the units are called. A block of several units is called with one tensor
            first, and gives one, both with the images on axis 0, and is given no tensor that it does not
            read.
    """
    inside = Counter(prefix for unit in units for prefix in _ancestors(unit))
    adding = {op.path for op in trace.ops if _is_residual(trace, op)}
    closed = {path for path in inside if _is_closed(trace, path, set(units))}
    residual = {path for path in adding & closed if _runs_alone(trace, path, calls)}
    worked = _worked(trace)
    chosen = residual | {
        path
        for path in _repeated(module, inside, residual) & closed
        if _runs_alone(trace, path, calls, worked)
    }
    members: dict[str, list[str]] = {}
    for unit in units:
        block = next((path for path in _ancestors(unit) if path in chosen), unit)
        members.setdefault(block, []).append(unit)
    return tuple(Block(name, tuple(names), name in calls.by_image) for name, names in members.items())


def _ancestors(name: str) -> list[str]:
    """Names of the modules around a name, outermost first, without the root."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _is_residual(trace: Trace, op: Op) -> bool:
    """A sum of two whole tensors of the data path, below the root. Position embeddings and biases are
    constants; a context vector is broadcast.
    """
    if op.kind not in ("add", "add_") or not op.path or len(op.inputs) != 2:
        return False
    return all(i in trace.dynamic and trace.shape(i) == op.shape for i in op.inputs)


def _repeated(module: nn.Module, inside: Counter[str], residual: set[str]) -> set[str]:
    """Modules of a class that occurs at least twice with two units or more, outside the residual blocks and
    without one inside.
    """
    around = {ancestor for path in residual for ancestor in _ancestors(path)}
    holding = {
        name: m
        for name, m in module.named_modules()
        if name and inside[name] >= 2 and not isinstance(m, _CONTAINERS)
    }
    classes = Counter(type(m) for m in holding.values())
    covered = {name for name in holding if name in residual or not residual.isdisjoint(_ancestors(name))}
    return {
        name
        for name, m in holding.items()
        if classes[type(m)] >= 2 and name not in covered and name not in around
    }


def _is_closed(trace: Trace, path: str, units: set[str]) -> bool:
    """Whether a module runs the units that it holds and no other, and nobody else runs them; two holders of
    one module are not closed.
    """
    runs = [
        (op.path.startswith(f"{path}."), any(frame.path == path for frame in op.stack))
        for op in trace.ops
        if op.path in units
    ]
    return all(held == run for held, run in runs)


def _runs_alone(trace: Trace, path: str, observed: Calls, worked: set[int] | None = None) -> bool:
    """Whether each call of a module reads one tensor from outside and gives one; given `worked`, it may read
    others that are not among these.
    """
    calls = trace.calls.get(path, {}).values() if path in observed.by_image else ()
    for ops in calls:
        own = {op.id for op in ops}
        entering = {i for op in ops for i in op.inputs if i not in own and not _is_held(trace, path, i)}
        leaving = {
            i for i in own if i == trace.output or any(user.id not in own for user in trace.users.get(i, ()))
        }
        read = entering if worked is None or len(entering) < 2 else entering & worked
        if not entering or len(read) > 1 or len(leaving) != 1 or observed.given[path] > len(entering):
            return False
    return bool(calls)


def _worked(trace: Trace) -> set[int]:
    """Tensors that a product on the data path has a part in: what quantising units changes. A mask is none of
    them.
    """
    found: set[int] = set()
    for op in trace.ops:
        if not found.isdisjoint(op.inputs) or (
            op.kind in PRODUCTS and any(i in trace.dynamic for i in op.operands)
        ):
            found.add(op.id)
    return found


def _is_held(trace: Trace, path: str, tensor: int) -> bool:
    constant = trace.constant.get(tensor)
    return constant is not None and (constant.name is None or constant.name.startswith(f"{path}."))
