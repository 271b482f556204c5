"""The file for OpenVINO (IR): the float ONNX graph as OpenVINO reads it, with the nodes of each unit
rewritten for its candidate.

Integer units are an int8 weight and a FakeQuantize at their input; weight-only units a compressed constant;
the output of a unit is float, so that no grid is added that the fake-quantised model does not have. The batch
stays free. See `mpsearch.hardware.openvino_nodes` for the nodes, which are those that were timed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from mpsearch.deploy.graph import unit_of, with_biases
from mpsearch.deploy.onnx_packing import bits_of
from mpsearch.errors import ModelError
from mpsearch.foreign import one_message
from mpsearch.hardware.bench import time_apart
from mpsearch.hardware.ir import PREFIX, fallbacks, read_ir, write_ir
from mpsearch.hardware.measure import Timing
from mpsearch.hardware.openvino_nodes import OpenVinoWriter, arithmetic_of, compiled, openvino, ran_nodes
from mpsearch.hardware.overflow import is_depthwise
from mpsearch.hardware.ports import Ports
from mpsearch.hardware.qdq import Grid, QuantizedWeight
from mpsearch.problem import ConvAttributes
from mpsearch.pytrees import Inputs, arrays_of, repeated
from mpsearch.quant import OBSERVERS, QuantizedTensor, UnitState, affine_input, quantize

_UNITS = ("Convolution", "GroupConvolution", "MatMul")
_KEPT = 4
_ELSEWHERE = "Run with --target packed for the packed checkpoint alone, or for another runtime."


@dataclass(frozen=True)
class OpenVinoRun:
    """What OpenVINO makes of a file.

    Args:
        timing: Of one call.
        executed: Nodes that run, as kind, precision and kernel.
        fallbacks: Unit -> kernel that runs, where it is not the one the unit was written for.
        integer_kernels: How many nodes run in integers.
    """

    timing: Timing
    executed: tuple[str, ...]
    fallbacks: Mapping[str, str]
    integer_kernels: int


def quantize_openvino(
    float_model: ModelProto, states: Mapping[str, UnitState], *, packed: bool = True
) -> Any:
    """The graph of an assignment, an openvino.Model.

    Args:
        float_model: From `export_float`; left as it is.
        states: Every unit's codes and quantisers.
        packed: Whether weights of integer units take as many bits as their codes need.

    Raises:
        ModelError: A unit has no node of its own in the graph.
        MissingExtraError: OpenVINO is not installed.
        MpsearchError: OpenVINO cannot read the model.
    """
    runtime = openvino()
    named, units = _named(float_model, states)
    with one_message("OpenVINO cannot read the model", _ELSEWHERE):
        model = runtime.Core().read_model(named.SerializeToString())
    writer, placed = OpenVinoWriter(), Counter[str]()
    for node in model.get_ordered_ops():
        unit = units.get(node.get_friendly_name().removesuffix("/WithoutBiases"))
        if unit is None or node.get_type_name() not in _UNITS:
            continue
        new = _rewritten(writer, node, unit, states[unit], packed)
        _name(new, f"{PREFIX}{unit}#{placed[unit]}")
        placed[unit] += 1
    missing = sorted(set(states) - set(placed))
    if missing:
        raise ModelError(
            f"OpenVINO's graph has no node for the units {missing[:5]}. Run with --target packed for the "
            "packed checkpoint alone."
        )
    model.validate_nodes_and_infer_types()
    return model


def write_openvino(
    path: Path,
    float_model: ModelProto,
    states: Mapping[str, UnitState],
    precision: str = "f32",
    *,
    packed: bool = True,
) -> int:
    """Write the IR of an assignment whole or not at all: `path` (.xml) and the .bin beside it. Returns the
    bytes of both.

    Args:
        path: The .xml.
        float_model: From `export_float`.
        states: Every unit's codes and quantisers.
        precision: What float layers compute in, `f32` or `bf16`; kept in the file.
        packed: As in `quantize_openvino`.
    Raises: ModelError: As `quantize_openvino`.
    """
    model = quantize_openvino(float_model, states, packed=packed)
    return write_ir(
        path, model, precision, {unit: _asked(state, precision) for unit, state in states.items()}
    )


def _asked(state: UnitState, precision: str) -> str:
    """The arithmetic of a unit; a convolution takes a stored weight apart when it is loaded, and computes in
    float.
    """
    codes = None if state.weight is None else state.weight.codes
    if codes is not None and codes.ndim > 2 and state.activation is None:
        return precision
    return arithmetic_of(state.candidate, precision, 2 if codes is None else codes.shape[1])


def overflowing(states: Mapping[str, UnitState], module: nn.Module) -> tuple[str, ...]:
    """Integer units whose products overflow on processors that add pairs of them in 16 bits (no VNNI):
    weights of more than 7 bits.

    Depthwise convolutions are none of them: OpenVINO adds theirs in 32 bits.
    """
    wide = (unit for unit, state in states.items() if state.weight is not None)
    return tuple(
        unit for unit in wide if _overflows(states[unit], getattr(module.get_submodule(unit), "groups", 1))
    )


def _overflows(state: UnitState, groups: int) -> bool:
    if state.weight is None or state.activation is None or state.weight.params.bits <= 7:
        return False
    return not is_depthwise(tuple(state.weight.codes.shape), groups)


def narrowed(state: UnitState, observer: str) -> UnitState:
    """The unit with its weight, as it is, on a grid of 7 bits: of those no pair of products with 8-bit inputs
    leaves 16 bits.

    Args:
        state: State of an integer unit.
        observer: Registered observer, which finds the range.
    """
    assert state.weight is not None
    weight = state.weight.dequantize()
    params = OBSERVERS.create(observer).observe(weight, 7, symmetric=True, axis=state.weight.params.axis)
    return replace(state, weight=QuantizedTensor(quantize(weight, params), params))


def load_openvino(
    path: Path, images: Inputs, threads: int = 1, batch: int = 1
) -> tuple[Callable[[], object], int]:
    """A file ready to run `batch` images in a call, by the compiled model that a deployment would use, and
    how many calls of its units run quantised.
    """
    live = _live(path, batch, threads)
    request, feed = live.create_infer_request(), _feed(read_ir(path).ports, repeated(images, batch))
    quantized = sum(
        node.computes and (node.arithmetic == "integer" or node.arithmetic.startswith("stored"))
        for node in ran_nodes(live)
    )
    return lambda: request.infer(feed), quantized


def measure_openvino(
    path: Path, images: Inputs, threads: int = 1, rounds: int = 1, seconds: float = 0.5, batch: int = 1
) -> OpenVinoRun:
    """Latency of the whole model for `batch` images in a call, by the compiled model that a deployment would
    use, and what it executes; `rounds` as in `time_apart`.
    """
    ir = read_ir(path, batch=batch)
    live = compiled(ir.model, threads, ir.precision)
    request, feed = live.create_infer_request(), _feed(ir.ports, repeated(images, batch))
    nodes = ran_nodes(live)
    timing = time_apart(lambda: request.infer(feed), threads=threads, seconds=seconds, rounds=rounds)
    integers = sum(node.computes and node.arithmetic == "integer" for node in nodes)
    return OpenVinoRun(timing, tuple(map(str, nodes)), fallbacks(live, ir.asked), integers)


def run_openvino(path: Path, threads: int = 1) -> Callable[[Inputs], Tensor]:
    """A function from N x C x H x W, or other inputs, to N x K logits, computed by OpenVINO. Each size of
    batch is compiled once; the last few are kept.
    """
    ports = read_ir(path).ports  # a damaged file is told now, not at the first batch
    requests: dict[int, Any] = {}

    def run(inputs: Inputs) -> Tensor:
        size = len(inputs)
        if size not in requests:
            while len(requests) >= _KEPT:
                requests.pop(next(iter(requests)))
            requests[size] = _live(path, size, threads).create_infer_request()
        found = requests[size].infer(_feed(ports, inputs))
        return torch.from_numpy(np.array(ports.joined([found[i] for i in range(len(ports.gives))])))

    return run


def _feed(ports: Ports, inputs: Inputs) -> list[Any]:
    return list(ports.feeds(arrays_of(inputs)).values())


def _live(path: Path, batch: int, threads: int) -> Any:
    ir = read_ir(path, batch=batch)
    with one_message(f"OpenVINO cannot compile {path}", _ELSEWHERE):
        return compiled(ir.model, threads, ir.precision)


def _named(float_model: ModelProto, states: Mapping[str, UnitState]) -> tuple[ModelProto, dict[str, str]]:
    """A copy with the biases of the states, in which the nodes that may be units have names of their own,
    which OpenVINO keeps; name -> unit.
    """
    copy, found = with_biases(float_model, states), {}
    for at, node in enumerate(copy.graph.node):
        unit = unit_of(node)
        if unit in states and node.op_type in ("Conv", "Gemm", "MatMul"):
            node.name = f"mpsearch-{at}"
            found[node.name] = unit
    return copy, found


def _rewritten(writer: OpenVinoWriter, node: Any, unit: str, state: UnitState, packed: bool) -> Any:
    """Put the unit's own nodes in the place of `node`; the node itself for a float unit."""
    if state.weight is None:
        return node
    codes = state.weight.codes
    weight = QuantizedWeight(
        codes.to(torch.int8).numpy(), state.weight.params.scale.expand(len(codes)).numpy()
    )
    bits = bits_of(weight.codes) if packed and state.activation is not None else 8
    x = node.input_value(0)
    if state.activation is not None:
        params = affine_input(unit, state)
        x = writer.quantized(x, Grid(float(params.scale), int(params.zero_point), params.bits))
    if node.get_type_name() == "MatMul":
        held = (
            writer.compressed(weight, state.weight.params.bits)
            if state.activation is None
            else writer.weight(weight, bits=bits)
        )
        new = writer.linear(x, held)
    else:
        conv, ends = _attributes(node)
        new = writer.conv(x, writer.weight(weight, conv.groups, bits), conv, ends)
    node.output(0).replace(new.output(0))
    return new


def _name(node: Any, name: str) -> None:
    """Name a unit's node and the bias behind it, either of whose names may be left when OpenVINO has fused
    the two.
    """
    node.set_friendly_name(name)
    behind = [port.get_node() for port in node.output(0).get_target_inputs()]
    if len(behind) == 1 and behind[0].get_type_name() in ("Add", "Multiply"):
        beside = [held.get_node() for held in behind[0].input_values() if held.get_node() != node]
        if all(_is_constant(other) for other in beside):
            _name(behind[0], f"{name}+")


def _is_constant(node: Any) -> bool:
    """Whether a node is computed from constants alone."""
    given = node.input_values()
    return bool(given or node.get_type_name() == "Constant") and all(
        _is_constant(value.get_node()) for value in given
    )


def _attributes(node: Any) -> tuple[ConvAttributes, tuple[int, int]]:
    """What the convolution is, with its padding above and left, and its padding below and right: a pad before
    it may be part of it by now.
    """
    about = node.get_attributes()
    if about["auto_pad"] not in ("explicit", "EXPLICIT"):
        how = f"The convolution {node.get_friendly_name()!r} pads by {about['auto_pad']!r}"
        raise ModelError(f"{how}. Run with --target packed for the packed checkpoint alone.")
    groups = node.input_value(1).get_shape()[0] if node.get_type_name() == "GroupConvolution" else 1
    (sy, sx), (py, px), (dy, dx), (ey, ex) = (
        about["strides"],
        about["pads_begin"],
        about["dilations"],
        about["pads_end"],
    )
    return ConvAttributes((sy, sx), (py, px), (dy, dx), groups), (ey, ex)
