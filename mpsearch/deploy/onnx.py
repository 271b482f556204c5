"""The ONNX file with Q/DQ nodes: torch exports the float graph once; each assignment rewrites the nodes of
its units.

A unit is found by the module scope that the exporter writes on every node. Weights are int8 (fewer bits keep
their narrower range in an int8 container; rows of 8 bits whose products would overflow on some processors
lose a part of one, see `hardware.overflow`), activations uint8. A convolution runs in integers only if its
output is quantised too; where the next thing that reads it is not a quantised unit (a residual sum), its own
calibrated 8-bit grid is put there, one for each call of the unit: an error that the fake-quantised model does
not have.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpsearch import files
from mpsearch.deploy.graph import (
    constant_value,
    drop_unused,
    keep_arithmetic,
    keep_pads,
    readers_of,
    replace_nodes,
    unit_of,
    with_biases,
)
from mpsearch.errors import ModelError
from mpsearch.foreign import one_message
from mpsearch.hardware.backends.ort_cpu import executed, kernels_of, session
from mpsearch.hardware.bench import time_apart
from mpsearch.hardware.measure import Timing
from mpsearch.hardware.overflow import is_depthwise, without_overflow
from mpsearch.hardware.ports import onnx_ports
from mpsearch.hardware.qdq import OPSET, Grid, QdqWriter, QuantizedWeight, opset_imports
from mpsearch.models import Form, apart, form_of
from mpsearch.problem import Candidate
from mpsearch.pytrees import Inputs, arrays_of, joined, leaves_of, repeated
from mpsearch.quant import OBSERVERS, AffineParams, QuantizedTensor, UnitState, affine_input
from mpsearch.reconstruct import Calibration

_INTEGER = {"QLinearConv", "MatMulIntegerToFloat"}


def export_float(module: nn.Module, example: Inputs, opset: int = OPSET) -> ModelProto:
    """The float graph of a folded model, dynamic batch, by torch's exporter.

    Args:
        module: One batch in, one tensor out, eval mode; of one that was bound to a form, the file has the
            inputs and outputs of its own, by name.
        example: 1 x C x H x W or more, or what else it reads.
        opset: Version of the operators; 21 has 4-bit and blockwise DequantizeLinear.
    Raises: ModelError: torch cannot export it.
    """
    one, form = example[:1], form_of(module)
    two = joined([one, one])  # a batch of one would be fixed by the exporter
    named: dict[str, Any] = {} if form is None else _port_names(form)
    axis, two = (0, two) if form is None else (form.batch_axis, form.placed(two))
    try:
        # fused attention with a mask is traced with the strides of one kernel and decomposed with those of
        # another, which the exporter refuses
        with (
            warnings.catch_warnings(),
            sdpa_kernel(SDPBackend.MATH),
            contextlib.nullcontext() if form is None else apart(module),
        ):
            warnings.simplefilter("ignore")  # the exporter's advice to itself
            each = [{axis: torch.export.Dim.DYNAMIC} for _ in leaves_of(two)]
            dynamic: Any = (each[0] if isinstance(two, Tensor) else each,)
            program = torch.onnx.export(
                module,
                (two,),
                **named,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic,
                verbose=False,
                optimize=False,
            )
            if program is not None:
                _optimize(program)
    except Exception as error:  # torch's exporter has no common base class for its errors
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"The model cannot be exported to ONNX: {first} Run with --target packed for the packed "
            "checkpoint alone."
        ) from error
    if program is None:
        raise ModelError(
            "torch's exporter returned nothing. Run with --target packed for the packed checkpoint alone."
        )
    proto: ModelProto = program.model_proto
    keep_pads(proto)
    return proto


def _port_names(form: Form) -> dict[str, list[str]]:
    """Names of the file's inputs and outputs, none twice."""
    given = [leaf.name or "input" for leaf in form.inputs]
    result = [leaf.name or "output" for leaf in form.outputs]
    return {
        "input_names": given,
        "output_names": [f"output.{name}" if name in given or name.isdigit() else name for name in result],
    }


def _optimize(program: torch.onnx.ONNXProgram) -> None:
    """The exporter's own optimiser, which must not merge the batch norms that are left into units: a unit's
    weight stays its own.
    """
    norms = [node for node in program.model.graph.all_nodes() if node.op_type == "BatchNormalization"]
    for node in norms:
        node.domain = "mpsearch"  # which no rule of the optimiser knows
    program.optimize()
    for node in norms:
        node.domain = ""


def quantize_onnx(
    float_model: ModelProto, states: Mapping[str, UnitState], calibration: Calibration
) -> ModelProto:
    """The graph of an assignment.

    Args:
        float_model: From `export_float`; left as it is.
        states: Every unit's codes and quantisers.
        calibration: For the output ranges of convolutions.
    Raises: ModelError: A quantised unit has no node of its own in the graph.
    """
    model = with_biases(float_model, states)
    quantized = {unit: state for unit, state in states.items() if state.weight is not None}
    placed = _rewrite_units(model, quantized)
    missing = sorted(set(quantized) - set(placed))
    if missing:
        raise ModelError(
            f"The exported graph has no node for the units {missing[:5]}. Run with --target packed for "
            "the packed checkpoint alone."
        )
    _quantize_outputs(model, placed, calibration)
    keep_arithmetic(model)
    drop_unused(model)
    with one_message(
        "The graph would be no valid ONNX", "Run with --target packed for the packed checkpoint alone."
    ):
        onnx.checker.check_model(model)
    return model


def save_onnx(path: Path, model: ModelProto) -> int:
    """Write the file whole or not at all; its bytes on disk."""
    with files.replacing(path) as beside:
        beside.write_bytes(model.SerializeToString())
    return path.stat().st_size


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


def _rewrite_units(model: ModelProto, states: Mapping[str, UnitState]) -> dict[str, list[str | None]]:
    """Replace the node of each unit in place.

    Returns: Unit -> for each call, in order, the output of its new convolution; None where it is not to be
        quantised.
    """
    writer = QdqWriter()
    placed: dict[str, list[str | None]] = {}
    for node in model.graph.node:
        unit = unit_of(node)
        state = states.get(unit) if node.op_type in ("Conv", "Gemm", "MatMul") else None
        if state is None or state.weight is None:
            writer.nodes.append(node)
            continue
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        given = held_weight(state if state.activation is None else exact(state, groups))
        named = node.input[2] if len(node.input) > 2 else ""
        bias = constant_value(model, named) if named else None
        output = node.output[0]
        if named and bias is None:  # it is computed from what the model reads: added apart, in float
            output = writer.added(named, output, given.codes.ndim - 2)
        if state.activation is None:
            _rewrite_stored(writer, node, given, bias, state.candidate, output)
            kept = None
        elif node.op_type == "Conv":
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            kept = writer.conv(
                node.input[0], given, bias, _grid(affine_input(unit, state)), attributes, output
            )
        else:
            writer.linear(node.input[0], given, bias, _grid(affine_input(unit, state)), output)
            kept = None
        placed.setdefault(unit, []).append(kept if output == node.output[0] else None)
    replace_nodes(model, writer.nodes, writer.initializers)
    imports = opset_imports(max(o.version for o in model.opset_import if not o.domain))
    del model.opset_import[:]
    model.opset_import.extend(imports)
    return placed


def held_weight(state: UnitState) -> QuantizedWeight:
    """Codes and a scale for each output channel of a unit whose weight is quantised."""
    assert state.weight is not None
    codes = state.weight.codes
    return QuantizedWeight(codes.to(torch.int8).numpy(), state.weight.params.scale.expand(len(codes)).numpy())


def exact(state: UnitState, groups: int) -> UnitState:
    """The state of an integer unit as the file has it: rows whose products would overflow without VNNI on
    coarser scales.

    Args:
        state: With a uniform input.
        groups: Of its convolution; 1 for a linear layer.
    """
    if (
        state.weight is None
        or state.activation is None
        or is_depthwise(tuple(state.weight.codes.shape), groups)
    ):
        return state
    weight = held_weight(state)
    found = without_overflow(weight, state.activation.bits)
    if np.array_equal(found.codes, weight.codes):
        return state
    scale = torch.from_numpy(found.scale)
    params = replace(
        state.weight.params, scale=scale, zero_point=torch.zeros_like(scale, dtype=torch.int32), axis=0
    )
    return replace(state, weight=QuantizedTensor(torch.from_numpy(found.codes).to(torch.int16), params))


def _rewrite_stored(
    writer: QdqWriter, node: NodeProto, weight: QuantizedWeight, bias: Any, candidate: Candidate, output: str
) -> None:
    """A unit whose weight alone is quantised. Raises ModelError for a convolution, which this runtime has no
    such kernel for.
    """
    if node.op_type == "Conv":
        raise ModelError(
            f"The convolution {unit_of(node)!r} is at {candidate}; ONNX Runtime stores weights alone for "
            "linear layers only. Give it 2 to 8 input bits."
        )
    writer.stored_linear(node.input[0], weight, bias, 4 if (candidate.w_bits or 8) <= 4 else 8, output)


def _quantize_outputs(
    model: ModelProto, placed: Mapping[str, list[str | None]], calibration: Calibration
) -> None:
    """Put a Q/DQ pair behind each quantised convolution (and the ReLU behind it) whose readers are not all
    one QuantizeLinear that fits.
    """
    readers = readers_of(model.graph.node)
    values = {
        i.name: numpy_helper.to_array(i)
        for i in model.graph.initializer
        if not i.name.endswith("weight") and len(i.dims) == 0
    }
    values |= {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t)
        for n in model.graph.node
        if n.op_type == "Constant" and n.attribute[0].name == "value"
    }
    graph_outputs = {o.name for o in model.graph.output}
    writer = QdqWriter("mpsearch/out")
    rename: dict[str, str] = {}
    for unit, outputs in placed.items():
        samples = calibration.call_outputs.get(unit, ())
        if len(samples) != len(
            outputs
        ):  # the exporter merged calls that read one tensor, or dropped some: one grid for what is left
            samples = (calibration.outputs[unit],) * len(outputs)
        for output, sample in zip(outputs, samples, strict=True):
            if output is None:
                continue
            point, low, high = _behind_activation(output, readers, values)
            behind = readers[point]
            if point in graph_outputs or (len(behind) == 1 and _fits(behind[0], values, low, high)):
                continue  # what the model returns stays as exact as it can be
            writer.quantized(point, _output_grid(calibration, sample.clamp(low, high)))
            rename[point] = writer.nodes[-1].output[0]
    nodes = list(model.graph.node)
    for node in nodes:
        for i, name in enumerate(node.input):
            if name in rename:
                node.input[i] = rename[name]
    replace_nodes(model, [*nodes, *writer.nodes], writer.initializers)


def _behind_activation(
    output: str, readers: Mapping[str, list[NodeProto]], values: Mapping[str, Any]
) -> tuple[str, float, float]:
    """The tensor that an integer kernel would give, and its bounds: behind a ReLU or ReLU6 that alone reads
    the convolution, else its output.
    """
    if len(readers[output]) != 1:
        return output, -np.inf, np.inf
    node = readers[output][0]
    if node.op_type == "Relu":
        return node.output[0], 0.0, np.inf
    if (
        node.op_type == "Clip"
        and len(node.input) == 3
        and node.input[1] in values
        and node.input[2] in values
        and float(values[node.input[1]]) == 0
    ):
        return node.output[0], 0.0, float(values[node.input[2]])
    return output, -np.inf, np.inf


def _fits(node: NodeProto, values: Mapping[str, Any], low: float, high: float) -> bool:
    """Whether a QuantizeLinear makes the activation before it redundant, so that the runtime fuses all
    three.
    """
    if node.op_type != "QuantizeLinear":
        return False
    scale, zero = float(values[node.input[1]]), int(values[node.input[2]])
    return (low == -np.inf or zero == 0) and (255 - zero) * scale <= high * (1 + 1e-6)


def _output_grid(calibration: Calibration, values: Tensor) -> Grid:
    return _grid(OBSERVERS.create(calibration.uniform_observer).observe(values, 8, symmetric=False))


def _grid(params: AffineParams) -> Grid:
    return Grid(float(params.scale), int(params.zero_point), params.bits)
