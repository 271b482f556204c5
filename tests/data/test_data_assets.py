"""Real images: counts, labels, and what a decoded image is."""

import os
from pathlib import Path

import numpy as np
import pytest

from mpsearch.data import load_images, make_splits

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module")
def images():
    default = Path(__file__).resolve().parents[3] / "shared" / "assets"
    folder = Path(os.environ.get("MPSEARCH_ASSETS", default)) / "images"
    if not folder.is_dir():
        pytest.skip(f"no images in {folder}; set MPSEARCH_ASSETS to the folder that holds images/")
    return folder


@pytest.fixture
def cifar(config):
    return config | {"input_size": (3, 32, 32)}


@pytest.mark.parametrize(
    ("name", "count"), [("cifar10_jpeg_test_5000", 5000), ("cifar10_jpeg_train_1000", 1000)]
)
def test_cifar_zips(images, cifar, name, count):
    found = load_images(str(images / f"{name}.zip"), cifar)
    assert len(found) == count
    assert found.labels.bincount().tolist() == pytest.approx([count / 10] * 10, rel=0.25)
    assert len(set(found.sample_hashes)) >= count - 2


def test_a_subset_of_the_whole_training_zip_has_every_class(images, cifar):
    found = load_images(str(images / "cifar10_jpeg_train_50000.zip"), cifar, limit=200, seed=1)
    assert found.labels.bincount().tolist() == pytest.approx([20] * 10, abs=1)


def test_cifar_npz_is_read_byte_for_byte(images, cifar):
    path = images / "cifar10_png_subset.npz"
    found = load_images(str(path), cifar)
    with np.load(path) as arrays:
        assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), arrays["x_test"])
        assert found.labels.tolist() == arrays["y_test"].tolist()
    made = make_splits(str(path), cifar)
    assert [len(p) for p in made.parts.values()] == [256, 512, 500]


@pytest.mark.parametrize("name", ["imagenet_val_1000", "imagenet_calib_1000"])
def test_imagenet_zips(images, config, name):
    config |= {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875}
    found = load_images(str(images / f"{name}.zip"), config, limit=50)
    assert found.images.shape == (50, 3, 224, 224)
    assert int(found.labels.min()) >= 0 and int(found.labels.max()) < 1000
    assert len(set(found.labels.tolist())) > 35
    assert found.nbytes == 50 * 150528 + 400
