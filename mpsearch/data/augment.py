"""Augmentation of images in training: by name, with all its chance from a generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsearch.errors import UnknownNameError

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""From normalised inputs, B x C x H x W, to others of the same shape; all its chance must come from the
generator.
"""
SHIFT = 8
"""Images are shifted by up to an eighth of their side."""


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image, of B x C x H x W, mirrored with probability 1/2."""
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image, of B x C x H x W, moved by up to an eighth of its side; what comes in is the mean
    colour.
    """
    height, width = x.shape[2:]
    tall, wide = height // SHIFT, width // SHIFT
    rows = torch.randint(2 * tall + 1, (len(x),), generator=generator).tolist()
    columns = torch.randint(2 * wide + 1, (len(x),), generator=generator).tolist()
    padded = F.pad(x, (wide, wide, tall, tall))
    places = zip(padded, rows, columns, strict=True)
    return torch.stack([image[:, i : i + height, j : j + width] for image, i, j in places])


AUGMENTS: dict[str, Augment] = {"flip": flip, "shift": shift}


def augment_of(names: Sequence[str]) -> Augment | None:
    """The augmentations of these names, one after the other; None where there is no name.

    Raises: UnknownNameError: There is none of such a name.
    """
    for name in names:
        if name not in AUGMENTS:
            raise UnknownNameError("augmentation", name, AUGMENTS)
    if not names:
        return None

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        for name in names:
            x = AUGMENTS[name](x, generator)
        return x

    return apply
