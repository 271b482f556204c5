"""What is true of a picture beside one class: boxes and masks, which follow it to the size that the model
reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mpsearch.errors import DataError

COLUMNS = 6
"""Of a box: class, left, top, right, bottom, and 1 where it does not count (COCO's crowds, VOC's difficult
objects).
"""
NONE = -1
"""Class of the rows that fill up the boxes of a sample."""
SQUASHED = {"crop_pct": 1.0, "crop_mode": "squash"}
"""Data config of pictures with boxes or masks: the whole picture is scaled, and nothing is cut off."""


class Truth(Protocol):
    """What is true of one picture, in its own pixels."""

    def at(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """The same where the picture is scaled to a height and width."""


@dataclass(frozen=True)
class Boxes:
    """Boxes of one picture.

    Args:
        rows: M x 6, see `COLUMNS`, in pixels of the picture.
        most: Rows that a sample of this source is filled up to.
        size: Width and height that the boxes were drawn at; None where they are not said.
        where: Names the picture in messages.
    """

    rows: npt.NDArray[np.float32]
    most: int
    size: tuple[int, int] | None
    where: str

    def at(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """`most x 6` float32. Raises DataError where the picture has another size than was annotated."""
        if self.size is not None and self.size != image.size:
            raise DataError(
                f"{self.where} is {image.width} x {image.height} pixels, and its boxes were drawn at "
                f"{self.size[0]} x {self.size[1]}. Give the pictures that were annotated (a turn in their "
                "EXIF "
                "data is not made)."
            )
        scaled = self.rows.copy()
        scaled[:, 1:5:2] *= size[1] / image.width
        scaled[:, 2:5:2] *= size[0] / image.height
        return filled(torch.from_numpy(scaled), self.most)


@dataclass(frozen=True)
class Mask:
    """The class of each pixel of one picture.

    Args:
        pixels: Picture of the classes.
        where: Names it in messages.
    """

    pixels: Image.Image
    where: str

    def at(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """`H x W` uint8, the nearest pixel of each. Raises DataError where it is no picture of classes."""
        if self.pixels.mode not in ("1", "L", "P"):
            raise DataError(
                f"{self.where} is a picture of the mode {self.pixels.mode}; a mask has one class for each "
                "pixel "
                "(modes 1, L or P). Write the classes as numbers, 255 where a pixel does not count."
            )
        if self.pixels.size != image.size:
            raise DataError(
                f"{self.where} is {self.pixels.width} x {self.pixels.height} pixels and its picture "
                f"{image.width} x {image.height}. Give a mask of the picture's size."
            )
        if self.pixels.mode == "L" and set(np.unique(np.asarray(self.pixels))) == {0, 255}:
            raise DataError(
                f"{self.where} holds 0 and 255 alone, and 255 marks pixels that do not count. Write the "
                "classes "
                "as 0, 1, 2, ..."
            )
        scaled = self.pixels.resize((size[1], size[0]), Image.Resampling.NEAREST)
        return torch.from_numpy(np.asarray(scaled).astype(np.uint8))


def filled(rows: Tensor, most: int) -> Tensor:
    """Boxes M x 6 with rows of the class `NONE` behind them, most x 6."""
    empty = torch.zeros(most - len(rows), COLUMNS)
    empty[:, 0] = NONE
    return torch.cat([rows.to(torch.float32), empty])


def are_boxes(labels: Tensor | None) -> bool:
    """Whether labels are those of a detector, N x M x 6."""
    return (
        labels is not None and labels.ndim == 3 and labels.shape[2] == COLUMNS and labels.is_floating_point()
    )


def as_boxes(targets: Sequence[Any]) -> Tensor | None:
    """N x M x 6 of targets as torchvision's detectors take them, dicts with `boxes` M x 4 (left, top, right,
    bottom), `labels` M and perhaps `iscrowd` M; None where one is no such dict.
    """
    if not targets or not all(isinstance(t, Mapping) and {"boxes", "labels"} <= t.keys() for t in targets):
        return None
    rows = []
    for target in targets:
        boxes = torch.as_tensor(target["boxes"], dtype=torch.float32).reshape(-1, 4)
        labels, crowd = (
            torch.as_tensor(target.get(key, torch.zeros(len(boxes))), dtype=torch.float32).reshape(-1, 1)
            for key in ("labels", "iscrowd")
        )
        rows.append(torch.cat([labels, boxes, crowd], 1))
    most = max(map(len, rows))
    return torch.stack([filled(each, most) for each in rows])


def together(labels: Sequence[Tensor]) -> Tensor:
    """Labels of several sets; boxes are filled up to the greatest number among them."""
    if not all(are_boxes(part) for part in labels):
        return torch.cat(list(labels))
    most = max(part.shape[1] for part in labels)
    return torch.cat([torch.stack([filled(rows, most) for rows in part]) for part in labels if len(part)])
