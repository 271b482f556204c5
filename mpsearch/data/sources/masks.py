"""Pictures with masks: `images` and `masks`, or VOC's `JPEGImages` and `SegmentationClass`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar

from mpsearch.data.preprocess import decode
from mpsearch.data.sources._base import SPLITS, TEST, Sample, Source
from mpsearch.data.sources.catalogue import Tree, tree_parts
from mpsearch.data.sources.parts import voc_parts
from mpsearch.data.sources.truths import SQUASHED, Mask
from mpsearch.errors import DataError

FOLDERS = (("images", "masks"), ("JPEGImages", "SegmentationClass"))
"""Folder of the pictures and of their masks."""


class MaskSource(Source):
    """N pictures with masks."""

    changed_config: ClassVar[Mapping[str, Any]] = SQUASHED

    def __init__(self, tree: Tree, pairs: Sequence[tuple[str, str]]) -> None:
        self.name, self._tree, self._pairs = tree.name, tree, tuple(pairs)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._pairs)

    def read(self, index: int) -> Sample:
        """Decode one picture and its mask."""
        where, of_mask = (f"{self.name}/{file}" for file in self._pairs[index])
        image, mask = (decode(self._tree.read(file), f"{self.name}/{file}") for file in self._pairs[index])
        return Sample(image, Mask(mask, of_mask), where)


def mask_parts(tree: Tree) -> dict[str, list[tuple[str, str]]]:
    """`train`, `test`, or the empty text where nothing says which, -> pictures with their masks."""
    if tops := tree_parts(tree):
        return {
            part: [(f"{folder}/{a}", f"{folder}/{b}") for a, b in _pairs(tree.below(folder))]
            for part, folder in tops.items()
        }
    pairs = _pairs(tree)
    if listed := voc_parts(tree, "Segmentation"):
        by_stem = {PurePosixPath(image).stem: (image, mask) for image, mask in pairs}
        return {part: [by_stem[name] for name in names if name in by_stem] for part, names in listed.items()}
    found: dict[str, list[tuple[str, str]]] = {}
    for image, mask in pairs:
        inside = PurePosixPath(image).parts[1]
        found.setdefault(SPLITS.get(inside, "") if image.count("/") > 1 else "", []).append((image, mask))
    return found


def open_masks(tree: Tree, split: str | None) -> MaskSource:
    """The part of a folder of pictures and masks. Raises DataError where a picture has no mask."""
    parts = mask_parts(tree)
    part = (TEST if TEST in parts else next(iter(parts))) if split is None else SPLITS.get(split, split)
    if part not in parts or not parts[part]:
        raise DataError(
            f"{tree.name} has no part {split!r}; it has {', '.join(p or 'one whole' for p in parts)}. "
            "Leave the part "
            "out, or name one it has."
        )
    return MaskSource(tree, parts[part])


def has_masks(tree: Tree) -> bool:
    """Whether a folder, or each of its parts, holds pictures and masks under their usual names."""
    if not any(f"/{masks}/" in f"/{name}" for name in tree.names for _, masks in FOLDERS):
        return False  # told by names alone: there may be a million
    inside = [tree.below(folder) for folder in tree_parts(tree).values()] or [tree]
    return all(any(set(pair) <= set(part.folders()) for pair in FOLDERS) for part in inside)


def _pairs(tree: Tree) -> list[tuple[str, str]]:
    folders = next((pair for pair in FOLDERS if set(pair) <= set(tree.folders())), None)
    if folders is None:
        raise DataError(
            f"{tree.name} has no pictures with masks. Put them in images/ and masks/ (or JPEGImages/ and "
            "SegmentationClass/), under the same names."
        )
    images, masks = (
        {
            str(PurePosixPath(n).relative_to(folder).with_suffix("")): n
            for n in tree.images()
            if n.startswith(f"{folder}/")
        }
        for folder in folders
    )
    alone = sorted(images.keys() - masks.keys())
    if alone and folders[0] == "images":  # of VOC's pictures a part has masks
        raise DataError(
            f"{tree.name}: {len(alone)} of {len(images)} pictures have no mask, such as "
            f"{images[alone[0]]}. Add "
            f"{folders[1]}/{alone[0]}.png, or remove the picture."
        )
    both = sorted(images.keys() & masks.keys())
    if not both:
        raise DataError(f"{tree.name} has no picture with a mask of the same name. Give at least one.")
    return [(images[name], masks[name]) for name in both]
