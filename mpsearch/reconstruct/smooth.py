"""Smoothing: outlier channels in front of linear layers are moved into their weights, in float and without
changing the function.

What is folded is a per-channel scale and, for SQ-b, a shift that centres each channel, so that a symmetric
grid wastes none of its range: with X the output of a normalisation that only linear layers read, x_hat = (X -
b) / s, W' = W diag(s), c' = c + W b.

References: Xiao et al., SmoothQuant, ICML 2023, arXiv:2211.10438, eq. 4; the shift is after Tai and Wu,
MPTQ-ViT, arXiv:2401.14895 (SQ-b), whose formula was not seen: here b is the middle of the channel's range.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from mpsearch.errors import DataError, ModelError, OptionError
from mpsearch.pytrees import Inputs
from mpsearch.reconstruct.folds import Fold, find_folds

LEAST = 1e-5
"""Smallest reach of a channel, and of a weight column, that a scale is computed from: as a share of the
greatest.
"""


@torch.no_grad()
def smooth(
    module: nn.Module,
    batches: Iterable[Inputs],
    *,
    alpha: float = 0.5,
    bias: bool = True,
    new_parameters: bool = True,
) -> nn.Module:
    """A copy of a float model that computes the same with channels of even reach in front of its linear
    layers.

    Args:
        module: Float model in eval mode; left as found.
        batches: Normalised inputs, B x C x H x W each, for the ranges of the channels.
        alpha: Share of a channel's reach that moves into the weights: s = max|X - b|^alpha / max|W|^(1 -
            alpha), the weight's maximum taken over all layers that read the channel.
        bias: SQ-b, which centres the channels; False is SmoothQuant. A layer without a bias gets one.
        new_parameters: Whether parameters may be added; else channels in front of a layer without a bias are
            not centred, and a normalisation without both its parameters stays as it is.

    Raises:
        OptionError: alpha is not between 0 and 1.
        DataError: No images.
        ModelError: The model has no normalisation that can be folded, or cannot be traced.
    """
    if not 0 <= alpha <= 1:
        raise OptionError(
            f"alpha is {alpha}; it must be from 0 (only the weights count) to 1 (only the activations count)."
        )
    feed = iter(batches)
    first = next(feed, None)
    if first is None:
        raise DataError("Smoothing got no images. Give at least one batch.")
    smoothed = copy.deepcopy(module)
    folds = find_folds(smoothed, first)
    if not new_parameters:
        folds = tuple(fold for fold in folds if all(p is not None for p in _affine(smoothed, fold)))
    if not folds:
        raise ModelError(
            "The model has no LayerNorm or per-channel affine whose output linear layers alone read, so "
            "there is nothing to smooth. Leave it out."
        )
    ranges = _channel_ranges(smoothed, [fold.norm for fold in folds], chain([first], feed))
    for fold in folds:
        biases = (smoothed.get_submodule(name)._parameters["bias"] for name in fold.linears)
        centred = bias and (new_parameters or all(b is not None for b in biases))
        _apply(smoothed, fold, *ranges[fold.norm], alpha, centred)
    return smoothed


def _channel_ranges(
    module: nn.Module, norms: Sequence[str], batches: Iterable[Inputs]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Least and greatest value, [C] each, of every channel that each normalisation gives."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> None:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            low, high = output.flatten(0, -2).aminmax(dim=0)
            seen = found.get(name)
            found[name] = (
                (low, high) if seen is None else (torch.minimum(seen[0], low), torch.maximum(seen[1], high))
            )

        handles.append(module.get_submodule(name).register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name in norms:
            watch(name)
        for batch in batches:
            module(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _affine(module: nn.Module, fold: Fold) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Scale and shift of a normalisation."""
    norm = module.get_submodule(fold.norm)
    names = ("weight", "bias") if isinstance(norm, nn.LayerNorm) else ("alpha", "beta")
    return norm._parameters[names[0]], norm._parameters[names[1]]


def _apply(module: nn.Module, fold: Fold, low: Tensor, high: Tensor, alpha: float, bias: bool) -> None:
    """Fold scale and shift into one normalisation and its readers; float64, so that the function stays the
    same to rounding.
    """
    linears = [module.get_submodule(name) for name in fold.linears]
    low, high = low.double(), high.double()
    shift = (low + high) / 2 if bias else torch.zeros_like(low)
    reach = _floored(torch.maximum(high - shift, shift - low))
    columns = _floored(
        torch.stack([linear.get_parameter("weight").double().abs().amax(0) for linear in linears]).amax(0)
    )
    scale = reach**alpha / columns ** (1 - alpha)
    _rescale(module.get_submodule(fold.norm), scale, shift)
    for linear in linears:
        weight = linear.get_parameter("weight")
        if bias:
            held = linear._parameters["bias"]
            moved = weight.double() @ shift + (0 if held is None else held.double())
            linear.register_parameter("bias", nn.Parameter(moved.to(weight.dtype)))
        weight.copy_(weight.double() * scale)


def _floored(reach: Tensor) -> Tensor:
    """No less than `LEAST` of the greatest; 1 where all are zero."""
    most = reach.amax()
    return torch.where(most > 0, reach.clamp(min=LEAST * most), 1.0)


def _rescale(norm: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Give (X - shift) / scale where the normalisation gave X."""
    gain, offset = ("weight", "bias") if isinstance(norm, nn.LayerNorm) else ("alpha", "beta")
    held = norm._parameters[gain], norm._parameters[offset]
    gains = torch.ones_like(scale) if held[0] is None else held[0].double()
    offsets = torch.zeros_like(scale) if held[1] is None else held[1].double()
    like = next((p for p in held if p is not None), None)
    dtype = torch.float32 if like is None else like.dtype
    for name, value, old in (
        (gain, gains / scale.view_as(gains), held[0]),
        (offset, (offsets - shift.view_as(offsets)) / scale.view_as(offsets), held[1]),
    ):
        norm.register_parameter(
            name, nn.Parameter(value.to(dtype), requires_grad=old is None or old.requires_grad)
        )
