"""Layers that compute their weight from parameters alone: the weight that they compute is put in the place of
the one that they hold.

Weight-standardised convolutions do so in their forward, weight and spectral norms in a parametrisation or a
hook. What is quantised must be the weight that runs, and it is the same at every call.

References: Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization,
    arXiv:1903.10520.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from mpsearch.models.trace import PRODUCTS, Op, Trace
from mpsearch.models.tree import holders, is_own_weight

Layer = nn.Conv2d | nn.Linear


def is_bakeable(trace: Trace, op: Op, module: nn.Module) -> bool:
    """Whether an operation is the one product of a layer with a weight that it computes from its own
    parameters alone.
    """
    if op.kind not in ("conv2d", "linear") or not op.path:
        return False
    layer, weight = module.get_submodule(op.path), trace.constant.get(op.operands[1])
    if not isinstance(layer, Layer) or len(holders(module, layer)) != 1 or op.operands[1] in trace.dynamic:
        return False
    if weight is not None and is_own_weight(module, op.path, weight.name):
        return False
    behind = list(trace.constants_behind(op.operands[1]))
    inside = bool(behind) and all(c.name is None or c.name.startswith(f"{op.path}.") for c in behind)
    return (
        inside
        and trace.shape(op.operands[1]) == tuple(layer.weight.shape)
        and _is_alone(trace, op)
        and _is_held(layer)
    )


def _is_alone(trace: Trace, op: Op) -> bool:
    """Whether every call of the layer multiplies its input once, by a weight that is computed from the same
    parameters.
    """
    calls = [
        [o for o in ops if o.kind in PRODUCTS and not trace.dynamic.isdisjoint(o.operands)]
        for ops in trace.calls[op.path].values()
    ]
    if any(len(products) != 1 for products in calls):
        return False
    behind = {
        frozenset(c.name for c in trace.constants_behind(products[0].operands[1])) for products in calls
    }
    return len(behind) == 1


def _is_held(layer: Layer) -> bool:
    """Whether the weight is a parameter, or made by something that can be taken off."""
    if parametrize.is_parametrized(layer):
        return list(layer.parametrizations) == ["weight"]  # type: ignore[arg-type]
    return layer._parameters.get("weight") is not None or bool(_norm_hooks(layer))


def _norm_hooks(layer: Layer) -> list[WeightNorm | SpectralNorm]:
    hooks = layer._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm) and hook.name == "weight"]


@torch.no_grad()
def bake(layer: Layer) -> None:
    """Give a layer, in place, the weight that it computes as its own parameter; from then on it multiplies by
    that parameter as it stands.
    """
    weight = computed_weight(layer)
    needed = any(parameter.requires_grad for parameter in layer.parameters())
    if parametrize.is_parametrized(
        layer
    ):  # torch's own way off changes the class, and with it every copy of the layer
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer.parametrizations
    for hook in _norm_hooks(layer):
        (remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm)(layer, "weight")
    ramp = torch.linspace(-1, 2, weight.numel(), device=weight.device).reshape(
        weight.shape
    )  # not a weight that any norm gives: computing it anew would change it
    layer.register_parameter("weight", nn.Parameter(ramp, requires_grad=False))
    if not torch.equal(computed_weight(layer), ramp):
        layer.__class__ = _baked(type(layer))  # type: ignore[assignment]
    layer.register_parameter("weight", nn.Parameter(weight, requires_grad=needed))


def computed_weight(layer: Layer) -> Tensor:
    """What a layer multiplies its input by; a copy."""
    with _Weights() as seen:
        layer(_input(layer))
    weight: Tensor = seen.weights[-1].detach().clone()
    return weight


def _input(layer: Layer) -> Tensor:
    if isinstance(layer, nn.Linear):
        return torch.zeros(1, layer.in_features, device=_place(layer))
    size = [
        2 * dilation * kernel + 1 for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)
    ]
    return torch.zeros(1, layer.in_channels, *size, device=_place(layer))


def _place(layer: Layer) -> torch.device:
    """Where it computes; its weight may be made by a hook."""
    return next(layer.parameters()).device


class _Weights(TorchFunctionMode):
    """Keeps the weights that convolutions and linear maps are called with, and puts another in their place
    where there is one.
    """

    def __init__(self, instead: Tensor | None = None) -> None:
        super().__init__()
        self.weights: list[Tensor] = []
        self._instead = instead

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in ("conv2d", "linear"):
            return func(*args, **kwargs)
        self.weights.append(args[1] if len(args) > 1 else kwargs["weight"])
        if self._instead is None:
            return func(*args, **kwargs)
        if len(args) > 1:
            return func(args[0], self._instead, *args[2:], **kwargs)
        return func(*args, **{**kwargs, "weight": self._instead})


class _Baked(nn.Module):
    """What a layer's class is mixed with when its forward would compute the weight anew from the one that it
    computed.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward, padding and all, with the parameter in the place of what it computes."""
        with _Weights(self.weight):  # type: ignore[arg-type]
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (type(self).__mro__[2],), self.__getstate__()  # type: ignore[no-untyped-call]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _baked(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _CLASSES:
        _CLASSES[cls] = type(
            cls.__name__, (_Baked, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__}
        )
    return _CLASSES[cls]


def _blank(cls: type[nn.Module]) -> nn.Module:
    """An instance without members, for copy and pickle."""
    made = _baked(cls)
    return made.__new__(made)
