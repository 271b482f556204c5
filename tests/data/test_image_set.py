import pytest
import torch

from mpsearch.data import ImageSet
from mpsearch.errors import DataError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture
def images():
    pixels = torch.randint(
        0, 256, (7, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return ImageSet(pixels, torch.arange(7) % 3, MEAN, STD, "seven")


def test_inputs_normalise_by_channel(images):
    expected = torch.stack([(images.images[:, c] / 255 - MEAN[c]) / STD[c] for c in range(3)], 1)
    assert images.inputs().dtype == torch.float32
    torch.testing.assert_close(images.inputs(), expected)
    assert torch.equal(images.inputs([4, 1]), images.inputs()[[4, 1]])


def test_inputs_leave_the_images_as_they_are(images):
    before = images.images.clone()
    images.inputs().zero_()
    images.inputs(slice(0, 2)).zero_()
    assert torch.equal(images.images, before)


def test_batches_cover_every_image_once_in_order(images):
    batches = list(images.batches(3))
    assert [len(x) for x, _ in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([x for x, _ in batches]), images.inputs())
    assert torch.equal(torch.cat([y for _, y in batches]), images.labels)


def test_batches_without_labels():
    assert [
        y for _, y in ImageSet(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), None, MEAN, STD).batches(2)
    ] == [None, None]


def test_subset_keeps_images_and_labels_together(images):
    part = images.subset([5, 0])
    assert torch.equal(part.images, images.images[[5, 0]])
    assert part.labels.tolist() == [2, 0]
    assert len(part) == 2


def test_nbytes(images):
    assert images.nbytes == 7 * 3 * 4 * 5 + 7 * 8


def test_content_hash_sees_pixels_labels_and_normalisation_but_not_the_name(images):
    def changed(**fields):
        return ImageSet(
            **{
                "images": images.images,
                "labels": images.labels,
                "mean": MEAN,
                "std": STD,
                "name": "seven",
                **fields,
            }
        ).content_hash

    pixel = images.images.clone()
    pixel[3, 1, 2, 2] ^= 1
    assert changed(name="other") == images.content_hash
    others = [
        changed(images=pixel),
        changed(labels=None),
        changed(labels=images.labels.flip(0)),
        changed(mean=STD),
        changed(std=(0.2, 0.25, 0.31)),
    ]
    others.append(changed(images=images.images.reshape(7, 3, 5, 4)))
    assert len({images.content_hash, *others}) == 7


def test_sample_hashes_are_equal_for_equal_pixels_only(images):
    twice = images.subset([0, 1, 0])
    a, b, c = twice.sample_hashes
    assert a == c != b
    assert images.subset([2]).sample_hashes == images.sample_hashes[2:3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, "must be uint8"),
        ({"images": torch.zeros(3, 4, 4, dtype=torch.uint8)}, "N x C x H x W"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "int64 of shape"),
        ({"labels": torch.zeros(2)}, "int64 of shape"),
        ({"mean": (0.5,)}, "one for each channel"),
        ({"std": (0.5, 0.0, 0.5)}, "not positive"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(DataError, match=message):
        ImageSet(
            **{
                "images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
                "labels": torch.zeros(2, dtype=torch.int64),
                "mean": MEAN,
                "std": STD,
                **fields,
            }
        )


def test_require_labels(images):
    assert images.require_labels(3) is images.labels
    with pytest.raises(DataError, match="labels 0 to 2; the model has 2 classes"):
        images.require_labels(2)
    with pytest.raises(DataError, match="has no labels"):
        ImageSet(images.images, None, MEAN, STD).require_labels()


def test_a_batch_of_no_images_is_refused(images):
    with pytest.raises(DataError, match="Batch size 0"):
        next(images.batches(0))
