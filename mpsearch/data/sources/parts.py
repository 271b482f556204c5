"""Which part of a data set a file or a list of names is of: `train`, or `test` for what is held out."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from mpsearch.data.sources._base import SPLITS, TEST, TRAIN
from mpsearch.data.sources.catalogue import Tree

_WORD = re.compile(rf"(?<![a-z])(?:{'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![a-z])")


def part_of(path: str) -> str:
    """By the words in its name, then in those of its folders; empty where there is none."""
    for name in reversed(PurePosixPath(path).parts):
        if match := _WORD.search(name.lower()):
            return SPLITS[match.group()]
    return ""


def voc_parts(tree: Tree, kind: str) -> dict[str, list[str]]:
    """`train` and `test` -> names of VOC's lists `ImageSets/KIND/train.txt` and `val.txt` (or `test.txt`);
    empty where there are none.
    """
    found: dict[str, list[str]] = {}
    for part, files in ((TRAIN, ("train", "trainval")), (TEST, ("val", "test"))):
        for file in files:
            path = f"ImageSets/{kind}/{file}.txt"
            if part not in found and path in tree.names:
                lines = tree.read(path).decode("utf-8", "replace").splitlines()
                found[part] = [line.split()[0] for line in lines if line.strip()]
    return found
