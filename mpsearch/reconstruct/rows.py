"""Rows of a tensor that many images share: written chunk by chunk, read by random batches."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

from mpsearch.quant.pieces import Workspace
from mpsearch.reconstruct.memory import held


class Rows:
    """N x ..., in the memory layout of the first part, so that a row of a channels_last tensor is one stretch
    of memory.

    Args:
        example: A part; its layout, type and device are taken.
        count: N.
    """

    def __init__(self, example: Tensor, count: int) -> None:
        last = (
            example.ndim == 4
            and example.is_contiguous(memory_format=torch.channels_last)
            and not example.is_contiguous()
        )
        self._order = (0, 2, 3, 1) if last else tuple(range(example.ndim))
        self._inverse = (0, 3, 1, 2) if last else self._order
        self._data = _outside_the_heap(example, (count, *(example.shape[axis] for axis in self._order[1:])))

    def __len__(self) -> int:
        return len(self._data)

    def write(self, start: int, part: Tensor) -> None:
        """Put `part` behind row `start`."""
        self._data[start : start + len(part)] = part.permute(self._order)

    def adopt(self, start: int, part: Tensor) -> None:
        """As `write`; from then on `part` is a view of these rows, and its own memory is given back even
        where others still hold it.
        """
        self.write(start, part)
        part.data = self.read(start, start + len(part))

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop, without a copy."""
        return self._data[start:stop].permute(self._inverse)

    def take(
        self, picked: Tensor, window: tuple[slice, slice] | None = None, workspace: Workspace | None = None
    ) -> Tensor:
        """The rows of the given indices, a copy; of their last two axes only `window`, where it is given."""
        data = (
            self._data
            if window is None
            else self._data.permute(self._inverse)[:, :, *window].permute(self._order)
        )
        if workspace is None:
            return data.index_select(0, picked).permute(self._inverse)
        shape = (len(picked), *data.shape[1:])
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        into = workspace.empty(shape, strides, data.dtype, data.device)
        return torch.index_select(data, 0, picked, out=into).permute(self._inverse)

    @property
    def shape(self) -> torch.Size:
        """N x ...."""
        return self._data.permute(self._inverse).shape


def _outside_the_heap(example: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the type and device of `example`. On a CPU its memory goes back to the system with it:
    among short-lived tensors it would leave holes.
    """
    numbers = math.prod(shape)
    if example.device.type != "cpu" or not numbers:
        return example.new_empty(shape)
    memory = mmap.mmap(-1, numbers * example.element_size())
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux: a page fault for each 2 MiB instead of each 4 KiB
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return held(torch.frombuffer(memory, dtype=example.dtype, count=numbers).view(shape))
