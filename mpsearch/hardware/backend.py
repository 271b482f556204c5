"""The interface of a runtime: what it can run, one unit of it ready to be timed, and the bench that times
it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from mpsearch.hardware.device import DeviceIdentity, identity
from mpsearch.hardware.measure import Timing
from mpsearch.problem import Candidate, Layer
from mpsearch.registry import Registry


@dataclass(frozen=True)
class Support:
    """What a backend makes of a unit at a candidate.

    Args:
        status: `ok` (a kernel of its own), `storage-only` (fewer bits are stored; the kernel of `kernel`
            runs), or `no`.
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
        as_asked: Whether they are those of the candidate; False is a fall-back, and its time is no latency of
            the candidate.
        relative_error: max |y - reference| / max |reference|, against float64 arithmetic.
        tolerance: What the error may be.
        bytes_touched: What one call reads and writes; 0 where it is not known.
        another: Makes the same unit on buffers of its own, so that calls can find the cache cold; None where
            a backend cannot.
        most_copies: Of those at most, where one takes much beside its data.
    """

    run: Callable[[], object]
    executed: tuple[str, ...]
    as_asked: bool
    relative_error: float
    tolerance: float
    bytes_touched: int = 0
    another: Callable[[], Callable[[], object]] | None = None
    most_copies: int | None = None


@dataclass(frozen=True)
class Measured:
    """What a bench found of a cell or a whole model.

    Args:
        timing: Time of one call.
        anchor_us: Time of the fixed piece of work beside it.
        steady: Whether the device held still; if not, the reading is taken again.
        energies_mj: Energy of one call in each pass; empty where the device counts none.
        trouble: Why it did not hold still, where the device says so.
    """

    timing: Timing
    anchor_us: float
    steady: bool
    energies_mj: tuple[float, ...] = ()
    trouble: tuple[str, ...] = ()

    @property
    def energy_mj(self) -> float | None:
        """Mean energy of the passes; None where the device counts none."""
        return sum(self.energies_mj) / len(self.energies_mj) if self.energies_mj else None


class Bench(ABC):
    """Where and how the cells and whole models of a backend are timed.

    Class attributes:
        method: How it measures, for people; kept with the table.
        bytes_per_us: Memory that is read in a microsecond, for the prior of the cost model alone.
        bytes_per_mj: Memory that is read with a millijoule, for the same; None where energy is not counted.
        predicts_rows: Whether `hardware.predict` was made for its rows.
    """

    method: ClassVar[str]
    bytes_per_us: ClassVar[float]
    bytes_per_mj: ClassVar[float | None] = None
    predicts_rows: ClassVar[bool] = True

    @property
    def counts_energy(self) -> bool:
        """Whether the device has a counter of energy."""
        return False

    @abstractmethod
    def held(self) -> AbstractContextManager[object]:
        """Keeps the device as it should be while several cells or models are measured."""

    @abstractmethod
    def measure(self, cell: Cell) -> Measured:
        """Time a cell once, in two passes."""

    @abstractmethod
    def measure_models(self, runs: Sequence[Callable[[], object]], seed: int = 0) -> list[Measured]:
        """Time whole models in turns, each in two passes that lie apart.

        Args:
            runs: Each does one call of its model.
            seed: Random seed of the order of the turns.
        """


class Backend(ABC):
    """A runtime on this device; a frozen dataclass whose fields are the options that change its kernels."""

    name: ClassVar[str]
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

    @abstractmethod
    def bench(self, seconds: float = 0.25) -> Bench:
        """What its cells and whole models are timed by.

        Args:
            seconds: Time of measuring for each cell or model, where the bench counts seconds and not calls.
        Raises: DeviceMismatchError: The device is not there.
        """

    def device(self) -> DeviceIdentity:
        """What it runs on: the processor, unless a backend says otherwise.

        Raises: DeviceMismatchError: It is not there.
        """
        return identity()

    def require(self) -> None:  # noqa: B027  (most backends need nothing)
        """What is needed to run here, asked before a model is loaded.

        Raises:
            DeviceMismatchError: The device is not there.
            MissingExtraError: A package is not installed.
            OptionError: An option does not fit the device.
        """

    def shared(self) -> Any:
        """What a process that measures for this one is told, plain data: which device of several, and who
        else holds it; None where there is nothing to tell.
        """
        return None

    def join(self, told: Any) -> None:  # noqa: B027  (most backends are told nothing)
        """In such a process, before anything is built: what `shared` gave in the other."""

    def packed_bytes(self, layer: Layer, candidate: Candidate) -> int:
        """Bytes of the weight and its scales in the runtime's file, at the kernel of a candidate: 8-bit
        containers unless a backend knows better.
        """
        if not layer.weight_shape or candidate.is_float:
            return layer.weight_numel * 4
        return layer.weight_numel + 4 * layer.weight_shape[0]


BACKENDS: Registry[Backend] = Registry("backend", "mpsearch.hardware.backends")
