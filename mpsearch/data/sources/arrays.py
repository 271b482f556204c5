"""Images that lie in memory as one array: `.npz` files."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mpsearch.data.sources._base import SPLITS, TEST, TRAIN, Sample, Source
from mpsearch.errors import DataError

PARTS = {TRAIN: (("x_train", "y_train"),), TEST: (("x_test", "y_test"), ("x_val", "y_val"))}
"""Names of the arrays of each part."""

WHOLE = (("x", "y"), ("images", "labels"))
"""Names of the arrays of a file that has no parts."""


class ArraySource(Source):
    """N images as `N x H x W x C` uint8, C 1 or 3."""

    def __init__(
        self, name: str, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64] | None
    ) -> None:
        self.name, self.pixels, self.labels = name, pixels, labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pixels)

    def read(self, index: int) -> Sample:
        """The picture of one row."""
        row = np.ascontiguousarray(self.pixels[index])
        image = Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row)
        return Sample(
            image, None if self.labels is None else int(self.labels[index]), f"{self.name}, image {index}"
        )


def npz_parts(path: Path) -> tuple[str, ...]:
    """Which of `train` and `test` a file has."""
    with _opened(path) as arrays:
        return tuple(part for part, names in PARTS.items() if any(x in arrays for x, _ in names))


def open_npz(path: Path, split: str | None = None) -> ArraySource:
    """A `.npz` with `x_train`, `y_train`, `x_test`, `y_test`, or `x`, `y`, or `images`, `labels`; labels may
    be absent.

    Args:
        path: The file; pickled objects in it are refused.
        split: `train` or `test`; None takes the test part where there are parts.

    Raises:
        DataError: The file is damaged, holds no images, or they are not uint8 `N x H x W [x C]` or `N x C x H
            x W`.
    """
    with _opened(path) as arrays:
        x, y = _names(path, arrays, split)
        name = f"{path}[{x}]"
        pixels = _array(path, arrays, x)
        labels = _array(path, arrays, y) if y in arrays else None
    return ArraySource(
        name,
        _channels_last(name, pixels),
        None if labels is None else _labels(f"{path}[{y}]", labels, len(pixels)),
    )


def _opened(path: Path) -> np.lib.npyio.NpzFile:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is not a readable .npz file ({error}). Write it with numpy.savez(path, x=images, "
            "y=labels)."
        ) from None
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise DataError(
            f"{path} holds a single array, not an .npz archive. Write it with numpy.savez(path, "
            "x=images, y=labels)."
        )
    return loaded


def _names(path: Path, arrays: np.lib.npyio.NpzFile, split: str | None) -> tuple[str, str]:
    if split is not None and split not in SPLITS:
        raise DataError(
            f"{path} has no part {split!r}. A .npz file has 'train' (x_train, y_train) and 'test' "
            "(x_test, y_test)."
        )
    wanted = PARTS[SPLITS[split]] if split else (*PARTS[TEST], *WHOLE, *PARTS[TRAIN])
    found = next((pair for pair in wanted if pair[0] in arrays), None)
    if found is None:
        expected = " or ".join(x for x, _ in wanted)
        raise DataError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}, not {expected}. Name the images "
            f"{wanted[0][0]} and their labels {wanted[0][1]}."
        )
    return found


def _array(path: Path, arrays: np.lib.npyio.NpzFile, name: str) -> npt.NDArray[np.generic]:
    try:
        return np.asarray(arrays[name])
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: the array {name!r} cannot be read ({error}). Write plain numbers, no objects, with "
            "numpy.savez."
        ) from None


def _channels_last(name: str, pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    if pixels.dtype != np.uint8:
        raise DataError(
            f"{name} has the type {pixels.dtype}; images must be uint8, 0 to 255. Save them before "
            "normalisation: (x * 255).round().astype('uint8')."
        )
    shape = pixels.shape
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    elif pixels.ndim != 4 or (shape[-1] not in (1, 3) and shape[1] not in (1, 3)):
        raise DataError(
            f"{name} has the shape {shape}; images are N x H x W, N x H x W x C or N x C x H x W with C "
            "1 or 3."
        )
    elif shape[-1] not in (1, 3):
        pixels = pixels.transpose(0, 2, 3, 1)
    elif shape[1] in (1, 3):
        raise DataError(
            f"{name} has the shape {shape}: which axis holds the channels cannot be told. Save images of "
            "more than 3 rows."
        )
    if 0 in pixels.shape:
        raise DataError(f"{name} has the shape {shape}: there are no images in it. Save at least one.")
    return pixels.astype(np.uint8, copy=False)


def _labels(name: str, labels: npt.NDArray[np.generic], count: int) -> npt.NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise DataError(
            f"{name} is {labels.dtype} of shape {labels.shape}; labels are whole numbers, one for each "
            f"of {count} images (not one-hot)."
        )
    found = labels.reshape(count).astype(np.int64)
    if found.min() < 0:
        raise DataError(f"{name} has the label {found.min()}; labels start at 0.")
    return found
