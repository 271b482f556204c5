"""A step that is taken again and again: as it stands on a CPU, captured once as a CUDA graph and replayed on
a GPU.

A small block's step is some hundred kernels, which a GPU runs faster than Python can launch them. A graph
launches them at once. What it replays reads the same memory each time, and no Python: whatever changes from
step to step must be a tensor that is changed in place, and what decides between two courses of the step is
its form. Each form is captured for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

import torch

from mpsearch.errors import ModelError, OptionError

# steps of a form that are taken as they stand before it is captured: kernels are chosen, and optimisers make
# their state
WARM = 3

F = TypeVar("F", bound=Hashable)


class Recorder(Protocol):
    """What turns a function of no arguments into one that does the same to the same memory."""

    def warm(self, function: Callable[[], None]) -> None:
        """Run it as it stands."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """A replay of it; recording itself need not run it."""


class CudaGraphs:
    """Records CUDA graphs, all in one pool of memory: what one of them leaves there is no longer needed when
    another is replayed.

    Args:
        generator: Random generator of all random numbers in the functions; a replay goes on in its sequence.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator, self._pool = generator, torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(generator.device)  # type: ignore[no-untyped-call]

    def warm(self, function: Callable[[], None]) -> None:
        """On the stream that will capture."""
        now = torch.cuda.current_stream(self._generator.device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            function()
        now.wait_stream(self._stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture; nothing runs."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            function()
        return graph.replay


class Repeated(Generic[F]):
    """Takes a step in one of its forms: the first few of each as they stand, then by replays.

    Args:
        step: Reads nothing but its form and tensors.
        recorder: None takes every step as it stands.
        name: Name of the step, for messages.
    """

    def __init__(self, step: Callable[[F], None], recorder: Recorder | None, name: str) -> None:
        self._step, self._recorder, self._name = step, recorder, name
        self._taken: dict[F, int] = {}
        self._replays: dict[F, Callable[[], None]] = {}

    def __call__(self, form: F) -> None:
        """One step. Raises ModelError where it cannot be captured."""
        if self._recorder is None:
            self._step(form)
            return
        taken = self._taken[form] = self._taken.get(form, 0) + 1
        if taken <= WARM:
            self._recorder.warm(lambda: self._step(form))
            return
        if form not in self._replays:
            try:
                self._replays[form] = self._recorder.record(lambda: self._step(form))
            except RuntimeError as error:
                raise ModelError(
                    f"{self._name} cannot be captured as a CUDA graph: {error}. Learn without: "
                    "ReconstructionConfig(capture=False)."
                ) from error
        self._replays[form]()


def recorder(device: torch.device, generator: torch.Generator, wanted: bool | None) -> Recorder | None:
    """CUDA graphs on a CUDA device, unless they are not wanted; nothing on others.

    Raises: OptionError: They are wanted on another device.
    """
    if device.type == "cuda" and wanted is not False:
        return CudaGraphs(generator)
    if wanted:
        raise OptionError(
            f"A step on {device.type!r} cannot be captured; only CUDA has graphs. Set "
            "ReconstructionConfig(capture=None)."
        )
    return None
