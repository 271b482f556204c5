"""`exclusions`: which layers stay float, in the words of the tools that quantise the rest, and the float
graph whose nodes they name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from onnx import ModelProto
from torch import nn

from mpsearch.deploy.graph import unit_of
from mpsearch.deploy.onnx import save_onnx
from mpsearch.deploy.onnx_run import run_onnx
from mpsearch.deploy.targets._base import TARGETS, Job, Run, Target
from mpsearch.deploy.targets.states import refuse_products
from mpsearch.hardware.qdq import OPSET
from mpsearch.quant import UnitState

LISTS = "exclusions.json"
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that are quantised or left float; what stands between them is the tool's."""


@TARGETS.register("exclusions")
@dataclass(frozen=True)
class Exclusions(Target):
    """`exclusions.json`, and `model.onnx`, the float graph with batch norms folded, for tools of ONNX."""

    file: ClassVar[str] = "model.onnx"
    runs_with: ClassVar[str] = "ONNX Runtime, CPU: the float graph, not quantised yet"

    def states(self, job: Job) -> Mapping[str, UnitState]:
        """None: what is written is the float model."""
        return {}

    def write(self, job: Job, folder: Path) -> list[str]:
        """Two files."""
        refuse_products(job, self.name)
        model = job.float_onnx(OPSET)
        lists = exclusions(job, model)
        save_onnx(folder / self.file, model)
        (folder / LISTS).write_text(json.dumps(lists, indent=1) + "\n")
        kept, of = lists["float_units"], len(job.layout.weights)
        named = ": " + ", ".join(kept) if kept else ""
        return [f"{len(kept)} of {of} units stay float{named}. {LISTS} says so to each tool."]

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """A session of ONNX Runtime on the float graph."""
        run: Run = run_onnx(folder / self.file, threads)
        return run


def exclusions(job: Job, model: ModelProto) -> dict[str, Any]:
    """What each tool is told.

    Args:
        job: Its states say which units are quantised. Products of two activations are named in the lists of
            nodes alone: the tools that read modules have no module for them.
        model: The float graph; its nodes have names.
    Returns: `float_units`, and a part for each tool, in the words of that tool.
    """
    floats = [unit for unit in job.layout.weights if job.states[unit].candidate.is_float]
    quantized = {unit for unit, state in job.states.items() if not state.candidate.is_float}
    nodes = [n.name for n in model.graph.node if n.op_type in PRODUCTS and unit_of(n) not in quantized]
    return {
        "schema": 1,
        "float_units": floats,
        "onnxruntime": {
            "op_types_to_quantize": sorted({n.op_type for n in model.graph.node} & set(PRODUCTS)),
            "nodes_to_exclude": nodes,
        },
        "modelopt": {
            "quant_cfg": [{"quantizer_name": f"{unit}.*_quantizer", "enable": False} for unit in floats]
        },
        "nncf": {"onnx": {"names": nodes}, "torch": {"names": _torch_operators(job, floats)}},
        "tensorrt": {
            "layer_precisions": dict.fromkeys(nodes, "fp16"),
            "trtexec": _trtexec(nodes),
        },
    }


def _torch_operators(job: Job, units: Sequence[str]) -> list[str]:
    """NNCF's names of the operators of units, one for each call of one."""
    kinds = {
        unit: "linear" if isinstance(job.module.get_submodule(unit), nn.Linear) else "conv2d"
        for unit in units
    }
    return [
        f"{unit.replace('.', '/')}/{kinds[unit]}/{call}"
        for unit in units
        for call in range(job.calls.get(unit, 1))
    ]


def _trtexec(nodes: Sequence[str]) -> list[str]:
    """Options beside `--int8 --fp16` of networks that are not strongly typed; none where all is quantised."""
    if not nodes:
        return []
    return ["--precisionConstraints=obey", "--layerPrecisions=" + ",".join(f"{n}:fp16" for n in nodes)]
