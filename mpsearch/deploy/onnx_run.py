"""An ONNX file in ONNX Runtime, by the session that a deployment would use: what it computes, how long it
takes, and what it executes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpsearch.foreign import one_message
from mpsearch.hardware.backends.ort_cpu import executed, kernels_of, session
from mpsearch.hardware.bench import time_apart
from mpsearch.hardware.measure import Timing
from mpsearch.hardware.ports import onnx_ports
from mpsearch.pytrees import Inputs, arrays_of, repeated

_INTEGER = {"QLinearConv", "MatMulIntegerToFloat"}


@dataclass(frozen=True)
class OnnxRun:
    """What ONNX Runtime makes of a file.

    Args:
        timing: Of one call.
        executed: Operators that run.
    """

    timing: Timing
    executed: tuple[str, ...]

    @property
    def integer_kernels(self) -> int:
        """How many units run in integers."""
        return sum(op in _INTEGER for op in self.executed)


def load_onnx(
    path: Path, images: Inputs, threads: int = 1, batch: int = 1
) -> tuple[Callable[[], object], int]:
    """A file ready to run `batch` images in a call, by the session that a deployment would use, and how many
    calls of its units run quantised.
    """
    return _call(path, images, threads, batch), sum(
        kernel in ("integer", "stored") for kernel in kernels_of(executed(path, threads))
    )


def measure_onnx(
    path: Path, images: Inputs, threads: int = 1, rounds: int = 1, seconds: float = 0.5, batch: int = 1
) -> OnnxRun:
    """Latency of the whole model for `batch` images in a call, by the session that a deployment would use,
    and what it executes; `rounds` as in `time_apart`.
    """
    return OnnxRun(
        time_apart(_call(path, images, threads, batch), threads=threads, seconds=seconds, rounds=rounds),
        executed(path, threads),
    )


def _call(path: Path, images: Inputs, threads: int, batch: int) -> Callable[[], object]:
    live = _opened(path, threads)
    feeds = onnx_ports(live).feeds(arrays_of(repeated(images, batch)))
    return lambda: live.run(None, feeds)


def run_onnx(path: Path, threads: int = 1, *, fused: bool = True) -> Any:
    """A function from N x C x H x W, or other inputs, to N x K logits, computed by ONNX Runtime;
    `fused` as in `session`.
    """
    live = _opened(path, threads, fused=fused)
    ports = onnx_ports(live)

    def run(inputs: Inputs) -> Tensor:
        return torch.from_numpy(ports.joined(live.run(None, ports.feeds(arrays_of(inputs)))))

    return run


def _opened(path: Path, threads: int, *, fused: bool = True) -> Any:
    with one_message(
        f"ONNX Runtime cannot open {path}", "Run with --target packed for the packed checkpoint alone."
    ):
        return session(path, threads, fused=fused)
