"""Small data sets for the examples, drawn from scikit-learn's digits.

Run: python examples/data.py [FOLDER] [--count 600]. FOLDER (`example-data` without it) gets

- `digits/{train,val}/CLASS/*.png`: single digits in class folders;
- `scenes/images/{train,val}/*.png` and `scenes/annotations/instances_{train,val}.json`: one to four digits
on a
  noisy ground, 64 x 64, with COCO's boxes;
- `masks/{train,val}/{images,masks}/*.png`: the same scenes, with the class of each pixel (0 is ground, 1 +
digit); - `texts.csv`: opinions in 8 classes, text and label.

A digit of a held-out picture is in none that is for training.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from texts import opinions
from torch import Tensor

from mpsearch.data import digits_split

SIDE, CLASSES = 64, 10


@dataclass(frozen=True)
class Scenes:
    """N scenes.

    Args:
        images: N x 64 x 64 uint8.
        masks: N x 64 x 64 uint8: 0 is ground, 1 + digit.
        boxes: For each scene M x 5: digit, left, top, right, bottom.
    """

    images: Tensor
    masks: Tensor
    boxes: list[Tensor]


def digits(part: str) -> tuple[Tensor, Tensor]:
    """N x 1 x 8 x 8, 0 to 1, and N classes, of `train` or `val`."""
    pixels, classes = load_digits(return_X_y=True)
    chosen = digits_split()[0 if part == "train" else 1]
    return torch.from_numpy(pixels[chosen]).float().reshape(-1, 1, 8, 8) / 16, torch.from_numpy(
        classes[chosen]
    )


def scenes(count: int, part: str, seed: int) -> Scenes:
    """Scenes of one to four digits of 12 to 26 pixels that do not overlap. Args: As of `digits`."""
    drawings, classes = digits(part)
    draw = torch.Generator().manual_seed(seed)
    images = torch.empty(count, SIDE, SIDE, dtype=torch.uint8)
    masks, boxes = torch.zeros_like(images), []
    for i in range(count):
        ground = _between(0, 90, draw) + 12 * torch.randn(SIDE, SIDE, generator=draw)
        placed = torch.empty(0, 5, dtype=torch.int64)
        wanted = _between(1, 4, draw)
        for _ in range(20):
            box = _place(placed[:, 1:], draw)
            if box is None or len(placed) == wanted:
                continue
            left, top, right, bottom = box
            which = _between(0, len(drawings) - 1, draw)
            size = (bottom - top, right - left)
            drawn = F.interpolate(drawings[which : which + 1], size, mode="bilinear", align_corners=False)[
                0, 0
            ]
            ground[top:bottom, left:right] += drawn * _between(90, 165, draw)
            masks[i, top:bottom, left:right][drawn > 0.3] = int(classes[which]) + 1
            placed = torch.cat([placed, torch.tensor([[int(classes[which]), *box]])])
        images[i] = ground.clamp(0, 255).to(torch.uint8)
        boxes.append(placed)
    return Scenes(images, masks, boxes)


def _between(low: int, high: int, draw: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=draw))


def _place(boxes: Tensor, draw: torch.Generator) -> tuple[int, int, int, int] | None:
    """A box that meets none of the others, or None."""
    width, height = _between(12, 26, draw), _between(12, 26, draw)
    left, top = _between(0, SIDE - width, draw), _between(0, SIDE - height, draw)
    right, bottom = left + width, top + height
    apart = (boxes[:, 0] >= right) | (boxes[:, 2] <= left) | (boxes[:, 1] >= bottom) | (boxes[:, 3] <= top)
    return (left, top, right, bottom) if bool(apart.all()) else None


def write_digits(folder: Path, count: int) -> None:
    """Class folders of 32 x 32 pictures, at most `count` of a part."""
    for part in ("train", "val"):
        drawings, classes = digits(part)
        for i, (drawing, kind) in enumerate(zip(drawings[:count], classes.tolist(), strict=False)):
            pixels = np.asarray(drawing[0].mul(255).to(torch.uint8))
            save(
                Image.fromarray(pixels).resize((32, 32)).convert("RGB"),
                folder / part / str(kind) / f"{i:04}.png",
            )


def write_scenes(folder: Path, made: Scenes, part: str) -> None:
    """One part of a COCO folder."""
    images, boxes = [], []
    for i, (image, held) in enumerate(zip(made.images, made.boxes, strict=True)):
        save(Image.fromarray(image.numpy()), folder / "images" / part / f"{i:04}.png")
        images.append({"id": i, "file_name": f"{i:04}.png", "width": SIDE, "height": SIDE})
        for kind, left, top, right, bottom in held.tolist():
            box = [left, top, right - left, bottom - top]
            boxes.append(
                {"id": len(boxes), "image_id": i, "category_id": kind, "bbox": box, "area": box[2] * box[3]}
            )
    categories = [{"id": i, "name": str(i)} for i in range(CLASSES)]
    file = folder / "annotations" / f"instances_{part}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))


def write_masks(folder: Path, made: Scenes, part: str) -> None:
    """One part of a folder of pictures and masks."""
    for i, (image, mask) in enumerate(zip(made.images, made.masks, strict=True)):
        save(Image.fromarray(image.numpy()), folder / part / "images" / f"{i:04}.png")
        save(Image.fromarray(mask.numpy()), folder / part / "masks" / f"{i:04}.png")


def write_texts(file: Path, count: int) -> None:
    """A CSV file with the header text,label."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *zip(*opinions(count, 0), strict=True)])


def save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def write_all(folder: Path, count: int) -> None:
    """Every data set, `count` samples of each for training, and half as many held out."""
    write_digits(folder / "digits", count)
    for part, number, seed in (("train", count, 0), ("val", count // 2, 1)):
        made = scenes(number, part, seed)
        write_scenes(folder / "scenes", made, part)
        write_masks(folder / "masks", made, part)
    write_texts(folder / "texts.csv", count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("example-data"))
    parser.add_argument("--count", type=int, default=600)
    given = parser.parse_args()
    write_all(given.folder, given.count)
