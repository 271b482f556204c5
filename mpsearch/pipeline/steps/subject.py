"""Step 1: the model, folded and analysed, its images, and the quantisers of every unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpsearch.accelerator import find_device
from mpsearch.data import (
    Classes,
    NestedSet,
    SampleSet,
    Splits,
    Takes,
    make_splits,
    placed,
    read_class_map,
    read_texts,
    require_source,
    require_texts,
)
from mpsearch.deploy.packed import PackedLayout
from mpsearch.deploy.readback import require_read_back
from mpsearch.deploy.targets import Layout, Target
from mpsearch.deploy.tensors import ChoiceTensor, find_tensors
from mpsearch.errors import ModelError
from mpsearch.evaluate import AUTO, Classification, Task, UserMetric, made
from mpsearch.models import (
    Form,
    LoadedModel,
    ModelGraph,
    ModelSource,
    analyze,
    find_foldable,
    fold_batch_norm,
    kind_of,
    load_model,
    require_same_as_file,
    require_weights,
    trace_model,
    weights_hash,
)
from mpsearch.models.tree import copied
from mpsearch.named import names_texts
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.operands import observer_of
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.embedded import default_model
from mpsearch.pipeline.steps.float_graphs import FloatGraphs
from mpsearch.pipeline.steps.inputs import chosen_inputs
from mpsearch.pipeline.steps.pictures import image_settings, tell_images
from mpsearch.pipeline.steps.smoothing import smoothed
from mpsearch.pipeline.steps.trial import outputs_of, takes_of, try_model
from mpsearch.problem import FLOAT, Assignment
from mpsearch.pytrees import leaves_of
from mpsearch.quant.devices import CPU
from mpsearch.reconstruct import Calibration, calibrate
from mpsearch.usercode import names_code

BATCH = 32
COMPARED = 4
"""Calibration samples on which an ONNX file and the module that was made of it are compared."""


@dataclass(frozen=True)
class Subject:
    """A model ready to be searched.

    Args:
        source: How the float model is built.
        module: Float, batch norms folded.
        graph: Its units, blocks and ties.
        layout: Layout of its packed checkpoint.
        splits: Images.
        hashes: Hashes of weights and images.
        target: What files are written for.
        graphs: The float graph.
        given: The module that the user gave as an object, as it was; None where the source builds the model.
        device: What computes. `module` and `splits` are in the CPU's memory, for what is written and
            deployed; `placed` are those that compute.
        kept_for: Type of the device whose results are looked for in the study; that of `device` where empty.
        tensors: Tensors whose precision is a choice, where the target has such; they are layers of the graph.
        form: How the model is called; None for one tensor in, one tensor out, which is what `module` is.
        task_text: Its task as one would type it.
        task: How outputs are compared.
        metric: The user's, where there is one.
    """

    source: ModelSource
    module: Any
    graph: ModelGraph
    layout: PackedLayout
    splits: Splits
    hashes: dict[str, str]
    target: Target
    graphs: FloatGraphs
    given: nn.Module | None = None
    device: torch.device = CPU
    kept_for: str = ""
    tensors: tuple[ChoiceTensor, ...] = ()
    form: Form | None = None
    task_text: str = "classification"
    task: Task = field(default_factory=Classification)
    metric: UserMetric | None = None

    @cached_property
    def placed(self) -> Placed:
        """What computes: the model and its images on the device."""
        parts = (placed(part, self.device) for part in self.splits.parts.values())
        here = self.device.type == "cpu"
        return Placed(self.module if here else copied(self.module).to(self.device), *parts)

    @property
    def arithmetic(self) -> list[str]:
        """What the key of a result says of the device: other types add in another order. Nothing of a CPU."""
        kind = self.kept_for or self.device.type
        return [] if kind == "cpu" else [kind]

    @property
    def units(self) -> tuple[str, ...]:
        """Units that have a weight."""
        return tuple(self.layout.weights)

    @property
    def blocks(self) -> list[tuple[str, tuple[str, ...]]]:
        """Blocks that can be reconstructed and hold a unit with a weight, with their units."""
        held, weighted = set(self.layout.units), set(self.units)
        blocks = [(b.name, tuple(u for u in b.units if u in held)) for b in self.graph.blocks if b.learns]
        return [(name, units) for name, units in blocks if not weighted.isdisjoint(units)]

    @property
    def unlearned(self) -> list[str]:
        """Units that no block holds which can be reconstructed: their weights are rounded to nearest."""
        held = {unit for _, units in self.blocks for unit in units}
        return [unit for unit in self.units if unit not in held]

    @cached_property
    def file(self) -> Layout:
        """Layout of the target's file that budgets limit, `target.budgeted`."""
        return self.target.layout(self.layout, self.graphs.at)

    def float_bytes(self, layout: Layout) -> float:
        """Size of a file if nothing were quantised."""
        return float(layout.size_bytes(Assignment(tuple((unit, FLOAT) for unit in self.layout.units))))


@dataclass(frozen=True)
class Placed:
    """A model and its images where they are computed with."""

    module: nn.Module
    calibration: SampleSet
    search: SampleSet
    evaluation: SampleSet


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
    return _kept(drawn, config)


def _kept(splits: Splits, config: RunConfig) -> Splits:
    """As many of the images as the plan keeps: the first of each set, whose order is random by the seed."""
    if config.kept_images is None:
        return splits
    fewer: dict[str, Any] = {
        name: part.subset(range(count))
        for (name, part), count in zip(splits.parts.items(), config.kept_images, strict=True)
        if count < len(part)
    }
    return replace(splits, **fewer)


def with_images(subject: Subject, config: RunConfig) -> Subject:
    """The same model with as many of its images as `config` keeps."""
    splits = _kept(subject.splits, config)
    return (
        subject
        if splits is subject.splits
        else replace(subject, splits=splits, hashes=_hashes(subject.module, splits))
    )


def _hashes(module: nn.Module, splits: Splits) -> dict[str, str]:
    """Of the weights and of each set of images."""
    return {
        "weights": weights_hash(module),
        **{name: part.content_hash for name, part in splits.parts.items()},
    }


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


def make_subject(
    loaded: LoadedModel,
    splits: Splits,
    config: RunConfig,
    progress: Progress,
    given: nn.Module | None = None,
    metric: UserMetric | None = None,
) -> Subject:
    """Fold and analyse a loaded model.

    Args:
        loaded: The model.
        splits: Its images.
        config: Settings.
        progress: Where a warning goes.
        given: What was asked for, as in `Subject`.
        metric: The user's.

    Raises:
        ModelError: It is not a function of its input, cannot be traced, or cannot be stored and read back.
        DataError: The images have labels that it has no outputs for.
    """
    if splits.warning:
        progress.say(f"Warning: {splits.warning}")
    example = splits.calibration.inputs([0])
    tried = try_model(loaded.module, splits, config, metric)
    if isinstance(splits.calibration, NestedSet):
        progress.say(
            f"Samples as they are, nothing is resized or normalised: {', '.join(map(str, tried.reads))}; "
            f"{splits.calibration.truth}; task {tried.task_text}."
        )
    pairs = find_foldable(trace_model(tried.module, example), tried.module)
    module = smoothed(fold_batch_norm(tried.module, pairs), splits.calibration, config, progress)
    graph = analyze(module, example, functions=config.quantize == "full")
    units = [layer.name for layer in graph.layers if layer.weight_shape or layer.op in config.functions]
    _require_functions(graph, config)
    target, graphs = config.deployment, FloatGraphs(module, example, progress)
    tensors = find_tensors(graphs.at()) if target.tensors else ()
    if tensors:
        graph = replace(graph, layers=(*graph.layers, *(choice.layer for choice in tensors)))
    names = [*units, *(choice.layer.name for choice in tensors)]
    layout = PackedLayout.of(module, names, loaded.source, pairs, loaded.data_config)
    require_read_back(layout, module, loaded.source, given, example)
    return Subject(
        loaded.source,
        module,
        graph,
        layout,
        splits,
        _hashes(module, splits),
        target,
        graphs,
        given,
        find_device(config.device),
        tensors=tensors,
        form=tried.form,
        task_text=tried.task_text,
        task=tried.task,
        metric=metric,
    )


def _require_functions(graph: ModelGraph, config: RunConfig) -> None:
    """Raises ModelError where nothing that is to be quantised beside the layers is in the model."""
    if config.functions and not any(layer.op in config.functions for layer in graph.layers):
        raise ModelError(
            f"--quantize {config.quantize} quantises {', '.join(config.functions)}, and the model has "
            "none of them. Leave it out"
            + (", or take --quantize full." if config.quantize == "matmul" else ".")
        )


def calibrate_subject(
    subject: Subject, config: RunConfig, progress: Progress, study: Study | None = None
) -> Calibration:
    """Ranges of every unit on the calibration images, on the subject's device, with the grids that were
    chosen by damage where the settings ask for that.

    Args:
        subject: Model and images.
        config: Settings.
        progress: Where progress goes.
        study: Where choices are kept; None to make them anew.
    """
    return chosen_inputs(_observed(subject, config, progress), subject, config, progress, study)


def _observed(subject: Subject, config: RunConfig, progress: Progress) -> Calibration:
    images = subject.placed.calibration
    with progress.task("calibrate ranges") as advance:
        return calibrate(
            subject.placed.module,
            subject.layout.units,
            (inputs for inputs, _ in images.batches(BATCH)),
            input_observer=observer_of(config.input_observer),
            softmax=config.softmax,
            symmetric_inputs=config.deployment.signed_inputs,
            bias_correction=config.bias_correction,
            seed=config.seed,
            on_batch=lambda done: advance(done, len(images)),
        )
