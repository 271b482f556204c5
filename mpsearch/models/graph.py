"""What can be quantised in a model: its units, the ties between them, and the blocks they are reconstructed
in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from mpsearch.errors import ModelError
from mpsearch.models.blocks import Block, find_blocks
from mpsearch.models.calls import observe_calls
from mpsearch.models.record import trace_model
from mpsearch.models.trace import PRODUCTS, Trace
from mpsearch.models.tree import holders
from mpsearch.models.units import Unit, find_ties, find_units
from mpsearch.models.weights import check_finite
from mpsearch.problem import Layer
from mpsearch.pytrees import Inputs


@dataclass(frozen=True)
class ModelGraph:
    """What can be quantised in a model.

    Args:
        layers: Units in order of their first execution, shapes at batch 1.
        blocks: In order of execution; each unit is in exactly one.
        unused: Convolution and linear modules whose weight one forward pass never reads.
        leftovers: Parameters and buffers that are multiplied in float because no unit holds them: 1-D and
            transposed convolutions, weights that a module recomputes before use, recurrent layers, functional
            calls on the weights of others, layers that get their input by keyword or see nothing of the
            model's input.
    """

    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    unused: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()


def analyze(module: nn.Module, example: Inputs, *, functions: bool = False) -> ModelGraph:
    """Find units, ties and blocks from one traced forward pass and the module tree.

    Args:
        module: Model whose batch norms are folded; left as found.
        example: N x C x H x W, float, or other inputs; the first sample is used.
        functions: Whether residual sums and what layer norms, softmax and GELU read are units too.
    Raises: ModelError: The model has no unit, holds NaN, does not take the example or two of it, cannot be
        exported, or two units share a weight.
    """
    check_finite(module)
    trace = trace_model(module, example)
    found = find_units(trace, module, functions=functions)
    calls = observe_calls(
        module,
        example[:1].detach(),
        _with_holders(unit.layer.name for unit in found if unit.layer.weight_shape),
    )
    units = tuple(
        unit for unit in found if not unit.layer.weight_shape or unit.layer.name in calls.one_tensor
    )
    weighted = [unit.layer.name for unit in units if unit.layer.weight_shape]
    if not weighted:
        raise ModelError(
            "The forward of the model calls no nn.Conv2d and no nn.Linear below its root, so there is "
            "nothing to quantise. Give a model that has some."
        )
    _refuse_shared(module, weighted)
    blocks = find_blocks(trace, module, [unit.layer.name for unit in units], calls)
    block_of = {unit: block.name for block in blocks for unit in block.units}
    tie_of = find_ties(trace, units)
    layers = tuple(
        replace(u.layer, block=block_of[u.layer.name], tie=tie_of.get(u.layer.name)) for u in units
    )
    leftovers = _leftovers(trace, units)
    return ModelGraph(layers, blocks, _unused(module, weighted, leftovers), leftovers)


def _with_holders(units: Iterable[str]) -> list[str]:
    """The units and every module, below the root, that holds one."""
    return list(
        dict.fromkeys(
            ".".join(parts[:i])
            for parts in (unit.split(".") for unit in units)
            for i in range(1, len(parts) + 1)
        )
    )


def _refuse_shared(module: nn.Module, names: Iterable[str]) -> None:
    """One weight must mean one unit: two units could be given different bits, and each would be counted in
    the file.
    """
    for name in names:
        layer = module.get_submodule(name)
        paths = {id(m): path for path, m in module.named_modules()}
        held = holders(module, layer)
        if len(held) > 1:
            where = ", ".join(f"{paths[id(m)]}.{child}".lstrip(".") for m, child in held)
            raise ModelError(
                f"Unit {name!r} is one module under {len(held)} names ({where}). Register it once, or "
                "give each place a copy (copy.deepcopy)."
            )
        owners = [paths[id(m)] for m, _ in holders(module, layer._parameters["weight"])]  # type: ignore[arg-type]
        if len(owners) > 1:
            raise ModelError(
                f"The modules {', '.join(map(repr, owners))} share one weight. Give each its own: "
                "b.weight = nn.Parameter(a.weight.detach().clone())."
            )


def _leftovers(trace: Trace, units: Sequence[Unit]) -> tuple[str, ...]:
    weighted = [unit for unit in units if unit.layer.weight_shape]
    held = {f"{unit.layer.name}.{kind}" for unit in weighted for kind in ("weight", "bias")}
    own = {op.id for unit in weighted for op in unit.ops}
    found: dict[str, None] = {}
    for op in trace.ops:
        if op.kind in PRODUCTS and op.id not in own:
            behind = [
                c
                for operand in op.operands
                if operand not in trace.dynamic
                for c in trace.constants_behind(operand)
            ]
            found.update({c.name: None for c in behind if c.name is not None and c.name not in held})
    return tuple(found)


def _unused(module: nn.Module, weighted: Sequence[str], leftovers: Sequence[str]) -> tuple[str, ...]:
    known = {*weighted, *(name.rpartition(".")[0] for name in leftovers)}
    return tuple(
        name
        for name, m in module.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and name not in known
    )
