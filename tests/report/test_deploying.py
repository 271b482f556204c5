"""Code to paste: it runs, prepares pictures as the run did, and builds the model that it needs."""

import ast
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from saved_study import MANIFEST, save, study_files

from mpsearch.data.preprocess import Preprocessor
from mpsearch.report.deploying import snippets_of
from mpsearch.report.reads import Pictures, reads_of
from mpsearch.report.saved import read_saved

SQUARES = [
    Pictures((3, 24, 24), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.875, "center"),
    Pictures((1, 16, 16), (0.5,), (0.5,), "bilinear", 1.0, "squash"),
    Pictures((3, 16, 24), (0.5, 0.5, 0.5), (0.25, 0.5, 0.75), "bilinear", 0.9, "center"),
]


@pytest.mark.parametrize("pictures", SQUARES, ids=lambda p: f"{p.crop_mode}-{p.size[1]}x{p.size[2]}")
@pytest.mark.parametrize("size", [(53, 40), (40, 61)])
def test_pictures_are_prepared_as_in_the_run(
    pictures: Pictures, size: tuple[int, int], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    space: dict = {}
    exec(pictures.code(), space)
    found = space["prepared"](tmp_path / "picture.png")
    prepare = Preprocessor(
        pictures.size,
        pictures.interpolation,
        pictures.crop_pct,
        pictures.crop_mode,
        pictures.mean,
        pictures.std,
    )
    expected = prepare(Image.open(tmp_path / "picture.png"), "picture").numpy().astype(np.float32) / 255
    mean, std = (np.float32(v)[:, None, None] for v in (pictures.mean, pictures.std))
    assert found.shape == (1, *pictures.size) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], (expected - mean) / std, atol=1e-5)


def codes(tmp_path: Path, **manifest: object) -> dict[str, str]:
    contents = study_files(timed=True, labelled=True)
    save(tmp_path, contents)
    (tmp_path / "artifact" / "artifact.json").write_text(__import__("json").dumps(MANIFEST | manifest))
    found = {snippet.title: snippet.code for snippet in snippets_of(read_saved(tmp_path))}
    for code in found.values():
        ast.parse(code)
    return found


def test_how_each_kind_of_model_is_built(tmp_path: Path) -> None:
    file = f"'{tmp_path}/artifact/model.safetensors'"
    found = codes(tmp_path)["PyTorch"]
    assert "from nets import small" in found and f"mpsearch.load({file}, model=small(width=8))" in found
    for source, call in (
        ({"kind": "timm", "name": "resnet18", "kwargs": {}}, f"mpsearch.load({file})"),
        (
            {"kind": "factory", "name": "nets.py:small", "kwargs": {}},
            f"mpsearch.load({file}, model='nets.py:small')",
        ),
        ({"kind": "program", "name": "net.pt2", "kwargs": {}}, f"mpsearch.load({file}, model='net.pt2')"),
        ({"kind": "module", "name": "Net", "kwargs": {}}, f"mpsearch.load({file}, model=float_model)"),
    ):
        assert call in codes(tmp_path, source=source)["PyTorch"]


def test_inputs_that_are_no_pictures(tmp_path: Path) -> None:
    """Tokens; pictures that the user prepared; several tensors, by name."""
    tokens = codes(tmp_path, input_shape=[128])["ONNX Runtime"]
    assert "prepared" not in tokens and "samples: samples N x 128 float32" in tokens
    own = codes(tmp_path, source={"kind": "module", "name": "Net", "kwargs": {}})["ONNX Runtime"]
    assert "prepared" not in own
    leaves = [[name, [128], "int64", True] for name in ("ids", "mask")]  # as a form is written
    several = codes(tmp_path, form={"inputs": leaves})["ONNX Runtime"]
    assert "session.run(None, {'ids': ids, 'mask': mask})" in several


def test_without_a_manifest_nothing_is_made_up(tmp_path: Path) -> None:
    save(tmp_path, study_files(timed=True, labelled=True))
    (tmp_path / "artifact" / "artifact.json").unlink()
    saved = read_saved(tmp_path)
    assert reads_of(saved) is None and "prepared" not in snippets_of(saved)[0].code
