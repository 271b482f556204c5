"""Pictures with boxes or masks: `coco:DIR`, `voc:DIR`, `masks:DIR`, or a folder or archive that looks like
one.
"""

from __future__ import annotations

from mpsearch.data.sources._base import Source
from mpsearch.data.sources.boxes import coco_parts, open_coco, open_voc
from mpsearch.data.sources.catalogue import LABEL_FILE, Tree
from mpsearch.data.sources.classes import Classes
from mpsearch.data.sources.masks import has_masks, mask_parts, open_masks
from mpsearch.data.sources.parts import voc_parts
from mpsearch.errors import DataError

COCO, VOC, MASKS = "coco", "voc", "masks"


def kind_of_tree(tree: Tree, said: str = "") -> str:
    """How a folder is annotated: `coco`, `voc`, `masks`, or empty where it holds classes or nothing.

    Args:
        tree: The folder.
        said: Kind that was asked for.
    Raises: DataError: It is two of them, and nothing was said.
    """
    if said or LABEL_FILE in tree.names:
        return said
    found = []
    if any(n.startswith("Annotations/") and n.endswith(".xml") for n in tree.names):
        found.append(VOC)
    elif coco_parts(tree):
        found.append(COCO)
    if has_masks(tree):
        found.append(MASKS)
    if len(found) > 1:
        raise DataError(
            f"{tree.name} holds boxes and masks. Say which are meant: "
            f"{' or '.join(f'{kind}:{tree.name}' for kind in found)}."
        )
    return found[0] if found else ""


def open_annotated(kind: str, tree: Tree, split: str | None, classes: Classes | None) -> Source:
    """The pictures of a part with their boxes or masks. Raises DataError where they cannot be read."""
    if kind == MASKS:
        return open_masks(tree, split)
    return (open_coco if kind == COCO else open_voc)(tree, split, classes)


def annotated_parts(kind: str, tree: Tree) -> frozenset[str]:
    """Which of `train` and `test` there are; empty where it is one whole."""
    if kind == MASKS:
        return frozenset(part for part in mask_parts(tree) if part)
    return frozenset(part for part in (coco_parts(tree) if kind == COCO else voc_parts(tree, "Main")) if part)
