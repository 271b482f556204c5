"""`SampleSet`: what the pipeline needs to know of a set of inputs, whatever they are; `ImageSet` and `TokenSet` are two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

Indices = Sequence[int] | Tensor | slice
"""Which samples, in order; a slice costs no copy."""


class SampleSet(Protocol):
    """N inputs of one model, kept in memory, and what is true of each.

    A model reads one tensor with the samples on axis 0: what is not an image (token ids and their mask) is stacked into one.
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

    def inputs(self, indices: Indices | None = None) -> Tensor:
        """`N x ...`: what the model reads."""

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """`(inputs, labels)` of `size` samples at a time, the last batch shorter."""

    def subset(self, indices: Indices) -> SampleSet:
        """The samples at `indices`, in that order."""

    def joined(self, others: Sequence[Any]) -> SampleSet:
        """These samples, then those of other sets of the same form."""

    def require_labels(self, classes: int | None = None) -> Tensor:
        """The labels. Raises DataError where there are none, or, of class labels, one is not below `classes`."""
