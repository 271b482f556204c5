"""What a model and data may be called, told without importing timm or torch: a slip costs no seconds."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import importlib.util
import re
from pathlib import Path

from mpsearch.errors import (
    DataError,
    MissingExtraError,
    ModelError,
    OptionError,
    StudyError,
    UnknownNameError,
)
from mpsearch.usercode import names_code, require_code

HUB = ("hf-hub:", "hf_hub:", "local-dir:")
"""Prefixes of timm's own ids, which it looks up elsewhere."""
HUGGING_FACE = "hf:"
"""Prefix of a model of transformers: an id, or a folder of `save_pretrained`."""
ANNOTATED = ("coco", "voc", "masks")
"""Written before the folder of pictures with boxes or masks, `coco:DIR`, where it is to be said."""
OWN = ("qmlp_cifar", "qmlp_s24_224")
"""Models that mpsearch adds to timm's."""
DATASETS = {
    "hfds": "datasets",
    "hfids": "datasets",
    "tfds": "tensorflow_datasets",
    "wds": "webdataset",
    "torch": "torchvision",
}
"""Prefix of the name of a dataset in timm -> the package that reads it."""
_ONNX = b"\x08"
"""First byte of an ONNX model: the key of its version."""
_LEAST = 500
"""Names below which timm's sources are taken to be written otherwise than known, and nothing is refused."""
_WRITTEN = "A model of your own is written path/to/file.py:function."


def timm_names() -> frozenset[str]:
    """Names that timm's sources register, the deprecated ones included; empty where it is not installed."""
    names, deprecated = _timm_sources()
    return names | deprecated


@functools.cache
def _timm_sources() -> tuple[frozenset[str], frozenset[str]]:
    """Names, and deprecated names."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return frozenset(), frozenset()
    names, deprecated = set[str](), set[str]()
    for path in sorted((Path(spec.origin).parent / "models").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        names.update(re.findall(r"^@register_model\s*\ndef (\w+)\(", text, re.M))
        for block in re.findall(r"^register_model_deprecations\(__name__, \{(.*?)^\}\)", text, re.M | re.S):
            deprecated.update(re.findall(r"^\s*'([\w.]+)':", block, re.M))
    return frozenset(names - deprecated), frozenset(deprecated)


def require_model_name(text: str) -> None:
    """Raises ModelError or UnknownNameError where a text can be no model; files are not opened.

    Args:
        text: Name in timm, perhaps with its weights (`resnet50.a1_in1k`), an id of its hub
            (`hf-hub:timm/...`), a model of transformers (`hf:ID_OR_FOLDER`), `file.py:function`, an exported
            program (`.pt2`) or an ONNX file.
    """
    if names_code(text):
        require_code(text, ModelError)
    elif text.endswith(".pt2"):
        if not Path(text).is_file():
            raise ModelError(f"There is no file {text}. Give a program of torch.export.save.")
    elif text.endswith(".onnx"):
        if not Path(text).is_file():
            raise ModelError(f"There is no file {text}. Give an ONNX model.")
        with Path(text).open("rb") as stream:
            if stream.read(1) != _ONNX:
                raise ModelError(f"{text} is no readable ONNX model. Export it again.")
        if importlib.util.find_spec("onnx2torch") is None:
            raise MissingExtraError("onnx2torch", "onnx-input", "Reading an ONNX model")
    elif Path(text).suffix in (".pt", ".pth", ".safetensors", ".bin"):
        raise ModelError(
            f"{text} is a file of weights. Name the model that they are of, and give them with --weights "
            f"{text}."
        )
    elif text.startswith(HUGGING_FACE):
        _require_hugging_face(text)
    elif not text.startswith(HUB):
        _require_timm(text)


def require_data_name(text: str) -> None:
    """Raises DataError where a text can be no data; files are not opened.

    Args:
        text: `digits`, a file or folder (perhaps with `coco:` or another of `ANNOTATED` before it), a
            dataset's
            name in timm, or `file.py:function`.
    """
    if names_code(text):
        require_code(text, DataError)
    elif text != "digits" and text.partition("/")[0].lower() not in DATASETS:
        place = Path(annotation_of(text)[1]).expanduser()
        if not place.exists():
            raise DataError(
                f"There is no {place}. Give 'digits', a folder or zip of images, an .npz file, a timm "
                "dataset "
                f"({', '.join(f'{prefix}/...' for prefix in DATASETS)}), or file.py:function."
            )


def require_study(folder: Path) -> None:
    """Raises StudyError where a folder holds no study; names the nearest beside it that does."""
    if not (folder / "study.json").is_file():
        raise no_study(folder)


def no_study(folder: Path) -> StudyError:
    """What is wrong with a folder that holds no study."""
    beside = [path.parent.name for path in sorted(folder.parent.glob("*/study.json"))]
    close = difflib.get_close_matches(folder.name, beside, n=1)
    meant = f" Did you mean {folder.parent / close[0]}?" if close else ""
    return StudyError(
        f"There is no study in {folder}.{meant} Name a folder that `mpsearch run` made, such as studies/NAME."
    )


def timm_listed(pattern: str) -> list[str]:
    """Names of timm's models that a pattern matches, numbers in their order; without deprecated ones.

    Raises: UnknownNameError: It matches none.
    """
    found = [name for name in _timm_sources()[0] if fnmatch.fnmatch(name, pattern)]
    if not found:
        raise UnknownNameError("timm model", pattern, _timm_sources()[0])
    return sorted(found, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])


def require_metric_name(text: str) -> None:
    """Raises OptionError where a text names no function of a file."""
    if not names_code(text):
        raise OptionError(
            f"--metric {text!r} names no function. Write path/to/file.py:function, which is called with "
            "(model, samples) and returns a number, higher is better."
        )
    require_code(text, OptionError)


def annotation_of(text: str) -> tuple[str, str]:
    """What is said of how a folder is annotated, one of `ANNOTATED` or nothing, and the folder."""
    kind, colon, place = text.partition(":")
    return (kind, place) if colon and kind in ANNOTATED else ("", text)


def names_texts(text: str) -> bool:
    """Whether data is a file of texts."""
    return Path(text).suffix.lower() in (".csv", ".jsonl")


def _require_hugging_face(text: str) -> None:
    place = text.removeprefix(HUGGING_FACE)
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("transformers", "hf", "A model of Hugging Face")
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise ModelError(f"{place} has no config.json. Give a folder of save_pretrained.")
    if not Path(place).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place):
        raise ModelError(
            f"There is no folder {place}, and it is no id. Write hf:OWNER/NAME, or hf:FOLDER of "
            "save_pretrained."
        )


def _require_timm(text: str) -> None:
    names = timm_names()
    if len(names) >= _LEAST and text.partition(".")[0] not in {*names, *OWN} and text not in names:
        hint = _WRITTEN
        if "/" in text:
            hint = (
                f"timm's models on the hub are written hf-hub:timm/NAME, those of transformers hf:{text}. "
                f"{_WRITTEN}"
            )
        raise UnknownNameError("timm model", text, names, hint)
