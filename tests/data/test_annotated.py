"""Folders with COCO's and VOC's boxes and with masks: which pictures, which classes, and where boxes and masks are
after the picture is scaled.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mpsearch.data import Classes, load_images, make_splits
from mpsearch.errors import DataError
from mpsearch.named import require_data_name

CONFIG = {
    "input_size": (3, 8, 8),
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "bilinear",
    "crop_pct": 0.9,
    "crop_mode": "center",
}
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def picture(file, seed=0, size=(16, 32)):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(file)


def coco(folder, part="", count=3, **changes):
    """Pictures of 32 x 16, each with as many boxes as its number."""
    images, boxes = [], []
    for i in range(count):
        picture(folder / "images" / part / f"{i}.png", seed=i + 10 * len(part))
        images.append({"id": i, "file_name": f"{i}.png", "width": 32, "height": 16})
        boxes += [
            {"id": len(boxes) + k, "image_id": i, "category_id": 7, "bbox": [4, 2, 8, 4], "iscrowd": k}
            for k in range(i)
        ]
    file = folder / "annotations" / f"instances_{part or 'all'}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {"images": images, "annotations": boxes, "categories": CATEGORIES, **changes}
    file.write_text(json.dumps(document))
    return folder


def test_boxes_of_coco_follow_the_whole_picture(tmp_path):
    found = load_images(str(coco(tmp_path)), CONFIG)
    assert found.labels.shape == (3, 2, 6) and found.labels.dtype == torch.float32
    assert found.labels[0, :, 0].tolist() == [-1, -1] and found.labels[1, :, 0].tolist() == [1, -1]
    assert found.labels[2].tolist() == [[1, 1, 1, 3, 3, 0], [1, 1, 1, 3, 3, 1]]  # of 32 x 16, at 8 x 8
    again = load_images(str(tmp_path), CONFIG, classes=Classes(folders={"cat": 5, "dog": 9}))
    assert again.labels[2, 0, 0] == 9 and again.content_hash != found.content_hash
    assert found.subset([2]).joined([found.subset([0])]).labels.shape == (2, 2, 6)


def test_parts_of_coco_are_kept_apart(tmp_path):
    coco(coco(tmp_path, "train", 6), "val", 4)
    made = make_splits(str(tmp_path), CONFIG, calibration_images=3, search_images=3)
    assert len(made.evaluation) == 4 and len(made.calibration) == len(made.search) == 3
    assert "instances_val" in made.evaluation.name and "instances_train" in made.search.name


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"categories": [{"id": 3}]}, "categories: name"),
        ({"annotations": [{"image_id": 0, "category_id": 99, "bbox": [0, 0, 1, 1]}]}, "the category 99"),
        (
            {"images": [{"id": 0, "file_name": "x.png", "width": 1, "height": 1}], "annotations": []},
            "no such picture",
        ),
        (
            {"images": [{"id": 0, "file_name": "0.png", "width": 9, "height": 9}], "annotations": []},
            "drawn at 9 x 9",
        ),
        ({"images": [], "annotations": []}, "names no pictures"),
    ],
)
def test_what_is_wrong_with_annotations_is_told(tmp_path, changes, told):
    with pytest.raises(DataError, match=told):
        load_images(str(coco(tmp_path, **changes)), CONFIG)


VOC = """<annotation><size><width>32</width><height>16</height></size>
<object><name>dog</name><bndbox><xmin>5</xmin><ymin>3</ymin><xmax>12</xmax><ymax>6</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>32</xmax><ymax>16</ymax></bndbox></object></annotation>"""


def voc(folder, names=("a", "b")):
    for seed, name in enumerate(names):
        picture(folder / "JPEGImages" / f"{name}.png", seed)
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{name}.xml").write_text(VOC)
    return folder


def test_boxes_of_voc(tmp_path):
    found = load_images(str(voc(tmp_path)), CONFIG)
    assert found.labels[0].tolist() == [[1, 1, 1, 3, 3, 0], [0, 0, 0, 8, 8, 1]]
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    assert len(load_images(f"voc:{tmp_path}", CONFIG)) == 1
    with pytest.raises(DataError, match="lists 'gone'"):
        (lists / "val.txt").write_text("gone\n")
        load_images(f"voc:{tmp_path}", CONFIG)
    (tmp_path / "Annotations" / "a.xml").write_text(
        "<annotation><object><name>x</name></object></annotation>"
    )
    with pytest.raises(DataError, match="no VOC annotation"):
        load_images(f"voc:{tmp_path}", CONFIG)


def masks(folder, pixels, names=("a", "b"), mode="L"):
    for seed, name in enumerate(names):
        picture(folder / "images" / f"{name}.png", seed)
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(folder / "masks" / f"{name}.png")
    return folder


def test_masks_keep_their_classes(tmp_path):
    pixels = np.zeros((16, 32), np.uint8)
    pixels[4:, 16:] = 2
    pixels[:4, :] = 255
    found = load_images(str(masks(tmp_path, pixels)), CONFIG)
    assert found.labels.dtype == torch.uint8 and found.labels.shape == (2, 8, 8)
    assert found.labels[0, :2].unique().tolist() == [255] and found.labels[0, 2:, 4:].unique().tolist() == [2]
    assert len(found.joined([found])) == 4
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 pictures have no mask, such as images/b.png"):
        load_images(str(tmp_path), CONFIG)


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.full((16, 32, 3), 9, np.uint8), "mode RGB"),
        (np.full((9, 9), 1, np.uint8), "9 x 9 pixels and its picture 32 x 16"),
        (np.array([[0, 255] * 16] * 16, np.uint8), "0 and 255 alone"),
    ],
)
def test_what_is_no_mask_is_told(tmp_path, pixels, told):
    with pytest.raises(DataError, match=told):
        load_images(str(masks(tmp_path, pixels, mode="RGB" if pixels.ndim == 3 else "L")), CONFIG)


def test_a_folder_of_both_asks_which(tmp_path):
    masks(coco(tmp_path), np.zeros((16, 32), np.uint8), names=("0", "1", "2"))
    with pytest.raises(DataError, match=f"coco:{tmp_path} or masks:{tmp_path}"):
        load_images(str(tmp_path), CONFIG)
    assert load_images(f"masks:{tmp_path}", CONFIG).labels.shape == (3, 8, 8)
    require_data_name(f"coco:{tmp_path}")
    with pytest.raises(DataError, match="There is no"):
        require_data_name("coco:nowhere")
