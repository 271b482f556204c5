"""`SampleSet`: what the pipeline needs to know of a set of inputs, whatever they are; `ImageSet` and
`TokenSet` are two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self, cast

import torch
from torch import Tensor

from mpsearch.data.sources.truths import together
from mpsearch.errors import DataError
from mpsearch.pytrees import Inputs

Indices = Sequence[int] | Tensor | slice
"""Which samples, in order; a slice costs no copy."""


class SampleSet(Protocol):
    """N inputs of one model, kept in memory, and what is true of each.

    A model reads one tensor with the samples on axis 0, or several of them, as a `Batch`.
    """

    @property
    def name(self) -> str:
        """Where the samples came from, for messages and records."""

    @property
    def labels(self) -> Tensor | None:
        """`N x ...`, in the form of the task: classes, spans, boxes; None where nothing is known."""

    @property
    def nbytes(self) -> int:
        """Memory held."""

    @property
    def form(self) -> Any:
        """What two sets must have in common to be read by one model: shapes, normalisation."""

    @property
    def sample_hashes(self) -> tuple[str, ...]:
        """SHA-256 of each sample's input; equal only for exact duplicates."""

    @property
    def content_hash(self) -> str:
        """SHA-256 over inputs and labels; the name does not count."""

    def __len__(self) -> int:
        """N."""

    def inputs(self, indices: Indices | None = None) -> Inputs:
        """`N x ...`: what the model reads."""

    def batches(self, size: int) -> Iterator[tuple[Inputs, Tensor | None]]:
        """`(inputs, labels)` of `size` samples at a time, the last batch shorter."""

    def subset(self, indices: Indices) -> SampleSet:
        """The samples at `indices`, in that order."""

    def joined(self, others: Sequence[Any]) -> SampleSet:
        """These samples, then those of other sets of the same form."""

    def require_labels(self, classes: int | None = None) -> Tensor:
        """The labels. Raises DataError where there are none, or, of class labels, one is not below
        `classes`.
        """


def at(indices: Indices) -> Any:
    """What a tensor of samples is indexed with."""
    return indices if isinstance(indices, slice) else torch.as_tensor(indices, dtype=torch.long)


class HeldSamples:
    """What sets of images and of texts do alike: N samples in one tensor, and their labels.

    Attributes:
        held: Name of the field with the samples.
        one: Name of one of them in messages.
        unlabelled: What to do where labels are needed and there are none.
    """

    held: ClassVar[str]
    one: ClassVar[str]
    unlabelled: ClassVar[str]
    name: str
    labels: Tensor | None

    @property
    def _samples(self) -> Tensor:
        return cast(Tensor, getattr(self, self.held))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._samples)

    @property
    def nbytes(self) -> int:
        """Memory held by samples and labels."""
        return self._samples.nbytes + (0 if self.labels is None else self.labels.nbytes)

    def inputs(self, indices: Indices | None = None) -> Tensor:
        """`N x ...`: what the model reads."""
        raise NotImplementedError

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`(inputs, labels)` of `size` samples at a time, the last batch shorter."""
        if size < 1:
            raise DataError(f"Batch size {size} is not positive.")
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.inputs(part), None if self.labels is None else self.labels[part]

    def subset(self, indices: Indices) -> Self:
        """The samples at `indices`, in that order: a copy, or, of a slice, a view."""
        where = at(indices)
        labels = None if self.labels is None else self.labels[where]
        return cast(Self, replace(cast(Any, self), **{self.held: self._samples[where]}, labels=labels))

    def on(self, device: torch.device) -> Self:
        """The same with the samples in a device's memory; labels stay where they are."""
        return cast(Self, replace(cast(Any, self), **{self.held: self._samples.to(device)}))

    def joined(self, others: Sequence[Self]) -> Self:
        """These samples, then those of the other sets; the set itself where there is no other."""
        if not others:
            return self
        labels = [s.labels for s in (self, *others) if s.labels is not None]
        samples = torch.cat([s._samples for s in (self, *others)])
        return cast(
            Self,
            replace(cast(Any, self), **{self.held: samples}, labels=together(labels) if labels else None),
        )

    def require_labels(self, classes: int | None = None) -> Tensor:
        """The labels. Raises DataError where there are none, or a class is not below `classes`."""
        if self.labels is None:
            raise DataError(f"{self.name} has no labels. {self.unlabelled}")
        if (
            classes is not None
            and len(self)
            and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < classes
        ):
            low, high = int(self.labels.min()), int(self.labels.max())
            odd = int(((self.labels < 0) | (self.labels >= classes)).flatten().nonzero()[0])
            raise DataError(
                f"{self.name} has labels {low} to {high}; the model has {classes} classes, 0 to "
                f"{classes - 1}. The first "
                f"that is none of them is {int(self.labels[odd])}, of {self.one} {odd}. Give the data it "
                "was trained for."
            )
        return self.labels

    @cached_property
    def sample_hashes(self) -> tuple[str, ...]:
        """SHA-256 of each sample; equal only for exact duplicates."""
        return tuple(hashlib.sha256(sample.contiguous().numpy().data).hexdigest() for sample in self._samples)
