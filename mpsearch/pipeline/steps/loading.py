"""The model and the images that the settings name, read and made a subject; what cannot be read is told
before anything is downloaded or fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mpsearch.accelerator import find_device
from mpsearch.data import (
    Classes,
    Splits,
    Takes,
    make_splits,
    read_class_map,
    read_texts,
    require_source,
    require_texts,
)
from mpsearch.errors import ModelError
from mpsearch.evaluate import AUTO, UserMetric, made
from mpsearch.models import (
    LoadedModel,
    kind_of,
    load_model,
    require_same_as_file,
    require_weights,
    weights_hash,
)
from mpsearch.named import names_texts
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.embedded import default_model
from mpsearch.pipeline.steps.pictures import image_settings, tell_images
from mpsearch.pipeline.steps.subject import Subject, kept_images, make_subject
from mpsearch.pipeline.steps.trial import outputs_of, takes_of
from mpsearch.pytrees import leaves_of
from mpsearch.usercode import names_code

COMPARED = 4
"""Calibration samples on which an ONNX file and the module that was made of it are compared."""


def load_subject(
    config: RunConfig, progress: Progress, *, labelled: bool = True, metric: UserMetric | None = None
) -> Subject:
    """Load model and images, fold, and analyse; what names no file is told before anything is downloaded or
    fitted.

    Args:
        config: Settings.
        progress: Where progress goes.
        labelled: Whether labels matter; else any order of class folders does.
        metric: That is going to be measured.
    """
    find_device(config.device)
    classes = _require_files(config, labelled)
    if config.model is None:
        loaded = default_model(progress)
    else:
        weights = None if config.weights is None else Path(config.weights)
        loaded = load_model(
            config.model, weights=weights, pretrained=_downloads(config), kwargs=dict(config.model_args)
        )
    loaded = replace(loaded, data_config=image_settings(loaded.data_config, config))
    classes = replace(classes, outputs=_outputs(loaded, config) if labelled else None)
    with progress.task("read the images") as advance:
        splits = draw(
            config,
            config.data or "digits",
            config.calibration_data,
            loaded.data_config,
            classes,
            advance,
            takes_of(loaded.module, config),
        )
    tell_images(loaded, splits, config, progress, classes)
    if loaded.source.kind == "onnx":
        few = leaves_of(splits.calibration.inputs(slice(0, COMPARED)))
        require_same_as_file(Path(loaded.source.name), loaded.module, few)
    return make_subject(loaded, splits, config, progress, metric=metric)


def draw(
    config: RunConfig,
    data: Any,
    calibration: Any,
    data_config: Mapping[str, Any] | None = None,
    classes: Classes | None = None,
    on_image: Callable[[int, int], None] | None = None,
    takes: Takes | None = None,
) -> Splits:
    """The images of a configuration. Args and Raises: As `make_splits`."""
    folders = None if classes is None else classes.folders
    data, calibration = (
        read_texts(each, config.tokenizer, config.text_length, folders)
        if isinstance(each, str) and names_texts(each)
        else each
        for each in (data, calibration)
    )
    drawn = make_splits(
        data,
        data_config,
        calibration=calibration,
        calibration_images=config.calibration_images,
        search_images=config.search_images,
        evaluation_images=config.evaluation_images,
        usual=config.usual_images,
        seed=config.seed,
        classes=classes,
        on_image=on_image,
        takes=takes,
    )
    return kept_images(drawn, config)


def require_same_weights(config: RunConfig) -> None:
    """Raises ModelError where the model has other weights each time it is built: another process would
    measure another model.
    """
    if config.model is None or config.weights is not None or _downloads(config):
        return
    first, second = (
        weights_hash(load_model(config.model, kwargs=dict(config.model_args)).module) for _ in range(2)
    )
    if first != second:
        raise ModelError(
            f"{config.model} has other random weights each time it is built, so workers would measure "
            "other models than the run. "
            "Set a seed in the factory, or save its weights once and name them with --weights; or run "
            "without --workers."
        )


def _downloads(config: RunConfig) -> bool:
    """Whether the weights are timm's own."""
    return config.pretrained and config.weights is None and kind_of(str(config.model)) == "timm"


def _require_files(config: RunConfig, labelled: bool) -> Classes:
    """What is known of the classes without the model. Raises ModelError or DataError."""
    if config.weights is not None:
        require_weights(Path(config.weights))
    classes = Classes(folders=None if config.class_map is None else read_class_map(config.class_map))
    if not (labelled and (made(config.task).classes or config.task == AUTO)) or not _is_factory(config):
        classes = replace(classes, timm=True)
    for source in (config.data, config.calibration_data):
        if source is not None and names_texts(source):
            require_texts(source, config.tokenizer)
        elif source is not None:
            require_source(source, classes)
    return classes


def _is_factory(config: RunConfig) -> bool:
    return config.model is not None and kind_of(config.model) != "timm"


def _outputs(loaded: LoadedModel, config: RunConfig) -> int | None:
    """How many classes the model has, by a pass over noise; None where the task has none, or the model gives
    no N x K, or the samples are not read by mpsearch.
    """
    if config.data is not None and (names_code(config.data) or names_texts(config.data)):
        return None
    noise = torch.randn(1, *loaded.data_config["input_size"], generator=torch.Generator().manual_seed(0))
    task, output = outputs_of(loaded.module, noise, config)
    return output.shape[1] if task.classes and output.ndim == 2 else None
