"""Memory of activations: which tensors of an exported graph are alive at once, and what a runtime's process
really took.

A tensor is alive from the node that writes it to the last one that reads it. Nodes that a runtime computes as
one write no tensor between them: an integer convolution reads codes and writes codes, so neither the floats
in front of it nor those behind it exist. Weights are not counted; the size budget limits them. The result is
a lower bound of what a runtime takes (it adds scratch space and rounds its blocks up): `measured_peak` tells
by how much.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from mpsearch.deploy.graph import unit_of
from mpsearch.errors import ModelError, MpsearchError
from mpsearch.problem import Layer

_BYTES = {
    TensorProto.FLOAT: 4,
    TensorProto.UINT8: 1,
    TensorProto.INT8: 1,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
    TensorProto.BOOL: 1,
}
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
_INTO_CODES = {"Relu", "Clip"}


@dataclass(frozen=True)
class Peak:
    """Where activations need most memory.

    Args:
        bytes: Alive at once.
        node: Name of the node that runs then.
        by_node: Node -> bytes alive while it runs.
    """

    bytes: int
    node: str
    by_node: Mapping[str, int]


def activation_peak(model: ModelProto, batch: int = 1) -> Peak:
    """Peak of the activations of an exported graph, float or with Q/DQ nodes, by liveness in the order of its
    nodes.

    Args:
        model: With a dynamic or fixed batch.
        batch: Images in a call.
    Raises: ModelError: The shape of a tensor cannot be inferred.
    """
    sizes, constants = _sizes(model, batch), {i.name for i in model.graph.initializer}
    nodes = [
        n
        for n in model.graph.node
        if any(name not in constants for name in n.input if name) and n.op_type != "Constant"
    ]
    nodes = [n for n in nodes if not all(i in constants for i in n.input if i)]
    root = _views(nodes)
    unreal = _fused(nodes)
    last: dict[str, int] = {}
    for at, node in enumerate(nodes):
        for name in node.input:
            last[root.get(name, name)] = at
    for node in reversed(nodes):  # what a tensor that does not exist is made of is read when that tensor is
        until = max((last.get(name, -1) for name in node.output if name in unreal), default=-1)
        for name in node.input:
            last[root.get(name, name)] = max(last[root.get(name, name)], until)
    for given in (
        *model.graph.input,
        *model.graph.output,
    ):  # what is given belongs to the caller, who keeps it
        last[root.get(given.name, given.name)] = len(nodes)
    alive = {i.name: sizes[i.name] for i in model.graph.input if i.name not in constants}
    by_node: dict[str, int] = {}
    for at, node in enumerate(nodes):
        for name in node.output:
            if name and name not in unreal and name not in root:
                if name not in sizes:
                    raise ModelError(
                        f"The shape of {name!r} cannot be inferred from the exported graph, so its "
                        "memory is not known."
                    )
                alive[name] = sizes[name]
        by_node[node.name or f"{node.op_type} {at}"] = sum(alive.values())
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > at}
    node = max(by_node, key=lambda name: by_node[name])
    return Peak(by_node[node], node, by_node)


def _sizes(model: ModelProto, batch: int) -> dict[str, int]:
    """Bytes of every tensor whose shape is known once the batch is."""
    fixed = ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis == 0 or not dim.HasField("dim_value"):
                dim.dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    found = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
        if tensor.elem_type in _BYTES and all(dims):
            found[value.name] = math.prod(dims) * _BYTES[tensor.elem_type]
    return found


def _views(nodes: Sequence[NodeProto]) -> dict[str, str]:
    """Tensors that are another one in another shape."""
    root: dict[str, str] = {}
    for node in nodes:
        if node.op_type in _VIEWS:
            root[node.output[0]] = root.get(node.input[0], node.input[0])
    return root


def _fused(nodes: Sequence[NodeProto]) -> set[str]:
    """Tensors that are never written, because what makes them and what reads them run as one.

    The floats between DequantizeLinear and the integer kernels that alone read them; those between an integer
    kernel and the QuantizeLinear behind it, an activation between them included; and the result of a float
    convolution that an activation alone reads.
    """
    writers = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    integer = {
        id(n)
        for n in nodes
        if n.op_type in ("Conv", "MatMul") and _made_by(writers, n.input[0], "DequantizeLinear")
    }
    unreal = {
        n.output[0]
        for n in nodes
        if n.op_type == "DequantizeLinear"
        and all(id(r) in integer for r in readers.get(n.output[0], []))
        and readers.get(n.output[0])
    }
    for node in nodes:
        behind = readers.get(node.output[0], [])
        if (
            node.op_type == "Conv"
            and len(behind) == 1
            and behind[0].op_type in (*_INTO_CODES, "QuantizeLinear")
        ):
            unreal.add(node.output[0])
            after = readers.get(behind[0].output[0], [])
            if (
                behind[0].op_type in _INTO_CODES
                and id(node) in integer
                and len(after) == 1
                and after[0].op_type == "QuantizeLinear"
            ):
                unreal.add(behind[0].output[0])
    return unreal


def _made_by(writers: Mapping[str, NodeProto], name: str, op: str) -> bool:
    return name in writers and writers[name].op_type == op


def memory_rows(
    model: ModelProto,
    layers: Sequence[Layer],
    kernels: Sequence[Sequence[str]],
    unit_nodes: Mapping[str, Sequence[str]],
) -> list[list[float]]:
    """`L x C` bytes that may be alive while a unit runs, each choice by itself: what a peak budget is
    searched with.

    A unit in integers has the codes of its input and output beside the floats that its neighbours may want:
    an upper bound where the neighbours are integers too, for then the floats do not exist. The peak of what
    is no unit is a floor of every row. What is chosen is measured by `activation_peak` of its own graph.

    Args:
        model: The float graph, from `export_float`.
        layers: L units.
        kernels: For each the kernel of each candidate.
        unit_nodes: Unit -> names of its nodes in the graph.
    """
    peak = activation_peak(model)
    mine = {name for names in unit_nodes.values() for name in names}
    floor = max((size for name, size in peak.by_node.items() if name not in mine), default=0)
    rows = []
    for layer, row in zip(layers, kernels, strict=True):
        alive = max((peak.by_node[name] for name in unit_nodes.get(layer.name, ())), default=0)
        codes = sum(math.prod(s) for s in layer.input_shapes) + (
            math.prod(layer.output_shape) if layer.op == "conv2d" else 0
        )
        rows.append([float(max(floor, alive + (0 if kernel == "float" else codes))) for kernel in row])
    return rows


def unit_nodes(model: ModelProto) -> dict[str, list[str]]:
    """Unit -> names of the nodes of the float graph that compute it."""
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            found.setdefault(unit_of(node), []).append(node.name)
    return found


_PROBE = """
import ctypes, json, sys
import numpy as np
from pathlib import Path
from mpsearch.hardware.backends.ort_cpu import session
from mpsearch.hardware.ports import onnx_ports
def read(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
live = session(Path(sys.argv[1]), 1, arena=False)
ports = onnx_ports(live)
feeds = ports.feeds([np.ones(shape, kind) for shape, kind in json.loads(sys.argv[2])])
live.run(None, feeds)
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = read("VmRSS")
live.run(None, feeds)
print(read("VmHWM") - before + sum(array.nbytes for array in feeds.values()))
"""


def measured_peak(path: Path, inputs: Sequence[tuple[Sequence[int], str]]) -> int:
    """Bytes of tensors and scratch space at their highest while ONNX Runtime runs a file: what the resident
    memory of a new process grows by, and the input.

    The runtime is loaded and has run once before; its arena is off and large blocks are given back to the
    system, so that memory that lies about unused from loading does not hide what a call takes.

    Args:
        path: The ONNX file.
        inputs: Shape, batch included, and type of each input, such as `float32`.
    Raises: MpsearchError: The system does not tell (it must be Linux with glibc), or the file does not run.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", _PROBE, str(path), json.dumps([[list(size), kind] for size, kind in inputs])],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise MpsearchError(
            f"The memory of {path} could not be measured: {last}. It needs Linux, and a file that ONNX "
            "Runtime runs."
        )
    return int(ran.stdout)
