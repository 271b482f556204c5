"""What is done with fewer images than usual."""

import pytest
import torch

from mpsearch.data import ImageSet, make_splits
from mpsearch.errors import DataError

USUAL = (512, 256, 256)


def images(count, name="made", seed=0):
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 4, 4), generator=draw, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 3, (0.5,) * 3, (0.5,) * 3, name)


def sizes(made):
    return [len(part) for part in made.parts.values()]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (96, [48, 24, 24]),
        (4, [2, 1, 1]),
        (7, [3, 1, 3]),
        (1000, [500, 250, 250]),
        (1024, [512, 256, 256]),
        (2000, [512, 256, 1232]),
    ],
)
def test_one_source_is_divided_in_proportion(count, expected):
    made = make_splits(images(count), usual=USUAL)
    assert sizes(made) == expected
    assert bool(made.warning) is (count < 1024)


def test_the_warning_tells_the_errors_that_follow():
    warning = make_splits(images(96), usual=USUAL).warning
    assert "48 calibrate, 24 judge bit-widths, 24 are for what is reported" in warning
    assert (
        "standard error of up to 10.2% in a reported accuracy" in warning
        and "20% of an image's spread" in warning
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"calibration_images": 60}, [60, 18, 18]),
        ({"search_images": 60}, [24, 60, 12]),
        ({"evaluation_images": 60}, [24, 12, 60]),
        ({"calibration_images": 94}, [94, 1, 1]),
    ],
)
def test_what_was_said_is_kept_and_the_rest_shared(given, expected):
    assert sizes(make_splits(images(96), usual=USUAL, **given)) == expected


def test_two_sources_share_the_calibration_images():
    made = make_splits(images(40), calibration=images(96, seed=1), usual=USUAL)
    assert sizes(made) == [64, 32, 40] and made.warning
    assert sizes(make_splits(images(40), calibration=images(96, seed=1), usual=USUAL, search_images=6)) == [
        90,
        6,
        40,
    ]
    assert make_splits(images(40), calibration=images(800, seed=1), usual=USUAL).warning == ""


def test_copies_are_left_out_before_the_rest_is_shared():
    many = images(96)
    many.images[50:60] = many.images[0]
    assert sum(sizes(make_splits(many, usual=USUAL))) == 86


def test_counts_that_were_all_given_are_kept_without_a_warning():
    made = make_splits(images(96), usual=USUAL, calibration_images=8, search_images=8, evaluation_images=8)
    assert sizes(made) == [8, 8, 8] and made.warning == ""


def test_too_few_are_refused_by_flag():
    for count, given, needed in (
        (3, {}, 4),
        (96, {"calibration_images": 95}, 97),
        (96, {"calibration_images": 90, "search_images": 8}, 99),
    ):
        with pytest.raises(DataError, match=f"made has {count} images; {needed} are needed") as refused:
            make_splits(images(count), usual=USUAL, **given)
        assert (
            "Lower --calibration-images, --search-images or --evaluation-images" in refused.value.as_flags()
        )
    with pytest.raises(DataError) as refused:
        make_splits(images(96), search_images=0)
    assert refused.value.as_flags().startswith("--search-images is 0")
