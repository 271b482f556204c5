"""CUDA graphs and events, as `reading.GraphTimer` wants them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from mpsearch.hardware.gpu.probe import needed


class CudaGraphTimer:
    """The current CUDA device. Raises DeviceMismatchError where there is none."""

    def __init__(self) -> None:
        self._l2 = needed().l2_bytes

    @property
    def l2_bytes(self) -> int:
        """Bytes of the level-2 cache."""
        return self._l2

    def capture(self, runs: Sequence[Callable[[], object]]) -> Callable[[], None]:
        """Warm up on a side stream, as capture asks, then one graph of all runs."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for run in dict.fromkeys(runs):
                run()
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [run() for run in runs]  # outputs live as long as the graph writes them

        def launch(graph: torch.cuda.CUDAGraph = graph, kept: list[object] = kept) -> None:
            graph.replay()

        return launch

    def times_us(self, launch: Callable[[], None], repeats: int) -> list[float]:
        """Each launch between two events; all are queued before the first is waited for, so the host is not
        in the way.
        """
        marks = [(_event(), _event()) for _ in range(repeats)]
        launch()
        for start, end in marks:
            start.record()
            launch()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in marks]

    def run_for(self, launch: Callable[[], None], seconds: float) -> int:
        """Launch for about `seconds`, in short queues."""
        end, launches = time.perf_counter() + seconds, 0
        while time.perf_counter() < end or not launches:
            for _ in range(8):
                launch()
            launches += 8
            torch.cuda.synchronize()
        return launches


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
