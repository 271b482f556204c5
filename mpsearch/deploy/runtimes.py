"""The runtimes that `mpsearch run` can measure and ship to, each under the name of its backend: one way to write, measure and run a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onnx import ModelProto
from torch import Tensor

from mpsearch.deploy.onnx import OnnxRun, load_onnx, measure_onnx, quantize_onnx, run_onnx, save_onnx
from mpsearch.deploy.openvino import OpenVinoRun, load_openvino, measure_openvino, run_openvino, write_openvino
from mpsearch.quant import UnitState
from mpsearch.reconstruct import Calibration

States = Mapping[str, UnitState]


@dataclass(frozen=True)
class DeployedRuntime:
    """How a runtime's file is made and used.

    Args:
        key: Prefix of what is said of it in results, such as `onnx_bytes`.
        title: For people.
        suffix: Of the file.
        write: Path, float ONNX graph, states, calibration -> bytes on disk.
        load: Path, an image, threads -> function that runs it once, and how many calls of units run quantised.
        measure: Path, an image, threads, rounds -> timing and what runs.
        run: Path, threads -> function from images to logits.
    """

    key: str
    title: str
    suffix: str
    write: Callable[[Path, ModelProto, States, Calibration], int]
    load: Callable[[Path, Tensor, int], tuple[Callable[[], object], int]]
    measure: Callable[[Path, Tensor, int, int], OnnxRun | OpenVinoRun]
    run: Callable[[Path, int], Callable[[Tensor], Any]]


def _write_onnx(path: Path, graph: ModelProto, states: States, calibration: Calibration) -> int:
    return save_onnx(path, quantize_onnx(graph, states, calibration))


def _write_openvino(path: Path, graph: ModelProto, states: States, _: Calibration, precision: str) -> int:
    return write_openvino(path, graph, states, precision)


def _openvino(precision: str) -> DeployedRuntime:
    return DeployedRuntime("openvino", "OpenVINO", ".xml", partial(_write_openvino, precision=precision), load_openvino, measure_openvino, run_openvino)


RUNTIMES: Mapping[str, DeployedRuntime] = {
    "ort-cpu": DeployedRuntime("onnx", "ONNX", ".onnx", _write_onnx, load_onnx, measure_onnx, run_onnx),
    "openvino-cpu": _openvino("f32"),
    "openvino-cpu-bf16": _openvino("bf16"),
}
