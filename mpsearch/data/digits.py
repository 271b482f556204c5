"""scikit-learn's handwritten digits: real images that need no download, for the embedded default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mpsearch.data.sources._base import SPLITS, TEST, TRAIN
from mpsearch.data.sources.arrays import ArraySource
from mpsearch.errors import DataError

TEST_FRACTION = 0.3

HOLDOUT_SEED = 0
"""Seed of the split that `--data digits` means, whatever the seed of a study: a model fitted on its train
part has never seen its test part.
"""


class DigitsSource(ArraySource):
    """8 x 8 grey digits, stretched to the model's input size bilinearly: a crop would cut strokes off."""

    changed_config: ClassVar[Mapping[str, Any]] = {
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }


def digits_split(seed: int = HOLDOUT_SEED) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices into `sklearn.datasets.load_digits()` of 1257 train and 540 test images (70/30), stratified by
    label.
    """
    from sklearn.datasets import load_digits  # a second or two, which every other command would pay
    from sklearn.model_selection import train_test_split

    _, labels = load_digits(return_X_y=True)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_FRACTION, stratify=labels, random_state=seed
    )
    return np.sort(train), np.sort(test)


def open_digits(split: str | None = None, seed: int = HOLDOUT_SEED) -> DigitsSource:
    """The `train` or `test` part; None takes `test`. Raises DataError on another name."""
    part = SPLITS.get(split or TEST)
    if part is None:
        raise DataError(f"digits has no part {split!r}. It has 'train' and 'test'.")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # 0 to 16 becomes 0 to 255
    images = np.rint(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    chosen = digits_split(seed)[0 if part == TRAIN else 1]
    return DigitsSource(f"digits[{part}]", images[chosen], labels[chosen].astype(np.int64))
