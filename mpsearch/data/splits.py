"""`Splits`: three sets of images, or other samples, that share none, drawn once and recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpsearch.data.loading import Progress, load, open_source, source_parts
from mpsearch.data.preprocess import Preprocessor
from mpsearch.data.samples import SampleSet
from mpsearch.data.sampling import seeded_order
from mpsearch.data.sources._base import TEST, TRAIN
from mpsearch.errors import DataError

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Splits:
    """What each step may look at.

    Args:
        calibration: Ranges and reconstruction.
        search: The loss that the search minimises.
        evaluation: What is reported; neither of the others has seen it.
        seed: Of the draw.
        duplicates_removed: Exact duplicates, by pixels, that were met and left out of the draw.
    """

    calibration: SampleSet
    search: SampleSet
    evaluation: SampleSet
    seed: int
    duplicates_removed: int = 0

    def __post_init__(self) -> None:
        held = [(name, frozenset(part.sample_hashes)) for name, part in self.parts.items()]
        for i, (first, one) in enumerate(held):
            for second, other in held[i + 1 :]:
                if one & other:
                    raise DataError(f"The {first} and {second} sets share {len(one & other)} images. Draw them with make_splits, which keeps them apart.")

    @property
    def parts(self) -> dict[str, SampleSet]:
        """The three sets by name."""
        return {"calibration": self.calibration, "search": self.search, "evaluation": self.evaluation}

    def to_json(self) -> dict[str, Any]:
        """Counts, sources and content hashes: enough to tell whether another run saw the same images."""
        parts = {name: {"source": p.name, "images": len(p), "bytes": p.nbytes, "content_hash": p.content_hash} for name, p in self.parts.items()}
        return {"schema": SCHEMA, "seed": self.seed, "duplicates_removed": self.duplicates_removed, "parts": parts}


@dataclass(frozen=True)
class _Pool:
    """Images that can be drawn from, loaded or not."""

    name: str
    count: int
    labels: npt.NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    load: Callable[[Sequence[int]], SampleSet]


def make_splits(
    data: str | SampleSet,
    data_config: Mapping[str, Any] | None = None,
    *,
    calibration: str | SampleSet | None = None,
    calibration_images: int = 256,
    search_images: int = 512,
    evaluation_images: int | None = None,
    seed: int = 0,
    on_image: Progress | None = None,
) -> Splits:
    """Draw calibration, search and evaluation images, stratified by label where labels are known, none twice.

    With a calibration source of its own, or a source with a train and a test part (digits, timm's datasets, an `.npz`, a folder with
    `train` and `val`), calibration and search images come from that or from the train part, evaluation images from the other. One
    source without parts is divided in three. An image whose pixels equal those of an image drawn already is left out and replaced by
    the next of the seeded order; where there is a choice, the evaluation set is the one that keeps it.

    Args:
        data: Evaluation images, or all images: a name as `load_images` takes it, or an `ImageSet`, a `TokenSet` or another `SampleSet`.
        data_config: The model's; not needed for a `SampleSet`.
        calibration: Source of the calibration and search images.
        calibration_images: How many.
        search_images: How many.
        evaluation_images: How many; None takes all that are left.
        seed: Same seed, same images.
        on_image: Progress, for each source that is read.

    Raises:
        DataError: Too few images, or two sources that do not go together.
    """
    wanted = {"calibration_images": calibration_images, "search_images": search_images, "evaluation_images": evaluation_images}
    for name, number in wanted.items():
        if number is not None and number < 1:
            raise DataError(f"{name} is {number}; it must be 1 or more.")
    main = _open(data, data_config, TEST, on_image)
    if calibration is None and isinstance(data, str) and source_parts(data) == {TRAIN, TEST}:
        calibration = data
    if calibration is None:
        return _divide(main, calibration_images, search_images, evaluation_images, seed)
    other = _open(calibration, data_config, TRAIN, on_image)
    return _combine(main, other, calibration_images, search_images, evaluation_images, seed)


def _open(data: str | SampleSet, data_config: Mapping[str, Any] | None, part: str, on_image: Progress | None) -> _Pool:
    if not isinstance(data, str):
        classes = data.labels if data.labels is not None and data.labels.ndim == 1 else None  # spans and boxes are no classes
        return _Pool(data.name, len(data), None if classes is None else classes.numpy(), None, data.subset)
    if data_config is None:
        raise DataError(f"{data}: without the model's data config images cannot be prepared. Pass timm.data.resolve_data_config(model=model).")
    preprocess = Preprocessor.from_config(data_config)
    # the held-out part goes by several names, and the source knows which it has
    source = open_source(data, TRAIN if part == TRAIN and TRAIN in source_parts(data) else None)
    return _Pool(source.name, len(source), source.labels, source.classes, lambda indices: load(source, indices, preprocess, on_image))


def _divide(pool: _Pool, calibration: int, search: int, evaluation: int | None, seed: int) -> Splits:
    least = calibration + search + (evaluation or 1)
    order = seeded_order(pool.count, pool.labels, seed)
    _require(pool, pool.count, least, 0)
    drawn, removed = _draw(pool, order, None if evaluation is None else least, set())
    _require(pool, len(drawn), least, removed)
    held = len(drawn) - calibration - search
    # evaluation first, so that it stays the same when the other two are resized
    return Splits(_window(drawn, held, calibration), _window(drawn, held + calibration, search), _window(drawn, 0, held), seed, removed)


def _combine(main: _Pool, other: _Pool, calibration: int, search: int, evaluation: int | None, seed: int) -> Splits:
    if main.classes is not None and other.classes is not None and main.classes != other.classes:
        odd = sorted(set(main.classes) ^ set(other.classes))
        raise DataError(f"{main.name} and {other.name} do not have the same class folders; they differ in {', '.join(odd[:3])}. Give them the same classes.")
    _require(main, main.count, evaluation or 1, 0)
    _require(other, other.count, calibration + search, 0)
    held = main.load(seeded_order(main.count, main.labels, seed)[:evaluation])
    drawn, removed = _draw(other, seeded_order(other.count, other.labels, seed), calibration + search, set(held.sample_hashes))
    _require(other, len(drawn), calibration + search, removed)
    if drawn.form != held.form:
        raise DataError(
            f"{main.name} and {other.name} were prepared differently (size, mean, std or length). Load both with the same data config or tokenizer."
        )
    return Splits(_window(drawn, 0, calibration), _window(drawn, calibration, search), held, seed, removed)


def _draw(pool: _Pool, order: Sequence[int], count: int | None, seen: set[str]) -> tuple[SampleSet, int]:
    """The first `count` images of `order` that are not `seen` and not repeated, or as many as there are; and how many were left out."""
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


def _window(samples: SampleSet, start: int, count: int) -> SampleSet:
    return samples.subset(slice(start, start + count))  # a view: nothing is copied


def _require(pool: _Pool, there: int, needed: int, removed: int) -> None:
    if there < needed:
        less = f" once {removed} exact duplicates are left out" if removed else ""
        raise DataError(
            f"{pool.name} has {there} images{less}; {needed} are needed. Lower calibration_images, search_images or evaluation_images, or give more images."
        )
