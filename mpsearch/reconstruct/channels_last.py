"""Memory layout with channels last, in which convolutions are fast, where a model takes it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpsearch.pytrees import Inputs, leaves_of, like


def convolving_fast(module: nn.Module, image: Inputs) -> bool:
    """Lay out the weights of convolutions with their channels last, in place, where the model takes an image
    laid out so; whether it does.

    One that does not, such as a model that flattens its features with `view`, stays as it is, and so does one
    with batch norms that were not folded: torch 2.15's backward pass through RepVGG's blocks of them ends the
    process on a CPU when the channels are last.
    """
    if any(isinstance(m, nn.BatchNorm2d) for m in module.modules()):
        return False
    try:
        module(like(image, map(channels_last, leaves_of(image))))
    except RuntimeError:
        return False
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)
    return True


def channels_last(x: Tensor) -> Tensor:
    """Pictures with their channels last in memory; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
