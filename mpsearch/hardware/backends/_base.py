"""The interface of a runtime: what it can run, and one unit of it ready to be timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from mpsearch.problem import Candidate, Layer
from mpsearch.registry import Registry


@dataclass(frozen=True)
class Support:
    """What a backend makes of a unit at a candidate.

    Args:
        status: `ok` (a kernel of its own), `storage-only` (fewer bits are stored; the kernel of `kernel` runs), or `no`.
        reason: Why, for people.
        kernel: Candidate whose kernel runs, and whose latency it has; None where `status` is `no`.
    """

    status: str
    reason: str
    kernel: Candidate | None


@dataclass(frozen=True)
class Cell:
    """One unit at one candidate, built by the runtime.

    Args:
        run: Runs it once on random input.
        executed: Operators that really run, in order.
        as_asked: Whether they are those of the candidate; False is a fall-back, and its time is no latency of the candidate.
        relative_error: max |y - reference| / max |reference|, against float64 arithmetic.
        tolerance: What the error may be.
        bytes_touched: What one call reads and writes; 0 where it is not known.
        another: Makes the same unit on buffers of its own, so that calls can find the cache cold; None where a backend cannot.
    """

    run: Callable[[], object]
    executed: tuple[str, ...]
    as_asked: bool
    relative_error: float
    tolerance: float
    bytes_touched: int = 0
    another: Callable[[], Callable[[], object]] | None = None


class Backend(ABC):
    """A runtime on this device; a frozen dataclass whose fields are the options that change its kernels."""

    name: ClassVar[str]
    on_gpu: ClassVar[bool] = False
    """Whether its cells only queue work: they are timed by `gpu.profile`, never by a clock of the host."""
    threads: int

    @property
    @abstractmethod
    def version(self) -> str:
        """Version of the runtime library."""

    @abstractmethod
    def supports(self, layer: Layer, candidate: Candidate) -> Support:
        """Whether, and by which kernel, `layer` runs at `candidate`."""

    @abstractmethod
    def build(self, layer: Layer, candidate: Candidate, batch: int) -> Cell:
        """The unit, float tensors in and out, through the nodes an exported model holds."""

    def packed_bytes(self, layer: Layer, candidate: Candidate) -> int:
        """Bytes of the weight and its scales in the runtime's file, at the kernel of a candidate: 8-bit containers unless a backend knows better."""
        if not layer.weight_shape or candidate.is_float:
            return layer.weight_numel * 4
        return layer.weight_numel + 4 * layer.weight_shape[0]


BACKENDS: Registry[Backend] = Registry("backend", "mpsearch.hardware.backends")
