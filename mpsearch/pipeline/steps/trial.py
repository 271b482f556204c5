"""What a few samples tell before anything costly: how the model is called, what it gives, and whether task,
method and objectives can take that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.data import SampleSet, Splits, Takes
from mpsearch.errors import OptionError
from mpsearch.evaluate import Outputs, Task, UserMetric, task_for
from mpsearch.models import Form, as_batch, bound, observe_form, require_function
from mpsearch.models.form import ONE_TENSOR, Leaf
from mpsearch.objectives import OBJECTIVES
from mpsearch.objectives.interacting import INTERACTING
from mpsearch.pipeline.config import RunConfig
from mpsearch.pytrees import Inputs, Structure, leaves_of
from mpsearch.quant import install
from mpsearch.reconstruct import METHODS

FEW = 16
"""Samples on which the spread of each output is seen."""
FEW_SCORED = 8
"""Samples on which a metric is tried."""


@dataclass(frozen=True)
class Tried:
    """A model that was tried.

    Args:
        module: Called with a batch, gives one tensor.
        form: How its author meant it to be called; None for one tensor in, one tensor out.
        task_text: The task as one would type it.
        task: The task.
        reads: What it reads.
    """

    module: nn.Module
    form: Form | None
    task_text: str
    task: Task
    reads: tuple[Leaf, ...]


def takes_of(module: nn.Module, config: RunConfig) -> Takes:
    """Whether the model takes a batch of one sample with these arguments."""

    def takes(batch: Inputs, call: Structure) -> None:
        observe_form(module, as_batch(leaves_of(batch), call), call, config.batch_axis)

    return takes


def try_model(
    module: nn.Module, splits: Splits, config: RunConfig, metric: UserMetric | None = None
) -> Tried:
    """Pass a few calibration samples through the model, and through the metric where there is one.

    Raises:
        ModelError: It does not take them, or is not a function of them.
        DataError: Samples have labels that it has no outputs for.
        OptionError: Task, method, an objective or the metric cannot take what it gives.
    """
    samples = splits.calibration
    found = observe_form(module, samples.inputs(slice(0, 2)), call_of(samples), config.batch_axis)
    form = None if found.plain else found
    module = bound(module, found)
    example = samples.inputs([0])
    output = require_function(module, example)
    text, task = task_for(config.task, output, form, samples.labels)
    if text != "classification":
        with torch.no_grad():
            text, task = task_for(config.task, module(samples.inputs(slice(0, FEW))), form, samples.labels)
    for part in splits.parts.values():
        task.require_labels(part, output)
    require_classes(config, text, task)
    if metric is not None:
        metric.require(install(module, {}), samples.subset(slice(0, FEW_SCORED)), "calibration")
    return Tried(module, form, text, task, found.inputs)


def call_of(samples: SampleSet) -> Structure:
    """How the model is called with these samples."""
    call: Any = getattr(samples, "call", ONE_TENSOR)
    return call if isinstance(call, Structure) else ONE_TENSOR


def require_classes(config: RunConfig, text: str, task: Task) -> None:
    """Raises OptionError where the method or an objective draws labels from the model, and it has no
    classes.
    """
    if task.classes:
        return
    if METHODS.create(config.method).loss == "fisher":
        raise OptionError(
            f"The method {config.method!r} draws classes from the model, and the task {text!r} has none. Add "
            "loss=mse, or use qdrop."
        )
    for objective in config.objectives:
        name = objective.partition(":")[0].strip()
        registry: Any = OBJECTIVES if name in OBJECTIVES.names() else INTERACTING
        if getattr(registry.get(name), "needs_classes", False):
            raise OptionError(
                f"The objective {name!r} takes the outputs for logits of classes; the task is {text!r}. Use "
                "--objective sketch, output_mse, kl or weight_mse."
            )


def outputs_of(module: nn.Module, inputs: Tensor, config: RunConfig) -> tuple[Task, Tensor]:
    """The task by what the model gives for one input, and that output.

    Raises: ModelError: As `try_model`.
    """
    form = observe_form(module, inputs, ONE_TENSOR, config.batch_axis)
    output = require_function(bound(module, form), inputs)
    several = None if form.plain else form
    try:
        return task_for(config.task, output, several)[1], output
    except OptionError:  # told when the samples are there
        return Outputs(), output
