"""Models of Hugging Face's transformers, by id or from a folder of `save_pretrained`: the class that the
checkpoint was saved from, and what its images look like.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpsearch.errors import MissingExtraError, ModelError
from mpsearch.foreign import first_line
from mpsearch.named import HUGGING_FACE

_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, as a preprocessor's config has them."""


def load_hugging_face(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """A model with its weights, read from safetensors alone; no code of a checkpoint is run.

    Args:
        name: `hf:ID` or `hf:FOLDER`.
        kwargs: `auto_class`, such as `AutoModelForTokenClassification`, in the place of the class that the
            checkpoint names; others are entries of its config.

    Raises:
        MissingExtraError: transformers is not installed.
        ModelError: There is no such model, or it cannot be built.
    """
    transformers, place = _package(), name.removeprefix(HUGGING_FACE)
    entries = {key: value for key, value in kwargs.items() if key != "auto_class"}
    local = Path(place).is_dir()
    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(place, local_files_only=local, **entries)
            kind = _class(transformers, config, kwargs.get("auto_class"))
            module: nn.Module = kind.from_pretrained(
                place,
                config=config,
                local_files_only=local,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="eager",  # the same way for every batch, padded or not
            )
    except ModelError:
        raise
    except Exception as error:  # the hub and the constructors raise errors of several libraries
        raise ModelError(
            f"{name} cannot be loaded: {first_line(error)} Give an id, or a folder of save_pretrained with "
            "config.json and model.safetensors."
        ) from error
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False
    return module


def hugging_face_images(name: str) -> dict[str, Any]:
    """What the images of a model look like, in timm's words, from its `preprocessor_config.json`; empty
    where it has none.
    """
    place = name.removeprefix(HUGGING_FACE)
    file: Any = Path(place) / "preprocessor_config.json"
    if not Path(place).is_dir():
        file = _package().utils.cached_file(
            place, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False
        )
    if file is None or not Path(file).is_file():
        return {}
    about = json.loads(Path(file).read_text())
    sizes = {
        key: _sides(about[key]) for key in ("size", "crop_size") if isinstance(about.get(key), dict | int)
    }
    cropped = bool(about.get("do_center_crop")) and "crop_size" in sizes
    size = sizes.get("crop_size" if cropped else "size")
    found: dict[str, Any] = {"interpolation": _INTERPOLATIONS.get(int(about.get("resample", 2)), "bilinear")}
    if about.get("do_normalize", True) and "image_mean" in about:
        found |= {"mean": tuple(about["image_mean"]), "std": tuple(about["image_std"])}
    else:
        found |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if size is not None:
        whole = min(sizes.get("size", size))
        found |= {"input_size": (len(found["mean"]), *size), "crop_pct": min(1.0, min(size) / whole)}
        found["crop_mode"] = "center" if cropped else "squash"
    return found


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    edge = size.get("shortest_edge", 0)
    return int(size.get("height", edge)), int(size.get("width", edge))


def _class(transformers: Any, config: Any, asked: str | None) -> Any:
    """The class that was asked for, else the one that the checkpoint was saved from."""
    name = asked or next(iter(config.architectures or ()), "AutoModel")
    kind = getattr(transformers, name, None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        raise ModelError(
            f"transformers has no class {name!r}. Name one that it has with --model-arg auto_class=..., "
            "such as "
            "AutoModelForSequenceClassification or AutoModelForImageClassification."
        )
    return kind


def _package() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", "A model of Hugging Face", error) from None
    return transformers


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without what it tells of weights that are left over, and without bars."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
