"""`Source`: images that are listed but not yet decoded."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from mpsearch.data.sources.truths import Truth

THREADS = min(8, os.cpu_count() or 1)
"""Decoding threads; Pillow and torchvision leave the interpreter lock while they work."""

TEST, TRAIN = "test", "train"
SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("test", "testing", "val", "valid", "validation", "eval", "evaluation"), TEST),
}
"""Name of a part, as sources write it -> `train` or `test`."""


@dataclass(frozen=True)
class Sample:
    """One decoded image; `where` names it in messages."""

    image: Image.Image
    label: int | Truth | None
    where: str


class Source(ABC):
    """N images by index.

    Attributes:
        name: What messages and records call it.
        labels: `N` labels known without decoding; None where there are none, or they come with the images.
        classes: Names of the class folders, in the order of the labels; None where labels are given as
            numbers.
        changed_config: Entries of the model's data config that this source replaces.
    """

    name: str
    labels: npt.NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None
    changed_config: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Decode one image; called from several threads. Raises DataError, which names the image."""

    def visit(self, indices: Sequence[int], put: Callable[[int, Sample], None]) -> Iterator[None]:
        """Call `put(k, sample)` for the k-th of `indices`, in any order; yields once for each finished image,
        from the caller's thread.
        """

        def one(job: tuple[int, int]) -> None:
            put(job[0], self.read(job[1]))

        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(one, enumerate(indices))
