"""Samples whose inputs come on a device, batch by batch; the set, its labels and hashes stay where they
are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from mpsearch.data.samples import HeldSamples, Indices, SampleSet
from mpsearch.pytrees import Inputs


def placed(samples: SampleSet, device: torch.device) -> SampleSet:
    """The samples with their inputs on a device; themselves where that is the CPU."""
    return samples if device.type == "cpu" else cast(SampleSet, PlacedSamples(samples, device))


@dataclass(frozen=True, eq=False)
class PlacedSamples:
    """A `SampleSet`.

    Of images a batch's bytes are moved, a quarter of its numbers, and normalised there.

    Args:
        samples: Held in the CPU's memory.
        device: Where `inputs` and `batches` give them.
    """

    samples: SampleSet
    device: torch.device

    def __getattr__(self, name: str) -> Any:
        """What no device changes: name, labels, hashes, form."""
        return getattr(object.__getattribute__(self, "samples"), name)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def inputs(self, indices: Indices | None = None) -> Inputs:
        """`N x ...` on the device."""
        if isinstance(self.samples, HeldSamples):
            part = self.samples.subset(slice(None) if indices is None else indices)
            return part.on(self.device).inputs()
        return self.samples.inputs(indices).to(self.device)

    def batches(self, size: int) -> Iterator[tuple[Inputs, Tensor | None]]:
        """`(inputs, labels)` of `size` samples at a time; the labels stay in the CPU's memory."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.inputs(part), None if self.samples.labels is None else self.samples.labels[part]

    def subset(self, indices: Indices) -> SampleSet:
        """The samples at `indices`, placed alike."""
        return cast(SampleSet, replace(self, samples=self.samples.subset(indices)))

    def joined(self, others: Sequence[Any]) -> SampleSet:
        """These samples, then those of other sets, placed as these are."""
        bare = [other.samples if isinstance(other, PlacedSamples) else other for other in others]
        return cast(SampleSet, replace(self, samples=self.samples.joined(bare)))
