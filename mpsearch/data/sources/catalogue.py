"""Which image has which label, from the names in a folder or an archive alone; nothing is decoded here."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mpsearch.data.sources._base import SPLITS, TEST
from mpsearch.data.sources.classes import Classes
from mpsearch.errors import DataError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LABEL_FILE = "labels.csv"


@dataclass(frozen=True)
class Catalogue:
    """N image files and their labels.

    Args:
        files: N names, sorted, or in the order of `labels.csv`.
        labels: N labels, or None.
        classes: Names of the class folders, in the order of their labels, or None.
    """

    files: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Tree:
    """A listing.

    Args:
        name: What messages call the folder or archive.
        names: Paths below it with `/`; a folder's path ends in one.
        read: Bytes of a file by its path.
    """

    name: str
    names: tuple[str, ...]
    read: Callable[[str], bytes]

    def below(self, folder: str) -> Tree:
        """The part of the listing under a folder of it."""
        inside = tuple(
            n.removeprefix(folder + "/")
            for n in self.names
            if n.startswith(folder + "/") and n != folder + "/"
        )
        return Tree(f"{self.name}/{folder}", inside, lambda path: self.read(f"{folder}/{path}"))

    def images(self) -> list[str]:
        """Files that are images by their suffix, sorted; hidden ones and those that macOS adds to archives
        are passed over.
        """
        return sorted(
            n
            for n in self.names
            if PurePosixPath(n).suffix.lower() in SUFFIXES and not n.endswith("/") and not _hidden(n)
        )

    def folders(self) -> list[str]:
        """Names of the top folders, sorted."""
        return sorted({n.split("/", 1)[0] for n in self.names if "/" in n and not _hidden(n)})


def tree_parts(tree: Tree) -> dict[str, str]:
    """`train` and `test` -> the folder that holds it; empty where the top folders are not just such parts.

    Raises:
        DataError: Two folders are the same part, as `val` and `test` are.
    """
    folders = tree.folders()
    if not folders or LABEL_FILE in tree.names or not all(f in SPLITS for f in folders):
        return {}
    if len({SPLITS[f] for f in folders}) < len(folders):
        raise DataError(
            f"{tree.name} has the parts {', '.join(folders)}, of which several are held-out ones. Name "
            "one of them instead."
        )
    return {SPLITS[f]: f for f in folders}


def choose_part(tree: Tree, split: str | None = None) -> tuple[Tree, list[str]]:
    """The part of a tree, and the class folders of all its parts: one that is missing from a part must not
    shift the labels there.

    Args:
        tree: The listing.
        split: `train` or `test` (or a synonym); None takes `test` where there are parts, and all images where
            there are none.

    Raises:
        DataError: No such part.
    """
    parts = tree_parts(tree)
    if split is not None and SPLITS.get(split) not in parts:
        has = f"the parts {', '.join(parts)}" if parts else "no train and val folders"
        raise DataError(
            f"{tree.name} has no part {split!r}; it has {has}. Leave the part out, or name one it has."
        )
    if not parts:
        return tree, []
    folder = parts[SPLITS[split]] if split else parts.get(TEST) or next(iter(parts.values()))
    return tree.below(folder), sorted({c for part in parts.values() for c in tree.below(part).folders()})


def catalogue(tree: Tree, folders: Sequence[str] = (), classes: Classes | None = None) -> Catalogue:
    """List the images of a tree and label them.

    In this order: `labels.csv` with the header `file,label`; class folders, as `Classes.labels` reads them; a
    flat folder without labels.

    Args:
        tree: The listing.
        folders: Names of the class folders, where more are known than this tree has.
        classes: What is known of the model's classes.

    Raises:
        DataError: No images, or labels that do not fit the files or the model.
    """
    classes = classes or Classes()
    images = tree.images()
    if not images:
        raise DataError(
            f"{tree.name} holds no images. Put files in it that end in {', '.join(sorted(SUFFIXES))}."
        )
    if LABEL_FILE in tree.names:
        return _from_label_file(tree, images, classes)
    stray = [n for n in images if "/" not in n]
    if len(stray) == len(images):
        return Catalogue(tuple(images))
    if stray:
        raise DataError(
            f"{tree.name} holds class folders and also {len(stray)} images beside them, such as "
            f"{stray[0]}. Move them into a class folder."
        )
    return _from_class_folders(tree, images, folders, classes)


def _from_class_folders(tree: Tree, images: list[str], folders: Sequence[str], classes: Classes) -> Catalogue:
    names = list(folders or tree.folders())
    used = {n.split("/", 1)[0] for n in images}
    empty = [n for n in tree.folders() if n not in used]
    if empty and classes.folders is None:
        raise DataError(
            f"{tree.name}: the class folder {empty[0]!r} holds no images, yet would count as a class. "
            "Fill it, remove it, or "
            "say which folder is which class with --class-map FILE."
        )
    label = classes.labels(tree.name, names)
    ordered = tuple(sorted(names, key=lambda name: (label[name], name)))
    return Catalogue(tuple(images), tuple(label[n.split("/", 1)[0]] for n in images), ordered)


def _from_label_file(tree: Tree, images: list[str], classes: Classes) -> Catalogue:
    where = f"{tree.name}/{LABEL_FILE}"
    try:
        rows = list(
            csv.DictReader(io.StringIO(tree.read(LABEL_FILE).decode("utf-8-sig"), newline=""), strict=True)
        )
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{where} is not a CSV file in UTF-8 ({error}). Write the header file,label and one row for "
            "each image."
        ) from None
    if not rows or not {"file", "label"} <= rows[0].keys():
        has = ",".join(map(str, rows[0])) if rows else "no rows"
        raise DataError(f"{where} has {has}; it needs the header file,label and one row for each image.")
    files = [row["file"] or "" for row in rows]
    twice, times = Counter(files).most_common(1)[0]
    if times > 1:
        raise DataError(f"{where} names {twice!r} {times} times. Keep one row for each image.")
    _same_files(where, files, images)
    labels = tuple(_whole(where, row["file"], row["label"]) for row in rows)
    for file, label in zip(files, labels, strict=True):
        classes.require(f"{where}: {file}", label)
    return Catalogue(tuple(files), labels)


def _same_files(where: str, listed: list[str], there: list[str]) -> None:
    absent, unlisted = sorted(set(listed) - set(there)), sorted(set(there) - set(listed))
    if absent:
        raise DataError(
            f"{where} names {len(absent)} images that are not there, such as {absent[0]!r}. Remove these "
            "rows, or add the images."
        )
    if unlisted:
        raise DataError(
            f"{where} has no label for {len(unlisted)} of {len(there)} images, such as {unlisted[0]!r}. "
            "Add a row for each, or remove the images."
        )


def _whole(where: str, file: str, text: str | None) -> int:
    if text is None or not text.strip().isdecimal() or len(text.strip()) > 9:
        raise DataError(
            f"{where} has the label {text!r} for {file!r}; labels are whole numbers from 0. Write the "
            "class's index."
        )
    return int(text)


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))
