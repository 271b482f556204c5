"""`ImageSet`: images as the model sees them, one byte a value, and their labels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from mpsearch.data.samples import HeldSamples, Indices, at
from mpsearch.data.sources.truths import are_boxes
from mpsearch.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageSet(HeldSamples):
    """N images after the model's resize and crop, before its normalisation.

    Kept as uint8, a quarter of the memory of what a model reads: `N * C * H * W` bytes, 150,528 for one 3 x
    224 x 224 image (150.5 MB for a thousand). `inputs` normalises what is asked for and no more.

    Args:
        images: `N x C x H x W` uint8.
        labels: `N` int64 classes, `N x H x W` uint8 or int64 masks, or `N x M x 6` float32 boxes (see
            `sources.truths`); None where the source has none.
        mean: `C` means of the model's normalisation, of values in 0 to 1.
        std: `C` standard deviations.
        name: Where the images came from, for messages and records.

    Examples:
        >>> images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        >>> samples = ImageSet(images, torch.tensor([0, 1, 0, 1]), mean=(0.5,) * 3, std=(0.25,) * 3)
        >>> samples.inputs()[0, 0, 0, 0]  # (0 - 0.5) / 0.25
        tensor(-2.)
    """

    images: Tensor
    labels: Tensor | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = "images"
    held: ClassVar[str] = "images"
    one: ClassVar[str] = "image"
    unlabelled: ClassVar[str] = (
        "Put the images in class folders, or add a labels.csv with the header file,label."
    )

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                f"{self.name}: images are {self.images.dtype} of shape {tuple(self.images.shape)}; they "
                "must be uint8 N x C x H x W."
            )
        count, channels = self.images.shape[:2]
        if self.labels is not None and not self._fitting(self.labels):
            raise DataError(
                f"{self.name}: labels are {self.labels.dtype} of shape {tuple(self.labels.shape)}; they "
                f"must be int64 of shape ({count},), masks {(count, *self.images.shape[2:])} or boxes "
                f"({count}, M, 6)."
            )
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise DataError(
                    f"{self.name}: {what} {tuple(values)} has {len(values)} values for images of "
                    f"{channels} channels. Give one for each channel."
                )
        if min(self.std, default=1.0) <= 0:
            raise DataError(f"{self.name}: std {tuple(self.std)} is not positive in every channel.")

    def _fitting(self, labels: Tensor) -> bool:
        count = len(self.images)
        classes = labels.dtype == torch.int64 and labels.shape == (count,)
        pixels = (count, *self.images.shape[2:])
        masks = labels.dtype in (torch.uint8, torch.int64) and tuple(labels.shape) == pixels
        return classes or masks or (are_boxes(labels) and len(labels) == count)

    @property
    def form(self) -> tuple[object, ...]:
        """C, H, W and the normalisation."""
        return (tuple(self.images.shape[1:]), self.mean, self.std)

    def inputs(self, indices: Indices | None = None) -> Tensor:
        """`N x C x H x W` float32, `(x / 255 - mean) / std`, in the order of operations of timm's transform,
        so equal to the last bit.
        """
        chosen = self.images if indices is None else self.images[at(indices)]
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=chosen.device).view(1, -1, 1, 1)
            for v in (self.mean, self.std)
        )
        return chosen.to(torch.float32).div_(255).sub_(mean).div_(std)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over shape, pixels, labels, mean and std; the name does not count."""
        whole = self.labels is not None and self.labels.ndim > 1  # masks and boxes, too many for a text
        labels = None if self.labels is None else list(self.labels.shape) if whole else self.labels.tolist()
        head = json.dumps(
            [list(self.images.shape), labels, list(map(float, self.mean)), list(map(float, self.std))]
        )
        digest = hashlib.sha256(head.encode())
        digest.update(self.images.contiguous().numpy().data)
        if self.labels is not None and whole:
            digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()
