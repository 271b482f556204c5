import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from mpsearch.data import digits_split, load_images
from mpsearch.data.digits import TEST_FRACTION
from mpsearch.data.loading import source_parts
from mpsearch.data.sampling import seeded_order
from mpsearch.errors import DataError


def test_seeded_order_is_a_permutation_stratified_in_every_window():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    order = seeded_order(100, labels, 3)
    assert sorted(order) == list(range(100))
    for start in range(0, 100, 10):
        counts = np.bincount(labels[order[start : start + 10]], minlength=3)
        assert np.abs(counts - [6, 3, 1]).max() <= 2
    assert order == seeded_order(100, labels, 3) != seeded_order(100, labels, 4)
    assert sorted(seeded_order(5, None, 0)) == list(range(5))


def test_class_folders_give_labels_in_the_order_of_their_names(folder, config, pixels):
    found = load_images(str(folder({"dog": 2, "cat": 3})), config)
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(found.images[3:].permute(0, 2, 3, 1).numpy(), pixels(2, 0))
    assert (found.mean, found.std) == (config["mean"], config["std"])


def test_images_deeper_below_a_class_folder_belong_to_it(archive, config, pixels, png):
    a, b = map(png, pixels(2))
    found = load_images(
        str(
            archive(
                {
                    "data/x/deep/1.png": a,
                    "data/y/2.PNG": b,
                    "__MACOSX/data/x/._1.png": b"?",
                    "data/y/notes.txt": b"?",
                }
            )
        ),
        config,
    )
    assert found.labels.tolist() == [0, 1]


def test_zip_with_a_label_file(archive, config, pixels, png):
    a, b, c = pixels(3)
    path = archive(
        {
            "a.png": png(a),
            "sub/b.png": png(b),
            "c.png": png(c),
            "labels.csv": "file,label\nc.png,7\na.png,3\nsub/b.png,0\n",
        }
    )
    found = load_images(str(path), config)
    assert found.labels.tolist() == [7, 3, 0]
    assert np.array_equal(found.images[0].permute(1, 2, 0).numpy(), c)
    assert found.name == str(path)


def test_flat_folder_with_and_without_a_label_file(tmp_path, config, pixels, png):
    for i, image in enumerate(pixels(3)):
        (tmp_path / f"{i}.png").write_bytes(png(image))
    assert load_images(str(tmp_path), config).labels is None
    (tmp_path / "labels.csv").write_text(
        "label,file,note\r\n1,0.png,x\r\n2,1.png,\r\n0,2.png,\r\n", encoding="utf-8-sig"
    )
    assert load_images(str(tmp_path), config).labels.tolist() == [1, 2, 0]


def test_a_folder_and_a_zip_of_it_give_the_same_set(folder, archive, config):
    root = folder({"cat": 3, "dog": 2})
    zipped = archive({p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.png")})
    assert load_images(str(root), config).content_hash == load_images(str(zipped), config).content_hash


def test_parts_of_a_folder_share_their_classes(folder, config):
    root = folder({"train/a": 1, "train/b": 1, "train/c": 2, "val/a": 1, "val/c": 2})
    assert source_parts(str(root)) == {"train", "test"}
    assert load_images(str(root), config).labels.tolist() == [0, 2, 2]
    assert load_images(str(root), config, split="validation").labels.tolist() == [0, 2, 2]
    assert load_images(str(root), config, split="train").labels.tolist() == [0, 1, 2, 2]
    with pytest.raises(DataError, match="no part 'gallery'; it has the parts train, test"):
        load_images(str(root), config, split="gallery")


def test_a_link_to_a_folder_above_ends(folder, config):
    root = folder({"a": 1, "b": 1})
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    assert len(load_images(str(root), config)) == 2


def test_a_limit_is_a_seeded_stratified_subset_of_what_is_there(folder, config):
    root = str(folder({"a": 20, "b": 20}))
    whole = load_images(root, config)
    first = load_images(root, config, limit=10, seed=1)
    assert first.labels.bincount().tolist() == [5, 5]
    assert set(first.sample_hashes) <= set(whole.sample_hashes) and len(set(first.sample_hashes)) == 10
    assert load_images(root, config, limit=10, seed=1).content_hash == first.content_hash
    assert load_images(root, config, limit=10, seed=2).content_hash != first.content_hash
    assert set(load_images(root, config, limit=100).sample_hashes) == set(whole.sample_hashes)


def test_only_the_chosen_images_are_decoded_and_progress_is_told(folder, config):
    root = folder({"a": 10})
    kept = {f"{i:03d}.png" for i in seeded_order(10, np.zeros(10, np.int64), 0)[:4]}
    for path in (root / "a").iterdir():
        if path.name not in kept:
            path.write_bytes(b"damaged")
    told = []
    assert len(load_images(str(root), config, limit=4, on_image=lambda *done: told.append(done))) == 4
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(DataError, match=r"a/00\d\.png is not a readable image"):
        load_images(str(root), config)


def test_grey_models_read_grey_images(folder, config):
    found = load_images(
        str(folder({"a": 2})), config | {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}
    )
    assert found.images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_npz_layouts(tmp_path, config, pixels, layout):
    x = pixels(4)
    stored = {"NHWC": x, "NCHW": x.transpose(0, 3, 1, 2), "NHW": x[..., 0]}[layout]
    np.savez(tmp_path / "a.npz", images=stored, labels=np.array([[3], [1], [2], [0]], np.int32))
    found = load_images(str(tmp_path / "a.npz"), config)
    expected = np.repeat(x[..., :1], 3, -1) if layout == "NHW" else x
    assert np.array_equal(found.images.permute(0, 2, 3, 1).numpy(), expected)
    assert found.labels.tolist() == [3, 1, 2, 0]


def test_npz_parts(tmp_path, config, pixels):
    path = str(tmp_path / "a.npz")
    x = pixels(6)
    np.savez_compressed(
        path, x_train=x[:4], y_train=np.arange(4, dtype=np.uint8), x_test=x[4:], y_test=np.array([8, 9])
    )
    assert load_images(path, config).labels.tolist() == [8, 9]
    assert load_images(path, config, split="train").labels.tolist() == [0, 1, 2, 3]
    assert source_parts(path) == {"train", "test"}
    np.savez(path, x=x)
    assert load_images(path, config).labels is None
    assert source_parts(path) == set()
    with pytest.raises(DataError, match="has the arrays x, not x_train"):
        load_images(path, config, split="train")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 8, 8, 3))}, "type float64; images must be uint8"),
        ({"x": np.zeros((2, 8, 8, 4), np.uint8)}, "C 1 or 3"),
        ({"x": np.zeros((2, 8), np.uint8)}, "images are N x H x W"),
        ({"x": np.zeros((2, 3, 8, 3), np.uint8)}, "cannot be told"),
        ({"x": np.zeros((0, 8, 8, 3), np.uint8)}, "no images"),
        ({"x": np.zeros((2, 8, 8, 3), np.uint8), "y": np.zeros(3, int)}, "one for each of 2 images"),
        ({"x": np.zeros((2, 8, 8, 3), np.uint8), "y": np.eye(2)}, "not one-hot"),
        ({"x": np.zeros((2, 8, 8, 3), np.uint8), "y": np.array([0, -1])}, "label -1"),
        ({"pictures": np.zeros((2, 8, 8, 3), np.uint8)}, "has the arrays pictures"),
        ({"x": np.array([None, 1], dtype=object)}, "cannot be read"),
    ],
)
def test_npz_that_does_not_fit_is_refused(tmp_path, config, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_images(str(tmp_path / "a.npz"), config)


def test_npz_that_is_none_is_refused(tmp_path, config):
    path = tmp_path / "a.npz"
    path.write_bytes(b"not an archive")
    with pytest.raises(DataError, match=r"a\.npz is not a readable \.npz"):
        load_images(str(path), config)
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(DataError, match="a single array"):
        load_images(str(path), config)


def test_digits_are_stretched_not_cropped(config):
    config |= {"input_size": (3, 32, 32), "crop_pct": 0.5}
    found = load_images("digits", config)
    _, test = digits_split()
    pixels, labels = load_digits(return_X_y=True)
    assert len(found) == len(test) == 540
    assert found.labels.tolist() == labels[test].tolist()
    assert torch.equal(found.images[:, 0], found.images[:, 2])
    small = Image.fromarray(np.rint(pixels[test[0]].reshape(8, 8) * 255 / 16).astype(np.uint8))
    assert np.array_equal(
        found.images[0, 0].numpy(), np.asarray(small.resize((32, 32), Image.Resampling.BILINEAR))
    )


def test_digits_of_the_native_size_keep_their_range(config):
    found = load_images("digits", config, split="train")
    assert (int(found.images.min()), int(found.images.max())) == (0, 255)
    assert len(found) == 1257


def test_digits_split_is_stratified_disjoint_and_fixed_by_seed():
    train, test = digits_split()
    _, labels = load_digits(return_X_y=True)
    assert sorted([*train, *test]) == list(range(1797))
    assert np.abs(np.bincount(labels[test]) - TEST_FRACTION * np.bincount(labels)).max() <= 1
    assert np.array_equal(digits_split()[1], test)
    assert not np.array_equal(digits_split(1)[1], test)
    with pytest.raises(DataError, match="digits has no part 'b'"):
        load_images(
            "digits",
            {
                "input_size": (3, 8, 8),
                "interpolation": "bilinear",
                "crop_pct": 1,
                "crop_mode": "center",
                "mean": (0.5,) * 3,
                "std": (0.5,) * 3,
            },
            split="b",
        )


@pytest.mark.parametrize(
    ("label_file", "message"),
    [
        ("file,label\na.png,0\n", "no label for 1 of 2 images, such as 'b.png'"),
        ("file,label\na.png,0\nb.png,1\nc.png,1\n", "names 1 images that are not there, such as 'c.png'"),
        ("file,label\na.png,0\nb.png,cat\n", "label 'cat' for 'b.png'"),
        ("file,label\na.png,0\nb.png,-1\n", "label '-1'"),
        ("file,label\na.png,0\nb.png\n", "label None"),
        ("file,label\na.png,0\nb.png,99999999999999999999\n", "whole numbers"),
        ("file,label\na.png,0\na.png,1\nb.png,1\n", "names 'a.png' 2 times"),
        ("name,class\na.png,0\nb.png,1\n", "has name,class; it needs the header file,label"),
        ("file,label\n", "no rows"),
        ("file,label\na.png,0\n../a.png,1\nb.png,0\n", "not there"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_label_files_that_do_not_fit_are_refused(archive, config, pixels, png, label_file, message):
    a, b = map(png, pixels(2))
    with pytest.raises(DataError, match=message):
        load_images(str(archive({"a.png": a, "b.png": b, "labels.csv": label_file})), config)


def test_folders_that_do_not_fit_are_refused(tmp_path, folder, config, pixels, png):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    for name in ("empty", "text"):
        with pytest.raises(DataError, match=f"{name} holds no images"):
            load_images(str(tmp_path / name), config)
    mixed = folder({"a": 1, "b": 1})
    (mixed / "stray.png").write_bytes(png(pixels(1)[0]))
    with pytest.raises(DataError, match=r"1 images beside them, such as stray\.png"):
        load_images(str(mixed), config)
    (mixed / "stray.png").rename(mixed / "a" / "stray.png")
    (mixed / "void").mkdir()
    with pytest.raises(DataError, match="class folder 'void' holds no images"):
        load_images(str(mixed), config)
    with pytest.raises(DataError, match="as text the class folders 10, 9"):
        load_images(str(folder({"9": 1, "10": 1}, "numbers")), config)
    with pytest.raises(DataError, match="parts test, train, val"):
        load_images(str(folder({"train/a": 1, "val/a": 1, "test/a": 1}, "three")), config)
    with pytest.raises(DataError, match="no part 'train'; it has no train and val folders"):
        load_images(str(folder({"a": 1}, "whole")), config, split="train")


@pytest.mark.parametrize("spec", ["nowhere", "nowhere.zip", "notes.txt"])
def test_what_is_not_there_is_refused_with_what_would_be(tmp_path, config, spec):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"There is no .*'digits', a folder or zip|is a \.txt file"):
        load_images(str(tmp_path / spec), config)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_of_nothing_is_refused(folder, config, limit):
    with pytest.raises(DataError, match=f"limit of {limit}"):
        load_images(str(folder({"a": 1})), config, limit=limit)


@pytest.mark.parametrize("member", ["../out.png", "/etc/out.png", "a/../../out.png", "C:/out.png"])
def test_a_zip_member_that_leads_out_is_refused(archive, config, pixels, png, member):
    with pytest.raises(DataError, match="leads out of the archive"):
        load_images(str(archive({"a/1.png": png(pixels(1)[0]), member: b"x"})), config)


def test_a_zip_bomb_is_refused_by_its_header_and_by_its_content(archive, config, monkeypatch, pixels, png):
    path = archive({"a/1.png": png(pixels(1)[0]), "a/2.png": bytes(5000)})
    monkeypatch.setattr("mpsearch.data.sources.files.MAX_FILE_BYTES", 4000)
    with pytest.raises(DataError, match=r"'a/2\.png' of 5000 bytes unpacked; at most 4000"):
        load_images(str(path), config)
    lying = path.read_bytes().replace((5000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(lying)
    with pytest.raises(DataError, match=r"'a/2\.png'"):
        load_images(str(path), config)


def test_a_damaged_zip_is_refused(tmp_path, archive, config, pixels, png):
    path = archive({"a/1.png": png(pixels(1)[0])})
    data = bytearray(path.read_bytes())
    at = data.index(b"a/1.png") + 30
    data[at : at + 20] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"images\.zip: the member 'a/1\.png' cannot be unpacked"):
        load_images(str(path), config)
    path.write_bytes(b"no zip at all")
    with pytest.raises(DataError, match=r"images\.zip is not a readable zip"):
        load_images(str(path), config)


def test_a_zip_with_two_members_of_one_name_is_refused(tmp_path, config):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("a.png", b"1")
        z.writestr("a.png", b"2")
    with pytest.raises(DataError, match=r"two members called 'a\.png'"):
        load_images(str(tmp_path / "a.zip"), config)


def test_a_damaged_image_in_a_zip_is_named(archive, config, pixels, png):
    stream = io.BytesIO()
    Image.fromarray(pixels(1, size=(64, 64))[0]).save(stream, "JPEG")
    with pytest.raises(DataError, match=r"images\.zip/b/2\.jpg is not a readable image"):
        load_images(str(archive({"a/1.png": png(pixels(1)[0]), "b/2.jpg": stream.getvalue()[:900]})), config)
