"""Memory for arithmetic that is repeated: buffers that are kept from step to step, and pieces of tensors that
stay in a processor's cache.

On a CPU an elementwise pass over a tensor of its own costs several times what its arithmetic does: the memory
has to come from the system, and the values have to go to it and back. Passes over pieces, into memory that is
already there, cost about what the arithmetic does.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = (
    2**16
)  # elements that are worked on at once on a CPU: a handful of float32 pieces fit into a core's second cache


class Workspace:
    """Buffers that each step writes anew. The n-th request of a step gets the memory of the n-th request of
    an earlier step that was alike.

    On other devices than a CPU each request gets new memory: their allocators keep what is given back, and a
    captured step has its own. What a step was given is its own until `begin`, so a layer that is called twice
    has two buffers.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[object, ...], Tensor] = {}
        self._requests = 0

    def begin(self) -> None:
        """A step begins: what earlier ones were given is free."""
        self._requests = 0

    def empty(
        self, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """A tensor that no other request of this step has; autograd takes it for a new one."""
        if device.type != "cpu":
            return torch.empty_strided(shape, stride, dtype=dtype, device=device)
        key = (self._requests, shape, stride, dtype, device)
        self._requests += 1
        if key not in self._held:
            self._held[key] = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        return self._held[key].data  # an alias with a history of its own

    def scratch(self, number: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory for what is used up before the next request; the same whenever the number is."""
        if like.device.type != "cpu":
            return torch.empty_like(like, dtype=dtype)
        key = (f"scratch {number}", tuple(like.shape), tuple(like.stride()), dtype, like.device)
        if key not in self._held:
            self._held[key] = torch.empty_like(like, dtype=dtype)
        return self._held[key]


def empty_like(x: Tensor, workspace: Workspace | None, dtype: torch.dtype | None = None) -> Tensor:
    """As `torch.empty_like`, from the workspace where there is one."""
    if workspace is None:
        return torch.empty_like(x, dtype=dtype)
    return workspace.empty(tuple(x.shape), dense_strides(x), dtype or x.dtype, x.device)


def dense_strides(x: Tensor) -> tuple[int, ...]:
    """The strides that `torch.empty_like` would choose."""
    return torch.empty_like(x, device="meta").stride()


def pieces(like: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat pieces of tensors of one shape, in the order in which `like` lies in memory; whole ones where it
    is not on a CPU.

    Args:
        like: Without gaps or overlaps.
        others: One that lies otherwise is copied first, and must not be written to.
    """
    strides: tuple[int, ...] = like.stride()
    order = sorted(range(like.ndim), key=lambda axis: (-strides[axis], axis))
    same = [
        t if t.stride() == strides else torch.empty_like(like, dtype=t.dtype).copy_(t)
        for t in (like, *others)
    ]
    flat = [t.permute(order).view(-1) for t in same]
    size = PIECE if like.device.type == "cpu" else max(1, like.numel())
    yield from zip(*(torch.split(t, size) for t in flat), strict=True)
