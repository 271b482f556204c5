"""Small images on disk, and a data config."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def config():
    return {
        "input_size": (3, 8, 8),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }


@pytest.fixture
def pixels():
    """`pixels(n)`: n different 8 x 8 x 3 images."""

    def make(count, seed=0, size=(8, 8)):
        return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)

    return make


@pytest.fixture
def png():
    def make(array):
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, "PNG")
        return stream.getvalue()

    return make


@pytest.fixture
def folder(tmp_path, pixels, png):
    """`folder({"cat": 3, "dog": 2})`: class folders of so many images each, below `tmp_path / name`."""

    def make(classes, name="images", seed=0):
        for k, (label, count) in enumerate(classes.items()):
            (tmp_path / name / label).mkdir(parents=True)
            for i, image in enumerate(pixels(count, seed * 1000 + k)):
                (tmp_path / name / label / f"{i:03d}.png").write_bytes(png(image))
        return tmp_path / name

    return make


@pytest.fixture
def archive(tmp_path):
    """`archive({"a.png": bytes, ...})`: a zip of these members."""

    def make(members, name="images.zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as z:
            for member, data in members.items():
                z.writestr(member, data)
        return tmp_path / name

    return make
