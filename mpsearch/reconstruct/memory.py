"""The memory that a reconstruction takes, foreseen: it is rehearsed on a few images, and what was counted
there is scaled to many.

A reconstruction is cut into sections (`section`). The most that is alive in one grows with all images, of
which it stores something, and with those that are worked on at once, of a chunk or of a learning step: by
straight lines, which three rehearsals give.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpsearch.allocator import give_freed_memory_back
from mpsearch.pytrees import Inputs

REHEARSED = ((4, 2), (8, 2), (8, 4))
"""Images, and how many of them are worked on at once; in more than one chunk, because what one brings is gone
sooner than what many bring.
"""

ALLOWANCE = 5 / 4
"""Memory of the process for what tensors hold: operations take scratch memory, and an allocator cannot use
what lies in pieces. It was 1.11 at most.
"""

Work = Literal["chunk", "step"]
"""What a section works on: chunks of the images, one after the other, or batches of learning steps."""

_counting: ContextVar[Count | None] = ContextVar("counting", default=None)


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made while it is entered, until they are freed, on all devices
    together.

    It sees what operations return, not what they take and give back inside, such as weights that a
    convolution lays out anew.

    Attributes:
        peaks: What each section works on, and the most bytes that were alive in it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks: list[tuple[Work, int]] = [("chunk", 0)]
        self._alive = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The operation as it is; what it returns is counted."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(result):
            if (
                isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given
            ):  # else a view, or what was written to
                self.add(leaf)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor until its memory is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._held:
            self._held[key] = storage.nbytes()
            self._alive += self._held[key]
            work, peak = self.peaks[-1]
            self.peaks[-1] = work, max(peak, self._alive)
            weakref.finalize(storage, self._drop, key).atexit = False

    def begin(self, work: Work) -> None:
        """One section ends, and the next one begins."""
        self.peaks.append((work, self._alive))

    def _drop(self, key: int) -> None:
        self._alive -= self._held.pop(key)


def section(work: Work) -> None:
    """A section begins: memory that lies free is given back, and a rehearsal is told."""
    give_freed_memory_back()
    if (count := _counting.get()) is not None:
        count.begin(work)


def rehearsing() -> bool:
    """Whether the memory of a call is being foreseen: work that takes time and always the same memory may be
    left out.
    """
    return _counting.get() is not None


def held(tensor: Tensor) -> Tensor:
    """The tensor, which no operation of torch has made; a rehearsal counts it as if one had."""
    if (count := _counting.get()) is not None:
        count.add(tensor)
    return tensor


@contextmanager
def counting() -> Iterator[Count]:
    """While it lasts, the calling thread's tensors are counted."""
    count = Count()
    token = _counting.set(count)
    try:
        with count:
            yield count
    finally:
        _counting.reset(token)


@dataclass(frozen=True)
class Footprint:
    """Memory of a reconstruction by the number of images.

    Args:
        sections: What each works on, and bytes: at least, for each image there is, and for each that is
            worked on at once.
        most: Images that are worked on at once, at most.
    """

    sections: Sequence[tuple[Work, float, float, float]]
    most: Mapping[Work, int]

    def bytes_with(self, images: int) -> int:
        """Memory that so many images take at most, beside the model and the images themselves: what tensors
        hold, times `ALLOWANCE`.
        """
        return math.ceil(
            ALLOWANCE
            * max(
                fixed + each * images + more * min(images, self.most[work])
                for work, fixed, each, more in self.sections
            )
        )

    def images_within(self, most_bytes: int) -> int:
        """The greatest number of images whose reconstruction stays within so many bytes; 0 where that of one
        does not.
        """
        low, high = 0, 1
        while self.bytes_with(high) <= most_bytes and high < 2**40:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.bytes_with(middle) <= most_bytes else (low, middle)
        return low


def rehearsed(call: Callable[[Inputs, int], object], inputs: Inputs, most: Mapping[Work, int]) -> Footprint:
    """Of a call that reconstructs.

    Args:
        call: Is given images, and how many of them it is to work on at once; called as `REHEARSED` says.
        inputs: Images, at least one; they are repeated where there are too few.
        most: Limit, as in `Footprint`.
    """
    found = []
    for images, at_once in REHEARSED:
        given = inputs[torch.arange(images, device=inputs.device) % len(inputs)]
        with counting() as count:
            call(given, at_once)
        found.append(count.peaks)
    sections = []
    for (work, base), (_, longer), (_, wider) in zip(*found, strict=True):
        each, more = max(0, longer - base) / 4, max(0, wider - longer) / 2
        sections.append((work, base - 4 * each - 2 * more, each, more))
    return Footprint(sections, most)
