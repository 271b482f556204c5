"""Which class a folder stands for: never another one than the model was trained with."""

import json

import numpy as np
import pytest

from mpsearch.data import Classes, load_images, make_splits, read_class_map
from mpsearch.errors import DataError

TWELVE = {f"class{k}": 2 for k in range(1, 13)}


def by_folder(found, root):
    """Folder -> label, by the pixels of its first image."""
    from PIL import Image

    at = {
        image.permute(1, 2, 0).numpy().tobytes(): int(label)
        for image, label in zip(found.images, found.labels, strict=True)
    }
    return {p.name: at[np.asarray(Image.open(p / "000.png")).tobytes()] for p in root.iterdir()}


def test_a_timm_model_gets_the_labels_that_timm_gives(folder, config):
    from timm.data.readers.reader_image_folder import find_images_and_targets

    root = folder(TWELVE)
    found = by_folder(load_images(str(root), config, classes=Classes(12, timm=True)), root)
    assert found == find_images_and_targets(str(root))[1]
    assert found["class2"] == 1 and found["class10"] == 9


def test_names_of_the_classes_are_kept_in_the_order_of_their_labels(folder, config):
    """By folder, in the order that the model's classes have; of a map that has one for each; else none."""
    root = str(folder(TWELVE))
    made = make_splits(root, config, classes=Classes(12, timm=True))
    assert made.classes == tuple(f"class{k}" for k in range(1, 13))
    assert made.to_json()["classes"] == list(made.classes)
    turned = {f"class{k}": 12 - k for k in range(1, 13)}
    mapped = make_splits(root, config, classes=Classes(12, folders=turned))
    assert mapped.classes == tuple(f"class{k}" for k in range(12, 0, -1))
    shared = make_splits(root, config, classes=Classes(12, folders={**turned, "class1": 0}))
    assert shared.classes == () and "classes" not in shared.to_json()


@pytest.mark.parametrize("names", [("class2", "class10"), ("b", "C", "a", "D"), ("x1_9", "x1_10")])
def test_an_order_in_doubt_is_refused(folder, config, names):
    root = str(folder(dict.fromkeys(names, 1)))
    for classes in (None, Classes(), Classes(len(names))):
        with pytest.raises(
            DataError, match=r"which of them the model was trained with is not known.*--class-map"
        ):
            load_images(root, config, classes=classes)
    mapped = load_images(
        root, config, classes=Classes(9, folders={name: 3 + i for i, name in enumerate(names)})
    )
    assert sorted(mapped.labels.tolist()) == list(range(3, 3 + len(names)))


def test_folders_that_have_no_order_in_timm_are_refused(folder, config):
    with pytest.raises(DataError, match=r"'01' and '1' have no order in timm.*--class-map"):
        load_images(str(folder({"01": 1, "1": 1, "2": 1})), config, classes=Classes(3, timm=True))


@pytest.mark.parametrize(("left", "outputs"), [(11, 12), (12, 11), (12, 1000)])
@pytest.mark.parametrize("timm", [True, False])
def test_folders_that_are_not_as_many_as_the_classes_are_refused(folder, config, left, outputs, timm):
    root = str(folder({f"c{k:02d}": 1 for k in range(left)}))
    with pytest.raises(
        DataError, match=f"{left} class folders and the model {outputs} classes.*--class-map FILE"
    ):
        load_images(root, config, classes=Classes(outputs, timm))


def test_a_class_map_gives_a_part_of_the_classes_their_labels(folder, config, tmp_path):
    root = folder({name: count for name, count in TWELVE.items() if name != "class3"})
    (root / "void").mkdir()
    file = tmp_path / "map.json"
    file.write_text(json.dumps({f"class{k}": k - 1 for k in range(1, 13)} | {"void": 0}))
    classes = Classes(12, folders=read_class_map(file))
    found = load_images(str(root), config, classes=classes)
    assert sorted(set(found.labels.tolist())) == [0, 1, *range(3, 12)]
    other = folder({"class2": 4, "class5": 4}, name="other", seed=9)
    made = make_splits(
        str(root), config, calibration=str(other), calibration_images=4, search_images=4, classes=classes
    )
    assert set(made.calibration.labels.tolist()) == {1, 4}
    with pytest.raises(DataError, match="folder 'class11' has the label 10; the model has 10 classes"):
        load_images(str(root), config, classes=Classes(10, folders=classes.folders))
    with pytest.raises(DataError, match="class folder 'class1', which the class map does not name"):
        load_images(str(root), config, classes=Classes(12, folders={"class2": 1}))


@pytest.mark.parametrize(
    "text", ["cat,0\ndog,4\n", "folder,class\ncat,0\n\ndog,4\n", '\ufeff"cat", 0\ndog,4']
)
def test_a_class_map_may_be_csv(tmp_path, text):
    (tmp_path / "map.csv").write_text(text)
    assert read_class_map(tmp_path / "map.csv") == {"cat": 0, "dog": 4}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "cat,0,1\n", "has not two fields"),
        ("m.csv", "cat,0\ndog,x\n", "class 'x' for 'dog'"),
        ("m.csv", "cat,0\ncat,1\n", "'cat' twice"),
        ("m.csv", "cat,-1\n", "class -1 for 'cat'"),
        ("m.csv", "", "names no folder"),
        ("m.json", "[1, 2]", "not an object"),
        ("m.json", "{", "cannot be read"),
        ("m.json", '{"cat": 0, "cat": 1}', "'cat' twice"),
        ("m.json", '{"cat": true}', "class True for 'cat'"),
        ("m.json", '{"cat": 1.5}', "class 1.5 for 'cat'"),
    ],
)
def test_a_class_map_that_cannot_be_used_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_class_map(tmp_path / name)


def test_a_class_map_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no\.json cannot be read \(No such file"):
        read_class_map(tmp_path / "no.json")


def test_labels_that_the_model_has_no_output_for_are_refused_before_an_image_is_read(
    tmp_path, config, archive, pixels
):
    np.savez(tmp_path / "a.npz", x=pixels(10), y=np.arange(5, 15))
    with pytest.raises(
        DataError, match=r"a\.npz\[x\], image 5 has the label 10; the model has 10 classes, 0 to 9"
    ):
        load_images(str(tmp_path / "a.npz"), config, classes=Classes(10))
    broken = archive(
        {"a.png": b"no image", "b.png": b"none", "labels.csv": b"file,label\na.png,3\nb.png,12\n"}
    )
    with pytest.raises(DataError, match=r"labels\.csv: b\.png has the label 12; the model has 10 classes"):
        make_splits(str(broken), config, classes=Classes(10))
