"""Names of timm's datasets. What would need a download is stood in for by timm's own dataset classes on local
files.
"""

import pytest
import timm.data
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset

from mpsearch.data import load_images, make_splits
from mpsearch.data.sources import timm_dataset
from mpsearch.errors import DataError


class Reader:
    """As timm's readers of streams: iterable, with a length, labels only with the images."""

    def __init__(self, images, labels, length=None):
        self.images, self.labels, self.length = images, labels, len(images) if length is None else length

    def __iter__(self):
        return (
            (Image.fromarray(image), label) for image, label in zip(self.images, self.labels, strict=True)
        )

    def __len__(self):
        return self.length


@pytest.fixture
def stand_in(monkeypatch):
    """Makes `create_dataset` give what a function of the split gives, and reports how it was called."""

    def install(datasets):
        calls = []

        def create(name, root=None, split="", **kwargs):
            calls.append((name, root, split))
            if split not in datasets:
                raise ValueError(f"Unknown split {split}")
            return datasets[split]

        monkeypatch.setattr(timm_dataset, "create_dataset", create)
        monkeypatch.setattr(timm_dataset.importlib.util, "find_spec", lambda name: True)
        return calls

    return install


def test_torch_image_folder_through_timm_itself(folder, config):
    root = folder({"train/a": 3, "train/b": 3, "validation/a": 2, "validation/b": 1})
    spec = f"torch/image_folder@{root}"
    assert load_images(spec, config).labels.tolist() == [0, 0, 1]
    assert (
        load_images(spec, config, split="train").content_hash
        == load_images(str(root), config, split="train").content_hash
    )
    made = make_splits(spec, config, calibration_images=2, search_images=4)
    assert [len(p) for p in made.parts.values()] == [2, 4, 3]
    assert made.evaluation.name == "torch/image_folder[validation]"


def test_indexed_datasets_are_read_through_timms_reader(stand_in, folder, config):
    root = folder({"a": 2, "b": 3})
    calls = stand_in({"test": timm.data.create_dataset("", root=str(root))})
    found = load_images("hfds/someone/images@/data", config)
    assert calls == [("hfds/someone/images", "/data", "validation"), ("hfds/someone/images", "/data", "test")]
    assert found.name == "hfds/someone/images[test]"
    assert found.content_hash == load_images(str(root), config).content_hash
    assert load_images("hfds/someone/images", config, limit=2).labels.bincount().tolist() == [1, 1]


def test_a_damaged_image_is_not_replaced_by_its_neighbour(stand_in, folder, config):
    root = folder({"a": 3})
    (root / "a" / "001.png").write_bytes(b"damaged")
    stand_in({"validation": timm.data.create_dataset("", root=str(root))})
    with pytest.raises(DataError, match=r"hfds/x\[validation\], image 1 is not a readable image"):
        load_images("hfds/x", config)


def test_labels_that_come_with_the_images(stand_in, folder, config):
    dataset = timm.data.create_dataset("", root=str(folder({"a": 2, "b": 3})))
    samples = dataset.reader.samples

    class Unlisted:
        def __len__(self):
            return len(samples)

        def __getitem__(self, index):
            return open(samples[index][0], "rb"), samples[index][1]  # noqa: PTH123 - as timm's readers do

    stand_in({"validation": ImageDataset("", reader=Unlisted())})
    assert load_images("hfds/x", config).labels.tolist() == [0, 0, 1, 1, 1]


def test_streams_give_the_same_subset_whatever_the_order(stand_in, config, pixels):
    images = pixels(12)
    stand_in({"validation": IterableImageDataset("", reader=Reader(images, range(12)))})
    whole = load_images("tfds/x", config)
    part = load_images("tfds/x", config, limit=5, seed=3)
    assert whole.labels.tolist() == list(range(12))
    assert part.sample_hashes == whole.subset(part.labels).sample_hashes
    assert load_images("tfds/x", config, limit=5, seed=4).labels.tolist() != part.labels.tolist()


@pytest.mark.parametrize(
    ("length", "message"), [(0, "does not say how many"), (20, "ended before its 20 images")]
)
def test_streams_of_a_wrong_length_are_refused(stand_in, config, pixels, length, message):
    stand_in({"validation": IterableImageDataset("", reader=Reader(pixels(12), range(12), length))})
    with pytest.raises(DataError, match=message):
        load_images("tfds/x", config)


@pytest.mark.parametrize(
    ("label", "message"), [([0, 1], "label .0, 1."), (0.5, "label 0.5"), (-7, "label -7")]
)
def test_labels_that_are_not_one_class_are_refused(stand_in, config, pixels, label, message):
    stand_in({"validation": IterableImageDataset("", reader=Reader(pixels(1), [label]))})
    with pytest.raises(DataError, match=message):
        load_images("tfds/x", config)


def test_images_of_which_some_lack_a_label_are_refused(stand_in, config, pixels):
    stand_in({"validation": IterableImageDataset("", reader=Reader(pixels(3), [0, -1, 1]))})
    with pytest.raises(DataError, match="1 of 3 images have no label"):
        load_images("tfds/x", config)


def test_failures_name_the_dataset_and_every_part_tried(stand_in, config):
    with pytest.raises(
        DataError, match=r"torch/nothing\[validation\] cannot be read: Unknown torchvision dataset nothing"
    ):
        load_images("torch/nothing", config)
    stand_in({})
    with pytest.raises(
        DataError, match=r"hfds/x\[validation\] cannot be read: Unknown split validation.*hfds/x\[test\]"
    ):
        load_images("hfds/x", config)
    with pytest.raises(DataError, match=r"^hfds/x\[extra\] cannot be read"):
        load_images("hfds/x", config, split="extra")


def test_a_missing_package_is_named(monkeypatch, config):
    monkeypatch.setattr(timm_dataset.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install tensorflow-datasets"):
        load_images("tfds/x", config)
