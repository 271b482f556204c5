"""How images are prepared: what the model says, what was asked for over it, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpsearch.data import Classes, NestedSet, Splits, preparation
from mpsearch.models import LoadedModel
from mpsearch.named import names_texts
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.progress import Progress


def image_settings(model: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """What images look like to a model: its own data config, and over it what was asked for."""
    asked = {name: getattr(config, name) for name in ("mean", "std", "interpolation")}
    found = {**model, **{name: value for name, value in asked.items() if value is not None}}
    if config.input_size is not None:
        one = len(config.input_size) == 1
        size = (model["input_size"][0], *config.input_size * 2) if one else config.input_size
        found |= {"input_size": size, "crop_pct": 1.0}  # images of that size stay as they are
        for name in ("mean", "std"):
            if asked[name] is None and len(model[name]) != size[0] and len(set(model[name])) == 1:
                found[name] = model[name][:1] * size[0]
    return found


def tell_images(
    loaded: LoadedModel, splits: Splits, config: RunConfig, progress: Progress, classes: Classes
) -> None:
    """Say how images were prepared; where the model does not know how, what would change it."""
    if config.data is not None and names_texts(config.data):
        progress.say(f"Texts: {splits.evaluation.name}.")
    if config.data is None or isinstance(splits.evaluation, NestedSet):
        return
    progress.say(f"Images: {preparation(config.data, loaded.data_config, classes)}.")
    says = getattr(loaded.module, "pretrained_cfg", None) or getattr(loaded.module, "default_cfg", None)
    if not says and None in (config.input_size, config.mean, config.std):
        progress.say(
            "Warning: the model does not say what its images look like, so timm's ImageNet defaults hold "
            "where "
            "nothing is given. Say --input-size, --mean, --std and --interpolation, or set "
            "model.pretrained_cfg."
        )
