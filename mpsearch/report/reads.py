"""What the model of a study reads, and code that makes it of a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpsearch.report.saved import Saved

OWN_SAMPLES = "samples"
"""What code calls the inputs that it cannot prepare."""


@dataclass(frozen=True)
class Pictures:
    """How pictures become inputs.

    Args:
        size: C, H, W.
        mean: C means of values in 0 to 1.
        std: C standard deviations.
        interpolation: Of resizing.
        crop_pct: Share of the resized picture that is kept.
        crop_mode: `center` or another of timm's.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    @property
    def resized(self) -> int:
        """What the short side becomes before the middle is cut out."""
        return math.floor(self.size[1] / self.crop_pct)

    @property
    def plain(self) -> bool:
        """Whether resizing and cutting out a square is all there is to it."""
        return self.crop_mode in ("center", "squash") and self.size[1] == self.size[2]

    @property
    def told(self) -> str:
        """How a picture is resized and cut, for people."""
        channels, high, wide = self.size
        colour = "RGB" if channels == 3 else "grey"
        size = f"{high} × {wide}"
        if not self.plain:
            return f"{colour}, {self.crop_mode} to {size}, crop {self.crop_pct:g} ({self.interpolation})"
        whole = f"{self.resized} × {self.resized}"
        how = (
            f"its short side resized to {self.resized}"
            if self.crop_mode == "center"
            else f"resized to {whole}"
        )
        cut = "" if self.crop_mode == "squash" and self.crop_pct == 1 else f", the middle {size} cut out"
        return f"{colour}, {how} ({self.interpolation}){cut}"

    def code(self) -> str:
        """`prepared(path)`: one picture as the model reads it, 1 x C x H x W."""
        return self._with_pillow() if self.plain else self._with_timm()

    def _with_pillow(self) -> str:
        channels, side, _ = self.size
        mode = "RGB" if channels == 3 else "L"
        mean, std = (list(values) for values in (self.mean, self.std))
        larger = (
            f"({self.resized} * width // short, {self.resized} * height // short)"
            if self.crop_mode == "center"
            else f"({self.resized}, {self.resized})"
        )
        return f"""\
import numpy as np
from PIL import Image


def prepared(path):  # 1 x {channels} x {side} x {side}, float32
    image = Image.open(path).convert("{mode}")
    width, height, short = *image.size, min(image.size)
    image = image.resize({larger}, Image.Resampling.{self.interpolation.upper()})
    left, top = round((image.width - {side}) / 2), round((image.height - {side}) / 2)
    pixels = np.asarray(image.crop((left, top, left + {side}, top + {side})), np.float32)
    pixels = pixels.reshape({side}, {side}, {channels}) / 255
    pixels = (pixels - np.float32({mean})) / np.float32({std})
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
"""

    def _with_timm(self) -> str:
        mode = "RGB" if self.size[0] == 3 else "L"
        return f"""\
from PIL import Image
from timm.data import create_transform

transform = create_transform(
    {self.size}, is_training=False, interpolation={self.interpolation!r}, crop_pct={self.crop_pct},
    crop_mode={self.crop_mode!r}, mean={self.mean}, std={self.std},
)


def prepared(path):  # 1 x {" x ".join(map(str, self.size))}, float32
    return transform(Image.open(path).convert("{mode}"))[None].numpy()
"""


@dataclass(frozen=True)
class Reads:
    """What the model reads.

    Args:
        inputs: Name, shape of one sample and type of each tensor.
        pictures: How pictures become that; None where the samples were given as they are.
    """

    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    pictures: Pictures | None


def reads_of(saved: Saved) -> Reads | None:
    """By the manifest of the artifact; None where that was removed."""
    manifest = saved.manifest
    if not manifest:
        return None
    if "form" in manifest:
        leaves = manifest["form"]["inputs"]
        return Reads(tuple((name, tuple(shape), dtype) for name, shape, dtype, _ in leaves), None)
    shape, held = tuple(manifest["input_shape"]), manifest["data_config"]
    one = (("images" if len(shape) == 3 else OWN_SAMPLES, shape, "float32"),)
    given = manifest["source"]["kind"] == "module" or ".py:" in (saved.study["config"].get("data") or "")
    if given or tuple(held.get("input_size", ())) != shape:
        return Reads(one, None)
    pictures = Pictures(
        (shape[0], shape[1], shape[2]),
        tuple(held["mean"]),
        tuple(held["std"]),
        held["interpolation"],
        held["crop_pct"],
        held["crop_mode"],
    )
    return Reads(one, pictures)
