"""Step 1: a loaded model and its images, folded and analysed: what all other steps are about."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from mpsearch.accelerator import find_device
from mpsearch.data import NestedSet, SampleSet, Splits, placed
from mpsearch.deploy.packed import PackedLayout
from mpsearch.deploy.readback import require_read_back
from mpsearch.deploy.targets import Layout, Target
from mpsearch.deploy.tensors import ChoiceTensor, find_tensors
from mpsearch.errors import ModelError
from mpsearch.evaluate import Classification, Task, UserMetric
from mpsearch.models import (
    Form,
    LoadedModel,
    ModelGraph,
    ModelSource,
    analyze,
    find_foldable,
    fold_batch_norm,
    trace_model,
    weights_hash,
)
from mpsearch.models.tree import copied
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.float_graphs import FloatGraphs
from mpsearch.pipeline.steps.smoothing import smoothed
from mpsearch.pipeline.steps.trial import try_model
from mpsearch.problem import FLOAT, Assignment
from mpsearch.quant.devices import CPU

BATCH = 32


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


def kept_images(splits: Splits, config: RunConfig) -> Splits:
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
    splits = kept_images(subject.splits, config)
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
