"""`load_images`: from what a user names to an `ImageSet`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsearch.data.digits import open_digits
from mpsearch.data.images import ImageSet
from mpsearch.data.preprocess import Preprocessor
from mpsearch.data.sampling import seeded_order
from mpsearch.data.sources._base import TEST, TRAIN, Sample, Source
from mpsearch.data.sources.annotated import annotated_parts, kind_of_tree, open_annotated
from mpsearch.data.sources.arrays import npz_parts, open_npz
from mpsearch.data.sources.catalogue import Tree, tree_parts
from mpsearch.data.sources.classes import Classes
from mpsearch.data.sources.files import folder_tree, open_files, zip_tree
from mpsearch.data.sources.timm_dataset import is_timm_name, open_timm, require_package
from mpsearch.errors import DataError
from mpsearch.named import annotation_of, require_data_name
from mpsearch.usercode import names_code, require_code

Progress = Callable[[int, int], None]
"""Called with the images done and their number."""


def load_images(
    spec: str,
    data_config: Mapping[str, Any],
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    classes: Classes | None = None,
    on_image: Progress | None = None,
) -> ImageSet:
    """Decode and preprocess images as the model's own evaluation does; only the chosen ones are decoded.

    Args:
        spec: `digits`; a folder or zip with class folders or a `labels.csv`, with COCO's or VOC's boxes, or
            with masks (`coco:DIR`, `voc:DIR`, `masks:DIR` where that is in doubt); an `.npz`; or a dataset's
            name in timm, such as `torch/cifar10`.
        data_config: The model's, from `timm.data.resolve_data_config`.
        split: `train` or `test`, where the source has parts; None takes the held-out part there, and
            everything elsewhere.
        limit: At most so many images: a stratified random subset in random order. None takes all, in the
            order of the source.
        seed: Random seed of that subset.
        classes: What is known of the model's classes; labels beyond them are refused before an image is
            decoded.
        on_image: Progress.

    Raises:
        DataError: The source is not there, damaged, or not what it should be; the message names the file.
    """
    preprocess = Preprocessor.from_config(data_config)
    if limit is not None and limit < 1:
        raise DataError(f"A limit of {limit} images leaves none. Give 1 or more.")
    source = open_source(spec, split, classes)
    indices = range(len(source)) if limit is None else seeded_order(len(source), source.labels, seed)[:limit]
    return load(source, indices, preprocess, on_image)


def open_source(spec: str, split: str | None = None, classes: Classes | None = None) -> Source:
    """List a source without decoding it. Raises DataError where there is none, or the model has no output for
    a label.
    """
    if spec == "digits":
        source: Source = open_digits(split)
    elif is_timm_name(spec):
        source = open_timm(spec, split)
    else:
        said, text = annotation_of(spec)
        place = _place(text)
        kind = kind_of_tree(place, said) if isinstance(place, Tree) else ""
        if isinstance(place, Path):
            source = open_npz(place, split)
        elif kind:
            source = open_annotated(kind, place, split, classes)
        else:
            source = open_files(place, split, classes)
    if classes is not None and classes.outputs is not None and source.labels is not None:
        for i in np.flatnonzero(source.labels >= classes.outputs)[:1]:
            classes.require(f"{source.name}, image {i}", int(source.labels[i]))
    return source


def require_source(spec: str, classes: Classes | None = None) -> None:
    """Raises DataError where there is no such source, or its list of images cannot be read.

    A dataset of timm's is not fetched: only its package is asked; the function of a file is not run.
    """
    if names_code(spec):
        require_code(spec, DataError)
    elif is_timm_name(spec):
        require_package(spec)
    else:
        open_source(spec, classes=classes)


def preparation(spec: str, data_config: Mapping[str, Any], classes: Classes | None = None) -> str:
    """How the images of a source are prepared, for people, and what size the first one had."""
    source = open_source(spec, classes=classes)
    prepared = Preprocessor.from_config(data_config).changed(**source.changed_config)
    first = source.read(0).image.size if not is_timm_name(spec) else None
    return f"{prepared}{'' if first is None else f'; the first was {first[1]} x {first[0]}'}"


def source_parts(spec: str) -> frozenset[str]:
    """Which of `train` and `test` a source has; empty where it is one whole."""
    if spec == "digits" or is_timm_name(spec):
        return frozenset((TRAIN, TEST))
    said, text = annotation_of(spec)
    place = _place(text)
    if not isinstance(place, Tree):
        return frozenset(npz_parts(place))
    kind = kind_of_tree(place, said)
    return annotated_parts(kind, place) if kind else frozenset(tree_parts(place))


def has_parts(spec: str) -> bool:
    """Whether a source has a train part and a test part. Raises DataError where there is no such source."""
    return not names_code(spec) and source_parts(spec) == {TRAIN, TEST}


def load(
    source: Source, indices: Sequence[int], preprocess: Preprocessor, on_image: Progress | None = None
) -> ImageSet:
    """Decode and preprocess the images at `indices`, in that order, with a few threads."""
    preprocess = preprocess.changed(**source.changed_config)
    images = _allocate(source.name, len(indices), preprocess.input_size)
    labels: list[int | Tensor | None] = [None] * len(indices)
    size = preprocess.input_size[1:]

    def put(place: int, sample: Sample) -> None:
        images[place] = preprocess(sample.image, sample.where)
        truth = sample.label
        labels[place] = truth if truth is None or isinstance(truth, int) else truth.at(sample.image, size)

    for done, _ in enumerate(source.visit(indices, put), start=1):
        if on_image is not None:
            on_image(done, len(indices))
    return ImageSet(images, _labels(source.name, labels), preprocess.mean, preprocess.std, source.name)


def _place(spec: str) -> Tree | Path:
    path = Path(spec).expanduser()
    if path.is_dir():
        return folder_tree(path)
    require_data_name(spec)
    if path.suffix.lower() == ".zip":
        return zip_tree(path)
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"{spec} is a {path.suffix or 'nameless'} file; images are read from a folder, a .zip or an "
            ".npz. Put them in one of these."
        )
    return path


def _allocate(name: str, count: int, size: tuple[int, int, int]) -> Tensor:
    try:
        return torch.empty((count, *size), dtype=torch.uint8)
    except (RuntimeError, MemoryError):
        need = count * size[0] * size[1] * size[2]
        raise DataError(
            f"{name}: {count} images of {size} need {need / 1e9:.1f} GB of memory, more than there is. "
            "Set a limit."
        ) from None


def _labels(name: str, labels: Sequence[int | Tensor | None]) -> Tensor | None:
    known: Any = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        raise DataError(
            f"{name}: {len(labels) - len(known)} of {len(labels)} images have no label. Label all of "
            "them, or none."
        )
    if known and isinstance(known[0], Tensor):
        return torch.stack(known)
    return torch.tensor(known, dtype=torch.int64) if known else None
