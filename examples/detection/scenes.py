"""Scenes: scikit-learn's digits, stretched and placed on a noisy ground, with their boxes. A `SampleSet` of
its own, as any task may bring one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from mpsearch.data import digits_split
from mpsearch.errors import DataError

SIDE, MOST, NONE = 64, 4, -1


@dataclass(frozen=True, eq=False)
class SceneSet:
    """N scenes.

    Args:
        images: `N x 1 x 64 x 64` uint8.
        labels: `N x 4 x 5` int64: class, left, top, right, bottom in pixels of each digit; class -1 where
            there are fewer than four.
        name: Where they came from.
    """

    images: Tensor
    labels: Tensor
    name: str = "scenes"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        return self.images.nbytes + self.labels.nbytes

    @property
    def form(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def inputs(self, indices: Any = None) -> Tensor:
        """`N x 1 x 64 x 64` float32, -1 to 1."""
        return (self.images if indices is None else self.images[_index(indices)]).to(
            torch.float32
        ) / 127.5 - 1

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self), size):
            yield self.inputs(slice(start, start + size)), self.labels[start : start + size]

    def subset(self, indices: Any) -> SceneSet:
        return replace(self, images=self.images[_index(indices)], labels=self.labels[_index(indices)])

    def joined(self, others: Sequence[SceneSet]) -> SceneSet:
        sets = (self, *others)
        return (
            self
            if not others
            else replace(
                self, images=torch.cat([s.images for s in sets]), labels=torch.cat([s.labels for s in sets])
            )
        )

    def require_labels(self, classes: int | None = None) -> Tensor:
        if classes is not None:
            raise DataError(
                f"{self.name} has boxes, not one class for each scene. Use --objective output_mse or "
                "another that needs no labels."
            )
        return self.labels

    @cached_property
    def sample_hashes(self) -> tuple[str, ...]:
        return tuple(hashlib.sha256(image.contiguous().numpy().data).hexdigest() for image in self.images)

    @cached_property
    def content_hash(self) -> str:
        return hashlib.sha256("".join([*self.sample_hashes, str(self.labels.tolist())]).encode()).hexdigest()


def _index(indices: Any) -> Any:
    return indices if isinstance(indices, slice) else torch.as_tensor(indices, dtype=torch.long)


def scenes(count: int, part: str, seed: int) -> SceneSet:
    """Scenes of one to four digits of 12 to 26 pixels that do not overlap.

    Args:
        count: N.
        part: `train` or `test`: which digits; a test scene holds none that a training scene may hold.
        seed: Same seed, same scenes.
    """
    pixels, classes = load_digits(return_X_y=True)
    chosen = digits_split()[0 if part == "train" else 1]
    digits, classes = (
        torch.from_numpy(pixels[chosen]).float().reshape(-1, 1, 1, 8, 8) / 16,
        torch.from_numpy(classes[chosen]),
    )
    generator = torch.Generator().manual_seed(seed)
    images = torch.empty(count, 1, SIDE, SIDE, dtype=torch.uint8)
    labels = torch.full((count, MOST, 5), NONE, dtype=torch.int64)
    for i in range(count):
        ground = _between(0, 90, generator) + 12 * torch.randn(SIDE, SIDE, generator=generator)
        wanted, placed = _between(1, MOST, generator), 0
        for _ in range(20):
            box = _place(labels[i, :placed, 1:], generator)
            if box is None or placed == wanted:
                continue
            left, top, right, bottom = box
            which = _between(0, len(digits) - 1, generator)
            drawn = F.interpolate(
                digits[which], (bottom - top, right - left), mode="bilinear", align_corners=False
            )[0, 0]
            ground[top:bottom, left:right] += drawn * _between(90, 165, generator)
            labels[i, placed] = torch.tensor([int(classes[which]), *box])
            placed += 1
        images[i, 0] = ground.clamp(0, 255).to(torch.uint8)
    return SceneSet(images, labels, f"scenes[{part}]")


def _between(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=generator))


def _place(boxes: Tensor, generator: torch.Generator) -> tuple[int, int, int, int] | None:
    """A box that meets none of the others, or None."""
    width, height = _between(12, 26, generator), _between(12, 26, generator)
    left, top = _between(0, SIDE - width, generator), _between(0, SIDE - height, generator)
    right, bottom = left + width, top + height
    apart = (boxes[:, 0] >= right) | (boxes[:, 2] <= left) | (boxes[:, 1] >= bottom) | (boxes[:, 3] <= top)
    return (left, top, right, bottom) if bool(apart.all()) else None
