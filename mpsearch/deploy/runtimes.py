"""The runtimes that `mpsearch run` can measure and ship to, each under the name of its backend: one way to write, measure and run a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mpsearch.deploy.onnx import OnnxRun, load_onnx, measure_onnx, quantize_onnx, run_onnx, save_onnx
from mpsearch.deploy.openvino import OpenVinoRun, load_openvino, measure_openvino, run_openvino, write_openvino
from mpsearch.deploy.origin import Origin
from mpsearch.deploy.triton_cuda import TritonRun, load_triton, measure_triton, run_triton, write_triton
from mpsearch.quant import UnitState

States = Mapping[str, UnitState]


@dataclass(frozen=True)
class DeployedRuntime:
    """How a runtime's file is made and used.

    Args:
        key: Prefix of what is said of it in results, such as `onnx_bytes`.
        title: For people.
        suffix: Of the file.
        write: Path, origin, states -> bytes on disk.
        load: Path, origin, an image, threads -> function that runs it once, and how many calls of units run quantised.
        measure: Path, origin, an image, threads, rounds -> timing and what runs.
        run: Path, origin, threads -> function from images to logits.
        apart: Whether the file alone is enough to run it in a process of its own.
    """

    key: str
    title: str
    suffix: str
    write: Callable[[Path, Origin, States], int]
    load: Callable[[Path, Origin, Tensor, int], tuple[Callable[[], object], int]]
    measure: Callable[[Path, Origin, Tensor, int, int], OnnxRun | OpenVinoRun | TritonRun]
    run: Callable[[Path, Origin, int], Callable[[Tensor], Any]]
    apart: bool = True


def _write_onnx(path: Path, origin: Origin, states: States) -> int:
    return save_onnx(path, quantize_onnx(origin.graph(), states, origin.calibration))


def _write_openvino(path: Path, origin: Origin, states: States, precision: str) -> int:
    return write_openvino(path, origin.graph(), states, precision)


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """For files that say all: the origin is left out."""
    return lambda path, origin, *rest: function(path, *rest)


def _openvino(precision: str) -> DeployedRuntime:
    write = partial(_write_openvino, precision=precision)
    return DeployedRuntime("openvino", "OpenVINO", ".xml", write, _alone(load_openvino), _alone(measure_openvino), _alone(run_openvino))


RUNTIMES: Mapping[str, DeployedRuntime] = {
    "ort-cpu": DeployedRuntime("onnx", "ONNX", ".onnx", _write_onnx, _alone(load_onnx), _alone(measure_onnx), _alone(run_onnx)),
    "openvino-cpu": _openvino("f32"),
    "openvino-cpu-bf16": _openvino("bf16"),
    "triton-cuda": DeployedRuntime("triton", "Triton", ".safetensors", write_triton, load_triton, measure_triton, run_triton, apart=False),
}
