"""Which task a model has: the one that was named, or what its outputs look like; for a model of several
outputs, on the output that was named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mpsearch.data import SampleSet, are_boxes
from mpsearch.errors import OptionError
from mpsearch.evaluate.metrics import Metrics
from mpsearch.evaluate.tasks import TASKS, Classification, Outputs, Regression, Task
from mpsearch.evaluate.tasks.outputs import Output, spread
from mpsearch.models import Form
from mpsearch.usercode import call_code, names_code

AUTO = "auto"
"""Task that is chosen by the outputs."""


def task_for(text: str, outputs: Tensor, form: Form | None, labels: Tensor | None = None) -> tuple[str, Task]:
    """The task, ready for the outputs of a model.

    Args:
        text: Registered task with its options, or `auto`: `classification` of N x K outputs, K at least 2,
            `regression` where their labels are no whole numbers, else `outputs`.
        outputs: Of the float model on some samples.
        form: What the model gives; None for one tensor.
        labels: Of samples.
    Returns: The task as one would type it, and the task.
    Raises: OptionError: It does not fit the outputs; says what does.
    """
    several = form is not None and len(form.counted) > 1
    if text == AUTO:
        text = "outputs" if several or outputs.ndim != 2 or outputs.shape[1] < 2 else "classification"
        if labels is not None and labels.is_floating_point() and not several and not are_boxes(labels):
            text = "regression"
    task = made(text)
    if isinstance(task, Outputs):
        return text, task.seen(_parts(outputs, form))
    if several and form is not None:
        return text, _among(task, text, form)
    if isinstance(task, Classification) and outputs.ndim != 2:
        raise OptionError(
            f"The task classification takes outputs N x K, and the model gives {_text(outputs)}. Leave "
            "--task "
            "out, so that every number counts, or say segmentation where these are pixels."
        )
    if isinstance(task, Regression):
        task = replace(task, scale=spread(outputs))
    return text, task


def made(text: str) -> Task:
    """The task of a text; `auto` is `outputs` until the outputs are seen.

    Raises:
        UnknownNameError: There is no such task.
        OptionError: It has no such option, or the class of a file is no task.
    """
    if text == AUTO:
        return Outputs()
    if not in_file(text):
        return TASKS.create(text)
    task = call_code(text, "a class below mpsearch.evaluate.Task", OptionError)
    if not isinstance(task, Task):
        raise OptionError(
            f"{text} gives a {type(task).__name__}. It must be a class below mpsearch.evaluate.Task."
        )
    if not hasattr(task, "name"):
        type(task).name = text.rpartition(":")[2]
    return task


def in_file(text: str) -> bool:
    """Whether a task is a class of a file; one that is registered may name a file in its options."""
    return names_code(text) and text.partition(":")[0] not in TASKS.names()


def _parts(outputs: Tensor, form: Form | None) -> tuple[Output, ...]:
    found = {"": outputs} if form is None else form.parts(outputs)
    return tuple(
        Output(name, part[0].numel(), spread(part), tuple(part.shape[1:])) for name, part in found.items()
    )


def _among(task: Task, text: str, form: Form) -> Task:
    """The task on the output that its option names, or on all of them by name."""
    if task.several:
        return _On(task, form.parts)
    names = [leaf.name for leaf in form.counted]
    name = getattr(task, "output", "")
    if name not in names:
        which = f"has no output {name!r}" if name else "gives several outputs"
        raise OptionError(
            f"The model {which}: {', '.join(map(str, form.counted))}. Name the one that the task {text!r} is "
            f"about, such as {text.partition(':')[0]}:output={names[0]}, or leave --task out: then all count."
        )
    return _On(task, lambda outputs: form.parts(outputs)[name])


class _On(Task):
    """A task on a part of what is joined."""

    def __init__(self, task: Task, part: Callable[[Tensor], Any]) -> None:
        self._task, self._part = task, part
        self.name, self.measure, self.classes = task.name, task.measure, False  # type: ignore[misc]

    def headline(self, metrics: Metrics) -> tuple[str, float]:
        """As the task."""
        return self._task.headline(metrics)

    def damage(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Of the part, N."""
        return self._task.damage(self._part(outputs), self._part(reference))

    def compare(self, outputs: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
        """Of the part."""
        return self._task.compare(self._part(outputs), self._part(reference), labels)

    def directions(self, reference: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Those of the part, and 0 elsewhere."""
        if self._task.several:
            return super().directions(reference, count, generator)
        inner = self._task.directions(self._part(reference), count, generator)
        with torch.enable_grad():  # where the part stands is the gradient of what it is made of
            whole = reference.detach().requires_grad_()
            found = [torch.autograd.grad(self._part(whole), whole, one)[0] for one in inner]
        return torch.stack(found)

    def require_labels(self, samples: SampleSet, outputs: Tensor) -> None:
        """As the task."""
        self._task.require_labels(samples, self._part(outputs))


def _text(outputs: Tensor) -> str:
    return " x ".join(["N", *map(str, outputs.shape[1:])])
