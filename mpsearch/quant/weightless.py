"""Units without a weight, of both kinds: products of two activations (`<module>.matmul<i>`), and tensors that
modules return (`<module>.output`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from mpsearch.quant.outputs import QuantOutput, output_names, unwrap_outputs, wrap_outputs
from mpsearch.quant.products import QuantProduct, product_names, unwrap_products, wrap_products

Weightless = QuantProduct | QuantOutput


def weightless_names(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of `names` that are units without a weight, in their order."""
    named = list(names)
    held = {*product_names(module, named), *output_names(module, named)}
    return [name for name in named if name in held]


def operands_of(unit: str) -> int:
    """How many tensors a unit without a weight quantises: two of a product, else one."""
    return 2 if unit.rpartition(".")[2].startswith("matmul") else 1


def wrap_weightless(module: nn.Module, names: Iterable[str]) -> dict[str, Weightless]:
    """Make the named units quantisable, in place; see `wrap_products` and `wrap_outputs`."""
    named = list(names)
    outputs = output_names(module, named)
    products = wrap_products(module, [name for name in named if name not in outputs])
    found: dict[str, Weightless] = {**products, **wrap_outputs(module, outputs)}
    return {name: found[name] for name in named}


def unwrap_weightless(module: nn.Module, wrapped: Mapping[str, Weightless]) -> None:
    """Undo `wrap_weightless`."""
    unwrap_outputs({name: unit for name, unit in wrapped.items() if isinstance(unit, QuantOutput)})
    unwrap_products(module, [name for name, unit in wrapped.items() if isinstance(unit, QuantProduct)])
