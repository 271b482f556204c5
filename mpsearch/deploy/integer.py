"""Integer-exact execution on the CPU: what a kernel with int32 accumulators computes, as the reference for
any that claims to.

A unit reads x as codes q, forms v = q - zero_point, sums v * w over its codes w of the weight, and gives sum
* (scale_x * scale_w) + bias in float32. The sum is exact. Against the fake-quantised unit, which adds float
products of K terms, the result differs by at most `rounding_bound` = (K + 4) 2^-24 (sum of |x_hat w_hat|) + 4
* 2^-24 |bias| for each output.

Sums are formed in float64, which holds every integer below 2^53, and checked to fit int32 (int64 behind an
input of two regions, whose codes are multiples of its fine step by up to 2^m). Logarithmic inputs and
products of two activations have no integer form here: they stay fake-quantised, and so do layers whose weight
alone is quantised; `float_units` names all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpsearch.errors import MpsearchError
from mpsearch.quant import AffineParams, QuantizedTensor, UnitState, install, quantize
from mpsearch.quant.regions import TwoRegionParams

_INT32, _EXACT = 2**31 - 1, 2**53
_UNIT_ROUNDOFF = 2.0**-24

Uniform = AffineParams | TwoRegionParams


class IntegerLayer(nn.Module):
    """A convolution or linear layer in integers.

    Args:
        inner: The float layer; its forward, with whatever padding it has, is used on codes.
        weight: Codes and scales.
        params: Quantiser of the input.
        bias: What is added in place of the layer's own; None for that.
    """

    def __init__(
        self, inner: nn.Module, weight: QuantizedTensor, params: Uniform, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.params, self.limit = params, _INT32 if isinstance(params, AffineParams) else _EXACT
        held = inner._parameters["bias"] if bias is None else bias
        self.bias = None if held is None else held.detach().clone()
        self.inner = copy.deepcopy(inner).double()
        self.inner._parameters["bias"] = None
        self.inner._parameters["weight"] = nn.Parameter(weight.codes.double(), requires_grad=False)
        step = params.scale if isinstance(params, AffineParams) else params.step
        self.scale = (step * weight.params.scale).expand(len(weight.codes)).clone()

    def accumulate(self, x: Tensor) -> Tensor:
        """The sums, int32 (int64 behind two regions), in the shape of the output. Raises MpsearchError where
        one does not fit.
        """
        total = self.inner(codes(x, self.params).double())
        largest = float(total.abs().max()) if total.numel() else 0.0
        if largest > self.limit:
            raise MpsearchError(
                f"A sum of {largest:.0f} does not fit an accumulator of {self.limit}. Use fewer bits for "
                "this layer, or run it fake-quantised."
            )
        return total.to(torch.int32 if self.limit == _INT32 else torch.int64)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """The layer on x, float32."""
        shape = [-1, 1, 1] if isinstance(self.inner, nn.Conv2d) else [-1]
        scaled = (self.accumulate(x).double() * self.scale.double().view(shape)).float()
        return scaled if self.bias is None else scaled + self.bias.view(shape)

    @torch.no_grad()
    def rounding_bound(self, x: Tensor) -> Tensor:
        """Greatest difference from the fake-quantised layer on x, in the shape of the output."""
        absolute = copy.deepcopy(self.inner)
        absolute.get_parameter("weight").abs_()
        shape = [-1, 1, 1] if isinstance(self.inner, nn.Conv2d) else [-1]
        total = absolute(codes(x, self.params).double().abs()) * self.scale.double().view(shape)
        terms = self.inner.get_parameter("weight")[0].numel()
        beside = 0.0 if self.bias is None else self.bias.double().abs().view(shape)
        bound: Tensor = (terms + 4) * _UNIT_ROUNDOFF * total + 4 * _UNIT_ROUNDOFF * (total + beside)
        return bound


def codes(x: Tensor, params: Uniform) -> Tensor:
    """X on its grid in whole steps (of the fine step, where there are two), zero at 0, int32."""
    if isinstance(params, AffineParams):
        return quantize(x, params).to(torch.int32) - params.zero_point
    return torch.round(params.fake_quantize(x).double() / params.step.double()).to(torch.int32)


def integer_module(module: nn.Module, states: Mapping[str, UnitState]) -> nn.Module:
    """A copy of a float module that runs every unit it can in integers, the rest fake-quantised.

    Args:
        module: Float, batch norms folded.
        states: Codes and quantisers of its units; `open_packed` gives both.
    """
    ready = {
        unit: s
        for unit, s in states.items()
        if s.weight is not None and isinstance(s.activation, AffineParams | TwoRegionParams)
    }
    copied = install(
        module, {unit: s for unit, s in states.items() if unit not in ready and not s.candidate.is_float}
    )
    for unit, state in ready.items():
        parent, _, child = unit.rpartition(".")
        assert state.weight is not None and isinstance(state.activation, AffineParams | TwoRegionParams)
        setattr(
            copied.get_submodule(parent),
            child,
            IntegerLayer(copied.get_submodule(unit), state.weight, state.activation, state.bias),
        )
    return copied.eval()


def float_units(states: Mapping[str, UnitState]) -> list[str]:
    """Quantised units that `integer_module` leaves fake-quantised: products, and layers with float or
    logarithmic inputs.
    """
    return [
        u
        for u, s in states.items()
        if not s.candidate.is_float
        and (s.weight is None or not isinstance(s.activation, AffineParams | TwoRegionParams))
    ]
