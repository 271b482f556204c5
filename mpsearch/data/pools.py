"""A pool of images or other samples, loaded or not, from which some are drawn, none twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mpsearch.data.images import ImageSet
from mpsearch.data.loading import Progress, load, open_source, source_parts
from mpsearch.data.preprocess import Preprocessor
from mpsearch.data.reading import Samples, Takes, opened
from mpsearch.data.samples import SampleSet
from mpsearch.data.sampling import seeded_order
from mpsearch.data.sources._base import TRAIN
from mpsearch.data.sources.classes import Classes
from mpsearch.errors import DataError
from mpsearch.pytrees import Inputs, Structure
from mpsearch.usercode import call_code, names_code


@dataclass(frozen=True)
class Pool:
    """Images that can be drawn from, loaded or not."""

    name: str
    count: int
    labels: npt.NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    load: Callable[[Sequence[int]], SampleSet]


def open_pool(
    data: Any,
    part: str,
    data_config: Mapping[str, Any] | None,
    classes: Classes | None,
    on_image: Progress | None,
    takes: Takes | None,
) -> Pool:
    """What images or samples can be drawn from.

    Args:
        data: As in `make_splits`.
        part: `train` or `test`, where the source has parts.
        data_config: The model's; needed for names alone.
        classes: What is known of the model's classes.
        on_image: Progress.
        takes: Whether the model takes a sample.
    Raises: DataError: There is no such source.
    """
    name = str(getattr(data, "name", None) or type(data).__name__)
    if isinstance(data, str) and names_code(data):
        name, data = data, call_code(data, "a function that returns samples", DataError)
    if not isinstance(data, str):
        data = opened(data, name)
        if isinstance(data, Samples):
            return Pool(name, data.count, None, None, partial(data.drawn, takes=takes or _takes_all))
        labels = (
            data.labels
            if data.labels is not None and data.labels.ndim == 1 and not data.labels.is_floating_point()
            else None
        )  # spans and boxes are no classes
        return Pool(data.name, len(data), None if labels is None else labels.numpy(), None, data.subset)
    if data_config is None:
        raise DataError(
            f"{data}: without the model's data config images cannot be prepared. Pass "
            "timm.data.resolve_data_config(model=model)."
        )
    preprocess = Preprocessor.from_config(data_config)
    # the held-out part goes by several names, and the source knows which it has
    source = open_source(data, TRAIN if part == TRAIN and TRAIN in source_parts(data) else None, classes)
    folders = None if classes is not None and classes.folders is not None else source.classes
    return Pool(
        source.name,
        len(source),
        source.labels,
        folders,
        lambda indices: load(source, indices, preprocess, on_image),
    )


def _takes_all(batch: Inputs, call: Structure) -> None:
    """Nothing is known of the model: the first form of a sample is taken."""


def draw_fresh(pool: Pool, order: Sequence[int], count: int | None, seen: set[str]) -> tuple[SampleSet, int]:
    """The first `count` images of `order` that are not `seen` and not repeated, or as many as there are; and
    how many were left out.
    """
    kept: list[SampleSet] = []
    at = removed = 0
    while at < len(order) and (missing := len(order) if count is None else count - sum(map(len, kept))) > 0:
        images = pool.load(order[at : at + missing])
        at += len(images)
        fresh = []
        for i, pixels in enumerate(images.sample_hashes):
            if pixels not in seen:
                seen.add(pixels)
                fresh.append(i)
        removed += len(images) - len(fresh)
        kept.append(images if len(fresh) == len(images) else images.subset(fresh))
    return kept[0].joined(kept[1:]), removed


def learning_images(
    data: str,
    data_config: Mapping[str, Any],
    *,
    without: Sequence[str],
    limit: int | None = None,
    seed: int = 0,
    classes: Classes | None = None,
    on_image: Progress | None = None,
) -> ImageSet:
    """Images for training, in random order, each once.

    Args:
        data: As in `load_images`; of a source with parts its train part.
        data_config: The model's.
        without: Hashes of the images that must not be among them, such as those that judge.
        limit: At most so many, stratified by label; None for all.
        seed: Random seed of their order.
        classes: What is known of the model's classes.
        on_image: Progress.
    Raises: DataError: There is no such source, or it holds no images, or none but those without.
    """
    pool = open_pool(data, TRAIN, data_config, classes, on_image, None)
    order = seeded_order(pool.count, pool.labels, seed)
    found, _ = draw_fresh(pool, order, limit, set(without))
    if not isinstance(found, ImageSet):
        raise DataError(
            f"{data} gives samples that are no images, and fine-tuning learns from images alone. Name a "
            "folder, a .zip or an .npz of images."
        )
    if not len(found):
        raise DataError(
            f"{data} holds no image but those that judge the result. Give other images to learn from."
        )
    return found
