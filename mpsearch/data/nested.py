"""`NestedSet`: samples of any form, as a model of several inputs reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mpsearch.data.samples import Indices, at
from mpsearch.data.sources.truths import together
from mpsearch.errors import DataError
from mpsearch.pytrees import Batch, Inputs, Structure, flatten, shape_text


@dataclass(frozen=True, eq=False)
class NestedSet:
    """N samples whose inputs are one tensor or several, given to the model as they are.

    Args:
        leaves: N x ... each: every tensor of the inputs, in order.
        call: Positional and keyword arguments of the model, built from them.
        labels: N x ..., where what is true of the samples are tensors or numbers of one shape.
        targets: What is true of each sample, in any form; empty where nothing is known.
        name: Where they came from.
    """

    leaves: tuple[Tensor, ...]
    call: Structure
    labels: Tensor | None = None
    targets: tuple[Any, ...] = ()
    name: str = "samples"

    def __len__(self) -> int:
        """N."""
        return len(self.leaves[0])

    @property
    def nbytes(self) -> int:
        """Memory of the inputs and labels."""
        return sum(leaf.nbytes for leaf in self.leaves) + (0 if self.labels is None else self.labels.nbytes)

    @property
    def form(self) -> Any:
        """Shapes, types and nesting."""
        return (self.call, [(leaf.shape[1:], leaf.dtype) for leaf in self.leaves])

    def inputs(self, indices: Indices | None = None) -> Inputs:
        """`N x ...`: one tensor, or a `Batch` of them."""
        found = self.leaves if indices is None else tuple(leaf[at(indices)] for leaf in self.leaves)
        return found[0] if self._one else Batch(found)

    def batches(self, size: int) -> Iterator[tuple[Inputs, Tensor | None]]:
        """`(inputs, labels)` of `size` samples at a time, the last batch shorter."""
        if size < 1:
            raise DataError(f"Batch size {size} is not positive.")
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.inputs(part), None if self.labels is None else self.labels[part]

    def subset(self, indices: Indices) -> NestedSet:
        """The samples at `indices`, in that order."""
        where = at(indices)
        picked = range(len(self))[where] if isinstance(where, slice) else where.tolist()
        return replace(
            self,
            leaves=tuple(leaf[where] for leaf in self.leaves),
            labels=None if self.labels is None else self.labels[where],
            targets=tuple(self.targets[i] for i in picked) if self.targets else (),
        )

    def joined(self, others: Sequence[NestedSet]) -> NestedSet:
        """These samples, then those of the other sets."""
        if not others:
            return self
        every = (self, *others)
        labels = [s.labels for s in every if s.labels is not None]
        return replace(
            self,
            leaves=tuple(torch.cat(column) for column in zip(*(s.leaves for s in every), strict=True)),
            labels=together(labels) if labels else None,
            targets=tuple(target for s in every for target in s.targets),
        )

    def require_labels(self, classes: int | None = None) -> Tensor:
        """The labels. Raises DataError where there are none, or a class is not below `classes`."""
        if self.labels is None:
            raise DataError(f"{self.name} has no labels of one shape. Give samples (inputs, label).")
        low, high = (int(self.labels.min()), int(self.labels.max())) if len(self) else (0, 0)
        if classes is not None and not 0 <= low <= high < classes:
            raise DataError(
                f"{self.name} has labels {low} to {high}; the model has {classes} classes, 0 to "
                f"{classes - 1}. "
                "Give the data it was trained for."
            )
        return self.labels

    @cached_property
    def sample_hashes(self) -> tuple[str, ...]:
        """SHA-256 of each sample's inputs."""
        found = []
        for row in range(len(self)):
            digest = hashlib.sha256()
            for leaf in self.leaves:
                digest.update(leaf[row].contiguous().numpy().tobytes())
            found.append(digest.hexdigest())
        return tuple(found)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over inputs, labels and targets."""
        digest = hashlib.sha256(repr([self.form[1], self.call.names()]).encode())
        for leaf in (*self.leaves, *([] if self.labels is None else [self.labels])):
            digest.update(leaf.contiguous().numpy().tobytes())
        for target in () if self.labels is not None else self.targets:
            tensors, structure = flatten(target)
            digest.update(repr([structure.names(), [t.tolist() for t in tensors]]).encode())
        return digest.hexdigest()

    @property
    def _one(self) -> bool:
        args, kwargs = self.call.parts
        alone = len(self.leaves) == len(args.parts) == 1 and not kwargs.parts
        return alone and args.parts[0].kind == "leaf"

    @property
    def truth(self) -> str:
        """What is known of the samples, for people."""
        if self.labels is None:
            return "targets" if self.targets else "no labels"
        return f"labels {shape_text(self.labels.shape[1:])}"
