"""`Splits`: three sets of images, or other samples, that share none, drawn once and recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mpsearch.data.loading import Progress, source_parts
from mpsearch.data.pools import Pool, draw_fresh, open_pool
from mpsearch.data.reading import Takes
from mpsearch.data.samples import SampleSet
from mpsearch.data.sampling import seeded_order
from mpsearch.data.sources._base import TEST, TRAIN
from mpsearch.data.sources.classes import Classes
from mpsearch.errors import DataError
from mpsearch.usercode import names_code

SCHEMA = 1
_Counts = tuple[int | None, int | None, int | None]
"""Images for calibration, search and evaluation; None where nothing was said."""
USUAL = (256, 512, 256)
"""The same where nothing is said, the last at least, where one source is divided."""
LEAST = 4
"""Images of a source that is divided in three."""


@dataclass(frozen=True, eq=False)
class Splits:
    """What each step may look at.

    Args:
        calibration: Ranges and reconstruction.
        search: The loss that the search minimises.
        evaluation: What is reported; neither of the others has seen it.
        seed: Random seed of the draw.
        duplicates_removed: Exact duplicates, by pixels, that were met and left out of the draw.
        warning: What few images mean for the results; empty where there are enough.
        classes: Names of the classes in the order of the labels; empty where they are not known.
    """

    calibration: SampleSet
    search: SampleSet
    evaluation: SampleSet
    seed: int
    duplicates_removed: int = 0
    warning: str = ""
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        held = [(name, frozenset(part.sample_hashes)) for name, part in self.parts.items()]
        for i, (first, one) in enumerate(held):
            for second, other in held[i + 1 :]:
                if one & other:
                    raise DataError(
                        f"The {first} and {second} sets share {len(one & other)} images. Draw them with "
                        "make_splits, which keeps them apart."
                    )

    @property
    def parts(self) -> dict[str, SampleSet]:
        """The three sets by name."""
        return {"calibration": self.calibration, "search": self.search, "evaluation": self.evaluation}

    def to_json(self) -> dict[str, Any]:
        """Counts, sources and content hashes: enough to tell whether another run saw the same images."""
        parts = {
            name: {"source": p.name, "images": len(p), "bytes": p.nbytes, "content_hash": p.content_hash}
            for name, p in self.parts.items()
        }
        return {
            "schema": SCHEMA,
            "seed": self.seed,
            "duplicates_removed": self.duplicates_removed,
            "parts": parts,
            **({"classes": list(self.classes)} if self.classes else {}),
        }


def make_splits(
    data: Any,
    data_config: Mapping[str, Any] | None = None,
    *,
    calibration: Any = None,
    calibration_images: int | None = None,
    search_images: int | None = None,
    evaluation_images: int | None = None,
    usual: tuple[int, int, int] = USUAL,
    seed: int = 0,
    classes: Classes | None = None,
    on_image: Progress | None = None,
    takes: Takes | None = None,
) -> Splits:
    """Draw calibration, search and evaluation images, stratified by label where labels are known, none twice.

    With a calibration source of its own, or a source with a train and a test part (digits, timm's datasets,
    an `.npz`, a folder with `train` and `val`), calibration and search images come from that or from the
    train part, evaluation images from the other. One source without parts is divided in three. An image whose
    pixels equal those of an image drawn already is left out and replaced by the next of the seeded order;
    where there is a choice, the evaluation set is the one that keeps it.

    Args:
        data: Evaluation images, or all images: a name as `load_images` takes it, `file.py:function`, an
            `ImageSet`, a `TokenSet` or another `SampleSet`, or a DataLoader, Dataset or iterable of samples.
        data_config: The model's; needed for names alone.
        calibration: Source of the calibration and search images.
        calibration_images: How many; None takes as many as `usual` says, or a share of what there is, in
            proportion.
        search_images: How many; None as there.
        evaluation_images: How many; None takes all that are left, and a share at least.
        usual: Images for calibration, search and evaluation where nothing is said.
        seed: Same seed, same images.
        classes: What is known of the model's classes; labels beyond them are refused before an image is
            decoded.
        on_image: Progress, for each source that is read.
        takes: Whether the model takes a sample; needed for samples that are no `SampleSet`.

    Raises:
        DataError: Too few images, labels that the model has no output for, or two sources that do not go
            together.
    """
    wanted = {
        "calibration_images": calibration_images,
        "search_images": search_images,
        "evaluation_images": evaluation_images,
    }
    for name, number in wanted.items():
        if number is not None and number < 1:
            raise DataError(f"{name} is {number}; it must be 1 or more.", fields=wanted)
    reads = partial(open_pool, data_config=data_config, classes=classes, on_image=on_image, takes=takes)
    main = reads(data, part=TEST)
    named = isinstance(data, str) and not names_code(data)
    if calibration is None and named and source_parts(data) == {TRAIN, TEST}:
        calibration = data
    counts = _Wanted((calibration_images, search_images, evaluation_images), usual)
    found = (
        _divide(main, counts, seed)
        if calibration is None
        else _combine(main, reads(calibration, part=TRAIN), counts, seed)
    )
    return replace(found, classes=_names(main, classes))


def _names(pool: Pool, classes: Classes | None) -> tuple[str, ...]:
    """Names of the classes by label: of a file that gives each folder its own, else of the folders."""
    held = {} if classes is None or classes.folders is None else classes.folders
    if sorted(held.values()) == list(range(len(held))):
        return tuple(sorted(held, key=lambda name: held[name])) or pool.classes or ()
    return ()


@dataclass(frozen=True)
class _Wanted:
    """Images for calibration, search and evaluation, and what is usual where nothing was said."""

    said: _Counts
    usual: tuple[int, int, int]

    @property
    def least(self) -> int:
        """Without which nothing goes."""
        return max(sum(count or 1 for count in self.said), LEAST if self.said == (None, None, None) else 0)

    @property
    def enough(self) -> int:
        """From which on nothing is scaled down."""
        return sum(
            usual if count is None else count for count, usual in zip(self.said, self.usual, strict=True)
        )

    def few(self, there: int) -> bool:
        """Whether a share is taken of what there is."""
        return there < self.enough and None in self.said[:2]

    def shares(self, there: int) -> tuple[int, int, int]:
        """As said, as usual, or in proportion where that is too much; the last has what is left, unless it
        was said.
        """
        free = [usual for count, usual in zip(self.said, self.usual, strict=True) if count is None]
        part = min(1.0, (there - sum(count or 0 for count in self.said)) / sum(free)) if free else 1.0
        calibration, search = (
            max(1, int(usual * part)) if count is None else count
            for count, usual in zip(self.said[:2], self.usual, strict=False)
        )
        return calibration, search, there - calibration - search if self.said[2] is None else self.said[2]


def _divide(pool: Pool, wanted: _Wanted, seed: int) -> Splits:
    few = wanted.few(pool.count)
    _require(pool, pool.count, wanted.least, 0)
    most = None if few or wanted.said[2] is None else sum(wanted.shares(pool.count))
    drawn, removed = draw_fresh(pool, seeded_order(pool.count, pool.labels, seed), most, set())
    _require(pool, len(drawn), wanted.least, removed)
    calibration, search, held = wanted.shares(len(drawn))
    # evaluation first, so that it stays the same when the other two are resized
    parts = (
        _window(drawn, held, calibration),
        _window(drawn, held + calibration, search),
        _window(drawn, 0, held),
    )
    return Splits(*parts, seed, removed, _warning(pool, wanted, *map(len, parts)) if few else "")


def _combine(main: Pool, other: Pool, wanted: _Wanted, seed: int) -> Splits:
    if main.classes is not None and other.classes is not None and main.classes != other.classes:
        odd = sorted(set(main.classes) ^ set(other.classes))
        raise DataError(
            f"{main.name} and {other.name} do not have the same class folders; they differ in "
            f"{', '.join(odd[:3])}. Give them the "
            "same classes, or say which folder is which class with --class-map FILE."
        )
    count, two = wanted.said[2], _Wanted((*wanted.said[:2], 0), wanted.usual)
    least, few = sum(n or 1 for n in two.said[:2]), two.few(other.count)
    _require(main, main.count, count or 1, 0)
    _require(other, other.count, least, 0)
    held = main.load(seeded_order(main.count, main.labels, seed)[:count])
    most = None if few else sum(two.shares(other.count))
    drawn, removed = draw_fresh(
        other, seeded_order(other.count, other.labels, seed), most, set(held.sample_hashes)
    )
    _require(other, len(drawn), least, removed)
    calibration, search, _ = two.shares(len(drawn))
    if drawn.form != held.form:
        raise DataError(
            f"{main.name} and {other.name} were prepared differently (size, mean, std or length). Load "
            "both with the same data config or tokenizer."
        )
    parts = _window(drawn, 0, calibration), _window(drawn, calibration, search), held
    return Splits(*parts, seed, removed, _warning(other, wanted, *map(len, parts)) if few else "")


def _warning(pool: Pool, wanted: _Wanted, calibration: int, search: int, evaluation: int) -> str:
    """What few images mean: the standard errors of what is measured on them."""
    return (
        f"{pool.name} has few images: {calibration} calibrate, {search} judge bit-widths, {evaluation} "
        "are for what is reported. "
        f"Expect a standard error of up to {math.sqrt(0.25 / evaluation):.1%} in a reported accuracy, "
        f"and {1 / math.sqrt(search):.0%} "
        f"of an image's spread in the losses that the search compares; usual are {wanted.usual[0]} and "
        f"{wanted.usual[1]} images."
    )


def _window(samples: SampleSet, start: int, count: int) -> SampleSet:
    return samples.subset(slice(start, start + count))  # a view: nothing is copied


def _require(pool: Pool, there: int, needed: int, removed: int) -> None:
    if there < needed:
        less = f" once {removed} exact duplicates are left out" if removed else ""
        raise DataError(
            f"{pool.name} has {there} images{less}; {needed} are needed. Lower calibration_images, "
            "search_images or "
            "evaluation_images where they were given, or give more images.",
            fields=("calibration_images", "search_images", "evaluation_images"),
        )
