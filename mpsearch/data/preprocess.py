"""From a picture to the bytes that a model's own evaluation transform would give it, before normalisation."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor

from mpsearch.errors import DataError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What is decoded; Pillow's other formats (some start outside programs) are not needed and stay shut."""

MAX_PIXELS = 2**27
"""A picture of more pixels (400 MB as RGB) is taken for a decompression bomb."""

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)  # what Pillow raises
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)
_MODES = {1: "L", 3: "RGB"}
_KEYS = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


def decode(data: bytes, where: str) -> Image.Image:
    """Decode one picture whole. Raises DataError, which names `where`, if it is damaged, too large or not a
    picture.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        image.load()
    except _BOMB as error:
        raise DataError(
            f"{where} unpacks to too many pixels ({error}); at most {MAX_PIXELS} are read. Scale it down "
            "or remove it."
        ) from None
    except _BROKEN as error:
        raise DataError(
            f"{where} is not a readable image ({error or type(error).__name__}). Replace or remove it; "
            f"{', '.join(FORMATS)} are read."
        ) from None
    return image


def as_mode(image: Image.Image, mode: str, where: str) -> Image.Image:
    """Convert to `L` or `RGB`, as torchvision's and timm's loaders do: transparency is dropped, and a turn
    in the
    EXIF data is not made. 16 bits a channel become 8 by their range, where those loaders would clip. Raises
    DataError for 32 bits.
    """
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _eight_bits(image).convert(mode)
    if image.mode.startswith("I") or image.mode == "F":
        raise DataError(
            f"{where} has 32 bits a channel (mode {image.mode}) of an unknown range. Save it with 8 or 16 "
            "bits."
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """0 to 65535 as 0 to 255, rounded."""
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.rint(values * (255 / 65535)).clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Preprocessor:
    """The deterministic part of a model's evaluation transform, as timm builds it from its data config.

    Args:
        input_size: `(C, H, W)`; C is 1 (pictures become grey) or 3 (RGB).
        interpolation: `bilinear`, `bicubic`, ...
        crop_pct: Part of the resized image that the crop keeps.
        crop_mode: `center`, `squash` or `border`.
        mean: C means of the normalisation, which is not done here.
        std: C standard deviations.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessor:
        """Read what `timm.data.resolve_data_config` gives.

        Raises:
            DataError: An entry is missing or does not fit the others.
        """
        missing = [key for key in _KEYS if key not in config]
        if missing:
            raise DataError(
                f"The data config has no {', '.join(missing)}. Take it from "
                "timm.data.resolve_data_config(model=model)."
            )
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v := config[key], list | tuple) else v for key in _KEYS
        }
        made = cls(**values)
        made._check()
        return made

    def __str__(self) -> str:
        """For people: `resized to 256 (bilinear), its middle 224 x 224, 3 channels, mean ..., std ...`."""
        channels, height, width = self.input_size
        whole = self.crop_pct == 1
        size = f"{height} x {width}"
        how = f"resized to {size}" if whole else f"{size}, cut out of {1 / self.crop_pct:.3g} times that"
        mode = "" if self.crop_mode == "center" else f", {self.crop_mode}"
        numbers = ", ".join(
            f"{name} {' '.join(f'{v:.3g}' for v in values)}"
            for name, values in (("mean", self.mean), ("std", self.std))
        )
        return f"{how} ({self.interpolation}{mode}), {('grey', 'RGB')[channels == 3]}, {numbers}"

    def changed(self, **entries: Any) -> Preprocessor:
        """The same with other entries."""
        return replace(self, **entries) if entries else self

    def __call__(self, image: Image.Image, where: str) -> Tensor:
        """`C x H x W` uint8. An image that has the input size already, at `crop_pct` 1, stays as it is."""
        pixels = torch.as_tensor(self._transform(as_mode(image, _MODES[self.input_size[0]], where)))
        if pixels.dtype != torch.uint8 or tuple(pixels.shape) != self.input_size:
            raise DataError(
                f"{where} became {pixels.dtype} {tuple(pixels.shape)}, not uint8 {self.input_size}. "
                f"Check the data config {self}."
            )
        return pixels

    @cached_property
    def _transform(self) -> Any:
        # use_prefetcher leaves tensor conversion and normalisation out, and keeps the rest
        return create_transform(
            self.input_size,
            is_training=False,
            use_prefetcher=True,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            mean=self.mean,
            std=self.std,
        )

    def _check(self) -> None:
        size = self.input_size
        if len(size) != 3 or not all(isinstance(v, int) and v > 0 for v in size):
            raise DataError(f"input_size {size} is not (channels, height, width) in positive whole numbers.")
        if size[0] not in _MODES:
            raise DataError(
                f"input_size {size} asks for {size[0]} channels; pictures have 1 (grey) or 3 (RGB). Use "
                "a model with one of these."
            )
        if len(self.mean) != size[0] or len(self.std) != size[0]:
            raise DataError(
                f"mean {self.mean} and std {self.std} do not have one value for each of {size[0]} "
                f"channels. Give {size[0]} values each."
            )
        if not 0 < self.crop_pct <= 1:
            raise DataError(f"crop_pct is {self.crop_pct}; it must be above 0 and at most 1.")
        try:
            _ = self._transform
        except (KeyError, ValueError) as error:
            raise DataError(
                f"timm has no transform for interpolation {self.interpolation!r}, crop_mode "
                f"{self.crop_mode!r} ({error}). Use bilinear or bicubic."
            ) from None
