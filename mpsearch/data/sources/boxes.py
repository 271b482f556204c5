"""Pictures with boxes: COCO's `annotations` (JSON), and VOC's `Annotations` (XML)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from mpsearch.data.preprocess import decode
from mpsearch.data.sources._base import SPLITS, Sample, Source
from mpsearch.data.sources.catalogue import SUFFIXES, Tree
from mpsearch.data.sources.classes import Classes
from mpsearch.data.sources.parts import part_of, voc_parts
from mpsearch.data.sources.truths import COLUMNS, SQUASHED, Boxes
from mpsearch.errors import DataError

_Rows = list[tuple[float, ...]]


@dataclass(frozen=True)
class Annotated:
    """One picture and its boxes.

    Args:
        file: Path in the tree.
        size: Width and height, where they are said.
        rows: M x 6.
    """

    file: str
    size: tuple[int, int] | None
    rows: npt.NDArray[np.float32]


class BoxSource(Source):
    """N pictures with boxes."""

    changed_config: ClassVar[Mapping[str, Any]] = SQUASHED

    def __init__(self, tree: Tree, name: str, pictures: Sequence[Annotated], classes: Sequence[str]) -> None:
        if not pictures:
            raise DataError(f"{name} names no pictures. Give annotations of at least one.")
        self.name, self.classes = name, tuple(classes)
        self._tree, self._pictures = tree, tuple(pictures)
        self._most = max(1, *(len(each.rows) for each in pictures))

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._pictures)

    def read(self, index: int) -> Sample:
        """Decode one picture."""
        about = self._pictures[index]
        where = f"{self._tree.name}/{about.file}"
        truth = Boxes(about.rows, self._most, about.size, where)
        return Sample(decode(self._tree.read(about.file), where), truth, where)


def coco_parts(tree: Tree) -> dict[str, str]:
    """`train`, `test`, or the empty text where a file says neither, -> the JSON file of its annotations."""
    found = [n for n in tree.names if n.endswith(".json") and _is_coco(n)]
    instances = [n for n in found if PurePosixPath(n).name.startswith("instances")]
    parts: dict[str, str] = {}
    for name in instances or found:
        part = part_of(name)
        if part in parts:
            raise DataError(
                f"{tree.name} has several files of annotations for one part: {parts[part]} and {name}. "
                "Keep one "
                "for training (train in its name) and one held out (val or test)."
            )
        parts[part] = name
    return parts


def open_coco(tree: Tree, split: str | None, classes: Classes | None) -> BoxSource:
    """The part of a folder with COCO's annotations. Raises DataError where they cannot be read."""
    parts = coco_parts(tree)
    if not parts:
        raise DataError(
            f"{tree.name} has no COCO annotations. Put them in annotations/instances_train.json and "
            "annotations/instances_val.json, or in annotations.json."
        )
    part = _chosen(tree, parts, split)
    where = f"{tree.name}/{parts[part]}"
    document = _coco_document(where, tree.read(parts[part]))
    names = [str(c["name"]) for c in sorted(document["categories"], key=lambda c: int(c["id"]))]
    ids = [int(c["id"]) for c in sorted(document["categories"], key=lambda c: int(c["id"]))]
    label = dict(zip(ids, _labels(where, names, classes), strict=True))
    rows: dict[Any, _Rows] = {image["id"]: [] for image in document["images"]}
    for about in document["annotations"]:
        if about["image_id"] not in rows or about["category_id"] not in label:
            raise DataError(
                f"{where}: the annotation {about.get('id')} is of the picture {about['image_id']} and the "
                "category "
                f"{about['category_id']}, one of which is not listed. Mend the annotations."
            )
        left, top, width, height = map(float, about["bbox"])
        if width > 0 and height > 0:  # COCO's own files hold a few that are empty
            row = (label[about["category_id"]], left, top, left + width, top + height)
            rows[about["image_id"]].append((*row, float(about.get("iscrowd", 0))))
    at = _finder(tree, parts[part], part)
    pictures = [
        Annotated(
            at(str(image["file_name"])),
            (int(image["width"]), int(image["height"])),
            _array(rows[image["id"]]),
        )
        for image in document["images"]
    ]
    return BoxSource(tree, where, pictures, names)


def open_voc(tree: Tree, split: str | None, classes: Classes | None) -> BoxSource:
    """The part of a folder with VOC's annotations. Raises DataError where they cannot be read."""
    listed = {
        PurePosixPath(n).stem: n for n in tree.names if n.startswith("Annotations/") and n.endswith(".xml")
    }
    if not listed:
        raise DataError(
            f"{tree.name} has no Annotations/*.xml. Name the folder that holds Annotations and JPEGImages."
        )
    images = {PurePosixPath(n).stem: n for n in tree.names if n.startswith("JPEGImages/") and _is_image(n)}
    parts = voc_parts(tree, "Main")
    chosen = parts[_chosen(tree, parts, split)] if parts else sorted(listed)
    read = {stem: _voc_objects(tree, listed, stem) for stem in listed}
    names = sorted({name for _, objects in read.values() for name, *_ in objects})
    label = dict(zip(names, _labels(tree.name, names, classes), strict=True))
    pictures = []
    for stem in chosen:
        if stem not in images or stem not in read:
            raise DataError(f"{tree.name} lists {stem!r}, whose picture or annotation is not there. Add it.")
        size, objects = read[stem]
        rows = [(label[name], *numbers) for name, *numbers in objects]
        pictures.append(Annotated(images[stem], size, _array(rows)))
    return BoxSource(tree, tree.name, pictures, names)


def _chosen(tree: Tree, parts: Mapping[str, Any], split: str | None) -> str:
    """The part that is meant: the one asked for, else the held-out one, else the only one."""
    if split is None:
        return "test" if "test" in parts else next(iter(parts))
    part = SPLITS.get(split, split)
    if part not in parts:
        raise DataError(
            f"{tree.name} has no part {split!r}; it has {', '.join(p or 'one whole' for p in parts)}. "
            "Leave the "
            "part out, or name one it has."
        )
    return part


def _labels(where: str, names: Sequence[str], classes: Classes | None) -> list[int]:
    """Class of each name: by the class map, else by the order of the names."""
    if classes is None or classes.folders is None:
        return list(range(len(names)))
    return [classes.labels(where, names)[name] for name in names]


def _coco_document(where: str, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
        wanted = {"images": ("id", "file_name", "width", "height"), "categories": ("id", "name")}
        wanted["annotations"] = ("image_id", "category_id", "bbox")
        for key, fields in wanted.items():
            for entry in document[key]:
                lacks = [field for field in fields if field not in entry]
                if lacks or len(entry.get("bbox", range(4))) != 4:
                    raise KeyError(f"{key}: {(lacks or ['four numbers in bbox'])[0]}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{where} is no file of COCO annotations ({type(error).__name__}: {error}). It needs images (id, "
            "file_name, width, height), annotations (image_id, category_id, bbox of four numbers) and "
            "categories "
            "(id, name)."
        ) from None
    return dict(document)


def _finder(tree: Tree, listing: str, part: str) -> Any:
    """Gives the path in the tree of a picture that is named in a listing."""
    images = [n for n in tree.names if _is_image(n)]
    known, beside = set(images), PurePosixPath(listing).parent
    by_name: dict[str, list[str]] = {}
    for name in images:
        by_name.setdefault(PurePosixPath(name).name, []).append(name)

    def at(file: str) -> str:
        if (near := (beside / file).as_posix()) in known:
            return near
        ends = [n for n in by_name.get(PurePosixPath(file).name, ()) if f"/{n}".endswith(f"/{file}")]
        of_part = [n for n in ends if part_of(n) in ("", part)] or ends
        if len(of_part) != 1:
            several = f"{len(of_part)} pictures of that name" if of_part else "no such picture"
            raise DataError(
                f"{tree.name}/{listing} names {file!r}, and there is {several}. Put it beside, once."
            )
        return of_part[0]

    return at


def _voc_objects(
    tree: Tree, listed: Mapping[str, str], stem: str
) -> tuple[tuple[int, int] | None, list[tuple[Any, ...]]]:
    """Size, and name, left, top, right, bottom and whether it is difficult, of each object."""
    where = f"{tree.name}/{listed[stem]}"
    try:
        root = ElementTree.fromstring(tree.read(listed[stem]))
        width, height = (root.findtext(f"size/{side}") for side in ("width", "height"))
        objects: list[tuple[Any, ...]] = []
        for each in root.iter("object"):
            left, top, right, bottom = (
                float(each.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")
            )
            name = each.findtext("name")
            if not name:
                raise ValueError("an object without a name")
            difficult = float(each.findtext("difficult") or 0)
            objects.append((name, left - 1, top - 1, right, bottom, difficult))  # VOC counts pixels from 1
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(
            f"{where} is no VOC annotation ({error}). Each object needs a name and a bndbox of xmin, "
            "ymin, xmax, ymax."
        ) from None
    return ((int(width), int(height)) if width and height else None), objects


def _array(rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
    return np.asarray(rows, dtype=np.float32).reshape(-1, COLUMNS)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _is_coco(name: str) -> bool:
    path = PurePosixPath(name)
    return path.parent.name == "annotations" or path.name in ("_annotations.coco.json", "annotations.json")
