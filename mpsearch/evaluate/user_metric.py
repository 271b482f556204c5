"""`--metric`: a number of the user's own, by any code, for a model on samples; higher is better."""

from __future__ import annotations

import hashlib
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.data import SampleSet
from mpsearch.errors import MpsearchError, OptionError
from mpsearch.evaluate.metrics import BATCH
from mpsearch.foreign import first_line
from mpsearch.models import Form, as_given, form_of
from mpsearch.pytrees import flatten, shape_text
from mpsearch.usercode import OBJECT, load_code, require_code

_CALLED = (
    "It is called with (model, samples): model is called as its forward is written, and samples gives "
    "batches (inputs, labels)"
)


class MetricSamples:
    """What a metric reads: batches `(inputs, labels)`, as often as one goes over them.

    `inputs` are what the model's own forward takes for N samples: a tensor (`model(inputs)`), a tuple of its
    arguments (`model(*inputs)`) or a dict of them by name (`model(**inputs)`), on the device that computes.
    `labels` are a tensor N x ... where those of the samples are numbers or tensors of one shape, else a list
    of N, as the data gave them; None where it gave none. `len` is the number of batches, as a DataLoader's.

    Args:
        samples: N samples.
        form: How the model is called; None for one tensor.
        batch: Samples in a batch; the last is shorter.
    """

    def __init__(self, samples: SampleSet, form: Form | None = None, batch: int = BATCH) -> None:
        self._samples, self._form, self._batch = samples, form, batch

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._samples) // self._batch)

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self._samples)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """`(inputs, labels)` of a batch."""
        done = 0
        for inputs, labels in self._samples.batches(self._batch):
            found: Any = labels
            if labels is None:
                found = list(getattr(self._samples, "targets", ())[done : done + len(inputs)]) or None
            done += len(inputs)
            yield self._called(inputs), found.to(inputs.device) if isinstance(found, Tensor) else found

    def _called(self, inputs: Any) -> Any:
        if self._form is None:
            return inputs
        args, kwargs = self._form.arguments(self._form.placed(inputs))
        return kwargs if kwargs else args[0] if len(args) == 1 else args


@dataclass(frozen=True)
class UserMetric:
    """A user's metric.

    Args:
        text: `file.py:function`, or `python:NAME` of one that was given as an object.
        name: Of the function, for tables.
        function: (model, samples) -> number.
        digest: Of its file's content: what it measured is kept under it. Of an object that no file tells
            apart it is another in each process, so that what it gave is never taken for what it would give.
    """

    text: str
    name: str
    function: Callable[[nn.Module, MetricSamples], Any]
    digest: str

    def to_json(self) -> dict[str, str]:
        """As a reader of the results knows it."""
        return {"name": self.name, "text": self.text, "digest": self.digest}

    @classmethod
    def of(cls, text: str) -> UserMetric:
        """The function of a file, which is run. Raises OptionError where there is none, or it takes other
        arguments.
        """
        path, name = require_code(text, OptionError)
        function = load_code(text, "a function (model, samples) -> float", OptionError)
        return cls(text, name, _taking_two(function, text), _digest(path, name))

    @classmethod
    def given(cls, function: Any) -> UserMetric:
        """A callable. Raises OptionError where it is none, or takes other arguments."""
        if not callable(function):
            raise OptionError(
                f"metric is a {type(function).__name__}. Give a function (model, samples) -> float, or "
                "'file.py:function'."
            )
        name = str(getattr(function, "__name__", type(function).__name__)).strip("<>")
        return cls(f"{OBJECT}{name}", name, _taking_two(function, name), _object_digest(function, name))

    def measure(self, module: nn.Module, samples: SampleSet, what: str, form: Form | None = None) -> float:
        """The number for a model, which must be a copy that nobody else uses; NaN or infinite as it was
        given.

        Args:
            module: In eval mode, bound to how its author calls it.
            samples: What it is measured on.
            what: Which samples these are, for messages.
            form: How the model is called, where it is not bound to that.
        Raises: OptionError: It fails, or gives no number.
        """
        batches = MetricSamples(samples, form or form_of(module))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                value = self.function(as_given(module), batches)
            except MpsearchError:
                raise
            except Exception as error:  # the user's own code may raise anything
                raise OptionError(
                    f"The metric {self.text} failed on {len(samples)} {what} samples: "
                    f"{type(error).__name__}: {first_line(error)} {_CALLED}; here {_batch_told(batches)}. "
                    "Mend the function."
                ) from error
        number = _number(value)
        if number is None:
            raise OptionError(
                f"The metric {self.text} returned {_told(value)}. It must return one number, higher is "
                "better, such as a float."
            )
        return number

    def require(self, module: nn.Module, samples: SampleSet, what: str) -> float:
        """As `measure`. Raises OptionError where the number is not finite, too."""
        value = self.measure(module, samples, what)
        if not math.isfinite(value):
            raise OptionError(
                f"The metric {self.text} returned {value} for the float model on {len(samples)} {what} "
                "samples. It must return a finite number on any samples: mend the function."
            )
        return value


def metric_of(given: Any) -> UserMetric | None:
    """The metric of a text or a callable; None for None. Raises OptionError."""
    if given is None or isinstance(given, UserMetric):
        return given
    return UserMetric.of(given) if isinstance(given, str) else UserMetric.given(given)


def _taking_two(function: Any, text: str) -> Callable[[nn.Module, MetricSamples], Any]:
    """The function. Raises OptionError where it cannot be called with a model and samples."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one of C tells nothing; it is tried on samples anyway
        return function  # type: ignore[no-any-return]
    try:
        signature.bind(None, None)
    except TypeError:
        raise OptionError(
            f"The metric {text} takes {signature}. It must take (model, samples) and return a number, higher "
            "is better."
        ) from None
    return function  # type: ignore[no-any-return]


def _digest(path: Path, name: str) -> str:
    return hashlib.sha256(path.read_bytes() + b"\0" + name.encode()).hexdigest()


def _object_digest(function: Any, name: str) -> str:
    """That of its file, for a plain function; one of its own for what may hold anything."""
    plain = inspect.isfunction(function) and not function.__closure__ and function.__name__ != "<lambda>"
    file = inspect.getsourcefile(function) if plain else None
    if file is None or not Path(file).is_file():
        return os.urandom(32).hex()
    return _digest(Path(file), f"{function.__qualname__} {function.__defaults__!r}")


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else value
    elif hasattr(value, "item") and getattr(value, "size", 0) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value)


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {shape_text(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__} ({str(value)[:40]})"


def _batch_told(batches: MetricSamples) -> str:
    """The first batch, for people."""
    inputs, labels = next(iter(batches))
    return f"inputs are {_shape(inputs)}, and labels {_shape(labels)}"


def _shape(value: Any) -> str:
    leaves, structure = flatten(value)
    if isinstance(value, Tensor):
        return shape_text(value.shape)
    if not leaves:
        return "None" if value is None else f"a {type(value).__name__}"
    inside = ", ".join(
        f"{n} {shape_text(leaf.shape)}" for n, leaf in zip(structure.names()[:4], leaves[:4], strict=True)
    )
    return f"a {type(value).__name__} of {inside}"
