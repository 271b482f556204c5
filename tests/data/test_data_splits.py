import json

import numpy as np
import pytest
import torch

from mpsearch.data import ImageSet, Splits, make_splits
from mpsearch.data.sampling import seeded_order
from mpsearch.errors import DataError

SMALL = {"calibration_images": 4, "search_images": 6}


@pytest.fixture
def image_set(pixels):
    def make(count, seed=0, classes=2, name="made", duplicates=()):
        x = pixels(count, seed)
        for copy, original in duplicates:
            x[copy] = x[original]
        return ImageSet(
            torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(),
            torch.arange(count) % classes,
            (0.5,) * 3,
            (0.5,) * 3,
            name,
        )

    return make


def _hashes(splits):
    return [set(part.sample_hashes) for part in splits.parts.values()]


def _sizes(splits):
    return [len(part) for part in splits.parts.values()]


def test_one_source_is_divided_into_three_stratified_parts(image_set):
    images = image_set(60)
    made = make_splits(images, calibration_images=10, search_images=20)
    assert _sizes(made) == [10, 20, 30]
    assert set.union(*_hashes(made)) == set(images.sample_hashes)
    for part in made.parts.values():
        assert abs(int(part.labels.sum()) - len(part) / 2) <= 1


def test_labels_stay_with_their_images(image_set):
    images = image_set(40, classes=5)
    label = dict(zip(images.sample_hashes, images.labels.tolist(), strict=True))
    for part in make_splits(images, **SMALL).parts.values():
        assert [label[h] for h in part.sample_hashes] == part.labels.tolist()


def test_same_seed_same_images(image_set):
    images = image_set(40)
    first = make_splits(images, **SMALL, seed=5).to_json()
    assert make_splits(images, **SMALL, seed=5).to_json() == first
    assert make_splits(images, **SMALL, seed=6).to_json()["parts"] != first["parts"]


def test_evaluation_does_not_move_when_the_other_two_are_resized(image_set):
    images = image_set(40)
    one, other = (
        make_splits(images, calibration_images=n, search_images=6, evaluation_images=15) for n in (3, 9)
    )
    assert one.evaluation.content_hash == other.evaluation.content_hash


def test_planted_duplicates_in_one_source_are_left_out_and_counted(image_set):
    images = image_set(30, duplicates=[(20, 3), (21, 3), (29, 0)])
    made = make_splits(images, **SMALL)
    assert _sizes(made) == [4, 6, 17]
    assert made.duplicates_removed == 3
    calibration, search, evaluation = _hashes(made)
    assert len(calibration | search | evaluation) == 27


def test_planted_duplicates_of_evaluation_images_are_replaced_in_the_other_source(image_set):
    evaluation = image_set(10, seed=1, name="eval")
    other = image_set(15, seed=2, name="train")
    other = ImageSet(
        torch.cat([evaluation.images[:5], other.images[5:]]), other.labels, other.mean, other.std, "train"
    )
    made = make_splits(evaluation, calibration=other, **SMALL)
    assert _sizes(made) == [4, 6, 10]
    order = np.asarray(seeded_order(15, other.labels.numpy(), 0))
    last = np.flatnonzero(order >= 5)[9]  # the tenth image that is not planted ends the draw
    assert made.duplicates_removed == (order[:last] < 5).sum() > 0
    calibration, search, held = _hashes(made)
    assert held == set(evaluation.sample_hashes)
    assert not held & (calibration | search) and not calibration & search


def test_the_same_images_as_both_sources_are_refused(image_set):
    with pytest.raises(
        DataError, match="made has 0 images once 20 exact duplicates are left out; 10 are needed"
    ):
        make_splits(image_set(20), calibration=image_set(20), **SMALL)


def test_splits_that_overlap_cannot_be_made_by_hand(image_set):
    images = image_set(9)
    with pytest.raises(DataError, match="calibration and evaluation sets share 1 images"):
        Splits(images.subset([0, 1]), images.subset([2, 3]), images.subset([1, 4]), 0)


def test_json_tells_counts_sources_and_hashes(image_set):
    made = make_splits(
        image_set(20, name="main"), calibration=image_set(12, seed=9, name="side"), **SMALL, seed=7
    )
    told = json.loads(json.dumps(made.to_json()))
    assert (told["schema"], told["seed"], told["duplicates_removed"]) == (1, 7, 0)
    assert [(p["source"], p["images"]) for p in told["parts"].values()] == [
        ("side", 4),
        ("side", 6),
        ("main", 20),
    ]
    assert told["parts"]["search"]["content_hash"] == made.search.content_hash
    assert told["parts"]["evaluation"]["bytes"] == 20 * 3 * 64 + 20 * 8


def test_digits_keep_their_train_and_test_parts_apart(config):
    made = make_splits("digits", config, calibration_images=50, search_images=100, seed=3)
    assert _sizes(made) == [50, 100, 540]
    assert [p.name for p in made.parts.values()] == ["digits[train]", "digits[train]", "digits[test]"]
    assert made.search.labels.bincount(minlength=10).min() >= 8


def test_npz_with_parts(tmp_path, config, pixels):
    x = pixels(30)
    np.savez(
        tmp_path / "a.npz", x_train=x[:20], y_train=np.zeros(20, int), x_test=x[20:], y_test=np.ones(10, int)
    )
    made = make_splits(str(tmp_path / "a.npz"), config, **SMALL, evaluation_images=8)
    assert [p.labels.unique().tolist() for p in made.parts.values()] == [[0], [0], [1]]
    assert _sizes(made) == [4, 6, 8]


def test_folder_with_parts_and_folder_without(folder, config):
    made = make_splits(str(folder({"train/a": 8, "train/b": 8, "val/a": 3, "val/b": 3})), config, **SMALL)
    assert _sizes(made) == [4, 6, 6]
    assert [p.labels.bincount().tolist() for p in made.parts.values()] == [[2, 2], [3, 3], [3, 3]]
    whole = make_splits(str(folder({"a": 8, "b": 8}, "whole", seed=1)), config, **SMALL)
    assert _sizes(whole) == [4, 6, 6]


def test_two_folders(folder, config):
    made = make_splits(
        str(folder({"a": 3, "b": 3}, "eval")),
        config,
        calibration=str(folder({"a": 8, "b": 8}, "train", seed=1)),
        **SMALL,
    )
    assert _sizes(made) == [4, 6, 6]
    with pytest.raises(DataError, match="do not have the same class folders; they differ in b, c"):
        make_splits(
            str(folder({"a": 3, "b": 3}, "e")),
            config,
            calibration=str(folder({"a": 8, "c": 8}, "t", seed=1)),
            **SMALL,
        )


def test_a_calibration_source_with_parts_gives_its_train_part(folder, config):
    side = folder({"train/a": 12, "val/a": 5}, "side", seed=1)
    made = make_splits(str(folder({"a": 4}, "main")), config, calibration=str(side), **SMALL)
    assert made.calibration.name == f"{side}/train"


def test_images_without_labels(image_set):
    images = image_set(20)
    made = make_splits(ImageSet(images.images, None, images.mean, images.std), **SMALL)
    assert _sizes(made) == [4, 6, 10]
    assert all(part.labels is None for part in made.parts.values())


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            {"calibration_images": 8, "search_images": 8, "evaluation_images": 5},
            "made has 20 images; 21 are needed",
        ),
        ({"calibration_images": 10, "search_images": 10}, "made has 20 images; 21 are needed"),
        ({"calibration_images": 0}, "calibration_images is 0"),
        ({"search_images": -1}, "search_images is -1"),
        ({"evaluation_images": 0}, "evaluation_images is 0"),
    ],
)
def test_too_few_images(image_set, counts, message):
    with pytest.raises(DataError, match=message):
        make_splits(image_set(20), **counts)


def test_too_few_images_in_either_of_two_sources(image_set):
    few, many = image_set(5, seed=1, name="few"), image_set(20, seed=2, name="many")
    with pytest.raises(DataError, match="few has 5 images; 10 are needed"):
        make_splits(many, calibration=few, **SMALL)
    with pytest.raises(DataError, match="few has 5 images; 6 are needed"):
        make_splits(few, calibration=many, **SMALL, evaluation_images=6)


def test_duplicates_that_leave_too_few_are_told(image_set):
    images = image_set(12, duplicates=[(11, 0), (10, 1)])
    with pytest.raises(
        DataError, match="made has 10 images once 2 exact duplicates are left out; 12 are needed"
    ):
        make_splits(images, **SMALL, evaluation_images=2)


def test_sets_prepared_in_different_ways_are_refused(image_set):
    images, other = image_set(20), image_set(20, seed=4)
    with pytest.raises(DataError, match="prepared differently"):
        make_splits(images, calibration=ImageSet(other.images, other.labels, (0.4,) * 3, other.std), **SMALL)


def test_a_name_needs_a_data_config():
    with pytest.raises(DataError, match="digits: without the model's data config"):
        make_splits("digits")
