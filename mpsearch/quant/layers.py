"""Quantised layers: a float layer whose weight lies on a grid and whose input is fake-quantised.

The layer keeps the module it wraps, so that subclasses with a forward of their own (timm's Conv2dSame) work
unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import UnknownNameError
from mpsearch.quant.devices import on_device
from mpsearch.quant.inputs import InputQuantizer
from mpsearch.quant.states import UnitState
from mpsearch.quant.weightless import Weightless, weightless_names, wrap_weightless


class QuantLayer(nn.Module):
    """Wraps one convolution or linear layer.

    Args:
        inner: The float layer; its weight is replaced by whatever `set_weight` is given.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.input = InputQuantizer()
        self._bias = inner._parameters.get("bias")
        self.register_forward_pre_hook(called)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The wrapped layer on the quantised input."""
        return self.inner(self.input(x), *args, **kwargs)  # type: ignore[no-any-return]

    def inputs(self) -> tuple[InputQuantizer, ...]:
        """The quantisers of what the layer reads."""
        return (self.input,)

    def _device(self) -> torch.device:
        weight: Tensor = self.inner.weight  # type: ignore[assignment]  # a soft one is no parameter
        return weight.device

    def set_weight(self, weight: Tensor) -> None:
        """Point the layer at another float32 weight, without a copy."""
        self.inner.weight.data = weight

    def set_bias(self, bias: Tensor | None) -> None:
        """Let the layer add another bias, without a copy; None for its own again."""
        if self._bias is not None:
            self.inner._parameters["bias"] = (
                self._bias if bias is None else nn.Parameter(bias, requires_grad=False)
            )

    def set_state(self, state: UnitState) -> None:
        """Compute as `state` says, where the layer is; a float state leaves the weight as it is."""
        state = on_device(state, self._device())
        self.input.params = state.activation
        self.set_bias(state.bias)
        if state.weight is not None:
            self.set_weight(state.weight.dequantize())

    def __getattr__(self, name: str) -> Any:
        """Attributes of the wrapped layer, for code that reads `layer.weight` or `layer.out_features`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def called(_: nn.Module, __: tuple[Any, ...]) -> None:
    """Nothing. A hook in it keeps `nn.TransformerEncoderLayer` off the fused path, which reads the weights of
    its layers and never calls them.
    """


class QuantConv2d(QuantLayer):
    """A quantised 2-D convolution. Weight axis 0 is the output channel."""


class QuantLinear(QuantLayer):
    """A quantised linear layer on (..., in_features). Weight axis 0 is the output feature."""


def wrap(module: nn.Module, names: Iterable[str]) -> dict[str, QuantLayer]:
    """Replace, in place, each named convolution or linear layer by its quantised form.

    Returns: The quantised layers by name, still computing in float.
    Raises: UnknownNameError: The module has no such layer.
    """
    layers: dict[str, QuantLayer] = {}
    for name in names:
        parent_name, _, child = name.rpartition(".")
        try:
            parent, inner = module.get_submodule(parent_name), module.get_submodule(name)
        except AttributeError:
            known = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            raise UnknownNameError("layer", name, known) from None
        if not isinstance(inner, nn.Conv2d | nn.Linear):
            raise UnknownNameError("convolution or linear layer", name, [])
        layer = QuantConv2d(inner) if isinstance(inner, nn.Conv2d) else QuantLinear(inner)
        layer.train(inner.training)
        setattr(parent, child, layer)
        layers[name] = layer
    return layers


def install(module: nn.Module, states: Mapping[str, UnitState]) -> nn.Module:
    """A copy of a float module that computes with the quantised weights and inputs of `states`."""
    quantized = copy.deepcopy(module)
    for name, layer in wrap_units(quantized, states).items():
        layer.set_state(states[name])
    return quantized.eval()


def wrap_units(module: nn.Module, names: Iterable[str]) -> dict[str, QuantLayer | Weightless]:
    """Replace, in place, each named unit by its quantised form: layers as `wrap`, units without a weight as
    `wrap_weightless`.
    """
    named = list(names)
    weightless = weightless_names(module, named)
    layers = wrap(module, [name for name in named if name not in weightless])
    found: dict[str, QuantLayer | Weightless] = {**wrap_weightless(module, weightless), **layers}
    return {name: found[name] for name in named}
