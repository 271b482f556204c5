"""Datasets by the names that timm gives them: `hfds/...`, `hfids/...`, `tfds/...`, `wds/...`,
`torch/cifar10`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data.dataset_factory import create_dataset

from mpsearch.data.preprocess import decode
from mpsearch.data.sources._base import TEST, Sample, Source
from mpsearch.errors import DataError
from mpsearch.named import DATASETS

_HELD_OUT = {None: ("validation", "test"), TEST: ("test", "validation")}


class IndexedSource(Source):
    """A dataset with `dataset[i]`. timm's own reader is asked where there is one: its dataset class passes
    over damaged images.
    """

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self._dataset, self._reader = name, dataset, getattr(dataset, "reader", None)
        self.labels = _listed_labels(dataset)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._dataset)

    def read(self, index: int) -> Sample:
        """Fetch and decode one image."""
        where = f"{self.name}, image {index}"
        if self._reader is None:
            image, label = _guarded(where, lambda: self._dataset[index][:2])
            return _sample(image, label, where)
        data, label = _guarded(where, lambda: _bytes(self._reader, index))
        return _sample(decode(data, where), label, where)


class StreamSource(Source):
    """A dataset that can only be read from its start: one pass, decoded in one thread."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self._dataset = name, dataset
        if not len(dataset):
            raise DataError(
                f"{name} does not say how many images it has, so no subset of it can be drawn. Save it "
                "as a folder or a zip of images."
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self._dataset)

    def read(self, index: int) -> Sample:
        """One image; reads all before it."""
        found: list[Sample] = []
        for _ in self.visit([index], lambda _, sample: found.append(sample)):
            pass
        return found[0]

    def visit(self, indices: Sequence[int], put: Callable[[int, Sample], None]) -> Iterator[None]:
        """See `Source.visit`; stops behind the last image asked for."""
        places = {index: k for k, index in enumerate(indices)}
        stream = enumerate(self._dataset)
        while places:
            index, pair = _guarded(self.name, lambda: next(stream, (-1, ())))
            if index < 0:
                raise DataError(
                    f"{self.name} ended before its {len(self)} images were read; {len(places)} are "
                    "missing. Fetch the dataset again."
                )
            if index in places:
                put(places.pop(index), _sample(pair[0], pair[1], f"{self.name}, image {index}"))
                yield


def is_timm_name(spec: str) -> bool:
    """Whether a name starts with one of timm's prefixes."""
    return "/" in spec and spec.split("/", 1)[0].lower() in DATASETS


def require_package(spec: str) -> None:
    """Raises DataError where the package that reads a dataset is not installed."""
    package = DATASETS[spec.split("/", 1)[0].lower()]
    if importlib.util.find_spec(package) is None:
        raise DataError(
            f"{spec} needs the package {package!r}, which is not installed. Run: pip install "
            f"{package.replace('_', '-')}"
        )


def open_timm(spec: str, split: str | None = None) -> Source:
    """Open a dataset through `timm.data.create_dataset`, which fetches it if it has to.

    Args:
        spec: timm's name, or `name@folder` where the dataset lies or shall be kept (torch/ keeps it beside
            torch's hub otherwise).
        split: The dataset's own name of a part; None takes `validation`, or `test` where there is no such
            part.

    Raises:
        DataError: A package is missing, or timm cannot open the dataset.
    """
    name, _, root = spec.partition("@")
    require_package(name)
    tried = _HELD_OUT.get(split, (split or "",))
    errors: list[DataError] = []
    for part in tried:
        try:
            dataset = _guarded(f"{name}[{part}]", functools.partial(_create, name, root, part))
        except DataError as error:
            errors.append(error)
            continue
        kind = StreamSource if isinstance(dataset, torch.utils.data.IterableDataset) else IndexedSource
        return kind(f"{name}[{part}]", dataset)
    raise DataError(" ".join(map(str, errors)))


def _create(name: str, root: str, part: str) -> Any:
    folder = str(Path(root).expanduser()) if root else None
    if folder is None and name.lower().startswith("torch/"):
        folder = str(Path(torch.hub.get_dir()) / "datasets")
    return create_dataset(name, root=folder, split=part, download=True)


def _listed_labels(dataset: Any) -> npt.NDArray[np.int64] | None:
    samples = getattr(getattr(dataset, "reader", None), "samples", None)
    listed = getattr(dataset, "targets", None) if samples is None else [label for _, label in samples]
    labels = np.asarray(listed)
    # targets of another kind are left to `_sample`, which says what is wrong with them
    return labels.astype(np.int64) if labels.ndim == 1 and labels.dtype.kind in "iu" else None


def _bytes(reader: Any, index: int) -> tuple[bytes, object]:
    stream, label, *_ = reader[index]
    with stream:
        return stream.read(), label


def _sample(image: object, label: Any, where: str) -> Sample:
    if not isinstance(image, Image.Image):
        raise DataError(f"{where} is a {type(image).__name__}, not a picture. Use a dataset of images.")
    if label is not None and (np.ndim(label) or int(label) != label or label < -1):
        raise DataError(
            f"{where} has the label {label!r}; labels are whole numbers from 0. Use a dataset with one "
            "class for each image."
        )
    return Sample(image, None if label is None or label == -1 else int(label), where)


def _guarded(where: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # the datasets' packages share no root of their errors
        said = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise DataError(
            f"{where} cannot be read: {said}. Check the name, the part and the connection, or give the "
            "folder it lies in: name@folder."
        ) from error
