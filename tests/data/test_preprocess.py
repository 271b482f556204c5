import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.datasets.folder import default_loader

from mpsearch.data import ImageSet
from mpsearch.data.preprocess import Preprocessor, as_mode, decode
from mpsearch.errors import DataError


@pytest.fixture
def photo():
    """40 x 30 with structure at several scales, so that another interpolation gives other pixels."""
    y, x = np.mgrid[0:30, 0:40]
    return Image.fromarray(np.stack([x * 6, y * 8, (x * y) % 256], -1).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("size", "crop_pct"), [((3, 16, 16), 0.875), ((3, 24, 16), 1.0), ((3, 48, 48), 0.95), ((1, 16, 16), 0.9)]
)
def test_inputs_equal_timms_own_transform_to_the_last_bit(
    photo, config, interpolation, crop_mode, size, crop_pct
):
    channels = size[0]
    config |= {
        "input_size": size,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }
    config |= {"mean": config["mean"][:channels], "std": config["std"][:channels]}
    expected = create_transform(**config, is_training=False)(photo.convert("RGB" if channels == 3 else "L"))
    found = ImageSet(
        Preprocessor.from_config(config)(photo, "photo")[None], None, config["mean"], config["std"]
    ).inputs()[0]
    assert torch.equal(found, expected)


def test_timms_resolved_config_is_read():
    config = resolve_data_config(
        pretrained_cfg={
            "input_size": (3, 32, 32),
            "crop_pct": 0.9,
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "interpolation": "bilinear",
        }
    )
    made = Preprocessor.from_config(config)
    assert (made.input_size, made.crop_pct, made.interpolation, made.mean) == (
        (3, 32, 32),
        0.9,
        "bilinear",
        (0.5,) * 3,
    )


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(8, 8), (6, 8)])
def test_an_image_of_the_input_size_stays_byte_identical(pixels, config, crop_mode, size):
    array = pixels(1, size=size)[0]
    made = Preprocessor.from_config(config | {"input_size": (3, *size), "crop_mode": crop_mode})
    assert np.array_equal(made(Image.fromarray(array), "x").numpy(), array.transpose(2, 0, 1))


def test_grey_palette_and_transparent_pictures_become_rgb(config):
    made = Preprocessor.from_config(config)
    grey = Image.fromarray(np.full((8, 8), 70, np.uint8))
    clear = Image.fromarray(np.full((8, 8, 4), 90, np.uint8))
    palette = Image.fromarray(np.full((8, 8, 3), 50, np.uint8)).convert("P")
    shown = int(np.asarray(palette.convert("RGB"))[0, 0, 0])
    palette.info["transparency"] = b"\x00" * 256
    assert [int(made(i, "x").unique()) for i in (grey, clear, palette)] == [70, 90, shown]


@pytest.mark.parametrize(
    ("array", "mode"), [(np.full((8, 8), 700, np.int32), "I"), (np.full((8, 8), 0.5, np.float32), "F")]
)
def test_more_than_8_bits_are_not_clipped_in_silence(array, mode):
    with pytest.raises(DataError, match=f"deep.tif has 32 bits a channel .mode {mode}"):
        as_mode(Image.fromarray(array), "RGB", "deep.tif")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": (3, 8)}, "input_size"),
        ({"input_size": (3, 8, 0)}, "positive whole numbers"),
        ({"input_size": (4, 8, 8)}, "asks for 4 channels"),
        ({"input_size": (1, 8, 8)}, "one value for each of 1 channels"),
        ({"crop_pct": 0.0}, "crop_pct is 0.0"),
        ({"crop_pct": 1.5}, "crop_pct is 1.5"),
        ({"interpolation": "sinc"}, "no transform for interpolation 'sinc'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(config, change, message):
    with pytest.raises(DataError, match=message):
        Preprocessor.from_config(config | change)


def test_a_config_without_an_entry_is_refused(config):
    del config["crop_pct"], config["std"]
    with pytest.raises(DataError, match="has no crop_pct, std"):
        Preprocessor.from_config(config)


def _png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(60000, 60000), (11000, 11000), (12000, 12000)])
def test_a_decompression_bomb_is_refused_before_it_unpacks(size):
    with pytest.raises(DataError, match=r"bomb\.png unpacks to too many pixels"):
        decode(_png_header(*size), "bomb.png")


def test_more_pixels_than_the_limit_are_refused_whatever_pillow_thinks(photo, monkeypatch):
    stream = io.BytesIO()
    photo.save(stream, "PNG")
    monkeypatch.setattr("mpsearch.data.preprocess.MAX_PIXELS", 40 * 30 - 1)
    with pytest.raises(DataError, match=r"40 x 30 pixels\); at most 1199"):
        decode(stream.getvalue(), "large.png")


@pytest.mark.parametrize("kind", ["EPS", "SGI", "TGA", "PCX"])
def test_formats_that_are_not_needed_stay_shut(photo, kind):
    stream = io.BytesIO()
    photo.save(stream, kind)
    with pytest.raises(DataError, match="is not a readable image"):
        decode(stream.getvalue(), "x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        b"\x89PNG\r\n\x1a\n" + b"\xff" * 40,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_what_is_not_an_image_is_refused_by_name(data):
    with pytest.raises(DataError, match=r"odd\.png is not a readable image"):
        decode(data, "odd.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of a damaged TIFF before it gives up
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_truncated_image_is_refused_unless_no_pixel_is_lost(photo, kind):
    stream = io.BytesIO()
    photo.save(stream, kind)
    data = stream.getvalue()
    whole, refused = np.asarray(decode(data, "x")), 0
    lengths = range(0, len(data), max(1, len(data) // 100))
    for length in lengths:
        try:
            assert np.array_equal(np.asarray(decode(data[:length], "cut.img")), whole)
        except DataError as error:
            refused += "cut.img" in str(error)
    assert refused > 0.9 * len(lengths)


def _saved(kind: str, path):
    ramp = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    image = Image.fromarray(ramp)
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter when it is shown
        image.save(path, exif=exif)
    elif kind in ("L", "LA", "RGBA", "CMYK", "1", "P"):
        image.convert(kind).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("L", "png"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("1", "png"),
        ("P", "png"),
        ("CMYK", "jpg"),
        ("exif", "jpg"),
    ],
)
def test_pictures_are_read_as_torchvision_reads_them(kind, suffix, tmp_path):
    path = _saved(kind, tmp_path / f"picture.{suffix}")
    read = as_mode(decode(path.read_bytes(), "picture"), "RGB", "picture")
    assert np.array_equal(np.asarray(read), np.asarray(default_loader(str(path))))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_become_8_by_their_range(suffix, tmp_path):
    values = np.array([[0, 128, 129], [257, 700, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    read = as_mode(decode((tmp_path / f"deep.{suffix}").read_bytes(), "deep"), "RGB", "deep")
    assert np.asarray(read)[..., 1].tolist() == [[0, 0, 1], [1, 3, 255]]


def test_what_is_done_with_images_is_told(config):
    made = Preprocessor.from_config(
        config | {"input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bilinear"}
    )
    assert str(made).startswith("resized to 32 x 32 (bilinear), RGB, mean ")
    made = Preprocessor.from_config(config | {"input_size": (3, 224, 224), "crop_pct": 0.875})
    assert str(made).startswith("224 x 224, cut out of 1.14 times that (")
