"""TensorRT: a unit as strongly typed Q/DQ ONNX (symmetric int8), and engines from it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from mpsearch.hardware.backend import Cell
from mpsearch.hardware.gpu.cells import TOLERANCE, Draw, Run, finished
from mpsearch.hardware.trtexec.engine import EngineLayer, read_layers, untimed
from mpsearch.hardware.trtexec.shapes import absorbed, kernel_of
from mpsearch.problem import Candidate, ConvAttributes, Layer

OPSET = 20
UNIT = "unit"
"""Name of the node that computes the unit."""
_MOST_ENGINES = 64
"""Copies of a unit: an engine takes memory and time beside its weights."""


def unit_onnx(draw: Draw, candidate: Candidate) -> tuple[bytes, Tensor]:
    """One unit in half precision, with Q/DQ pairs of int8 if not float; and what it must give, float64, laid
    out as ONNX lays it out.

    Args:
        draw: Random data; pictures N x H x W x C.
        candidate: `float` or `W8A8`.
    """
    assert draw.weight is not None
    layer, x, weight = draw.layer, draw.x[0].double(), draw.weight.half().double()
    graph = _Graph()
    source = "x"
    if not candidate.is_float:
        input_scale = _half(draw.x[0].abs().amax() / 127)
        scale = _half(draw.weight.flatten(1).abs().amax(1) / 127)
        wide = scale.double().view(-1, *[1] * (weight.ndim - 1))
        codes = torch.clamp(torch.round(draw.weight.double() / wide), -127, 127)
        x, weight = (
            torch.clamp(torch.round(x / input_scale.double()), -128, 127) * input_scale.double(),
            codes * wide,
        )
        source = graph.pair("x", input_scale)
        named = graph.weight(
            codes.to(torch.int8) if layer.op == "conv2d" else codes.t().to(torch.int8),
            scale,
            0 if layer.op == "conv2d" else 1,
        )
    else:
        named = graph.constant("weight", (weight if layer.op == "conv2d" else weight.t()).half())
    bias = None if draw.bias is None else draw.bias.half()
    graph.product(layer, source, named, bias)
    expected = Draw(layer, draw.x, None, bias).reference(x, weight)
    shape = tuple(draw.x[0].permute(0, 3, 1, 2).shape) if layer.op == "conv2d" else tuple(draw.x[0].shape)
    return graph.model(shape), expected


class _Graph:
    """Nodes and constants of one unit."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Tensor) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value.cpu().numpy()), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, name: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=name or output, **attributes))
        return output

    def pair(self, x: str, scale: Tensor) -> str:
        inputs = [
            self.constant(f"{x}_scale", scale),
            self.constant(f"{x}_zero", torch.zeros((), dtype=torch.int8)),
        ]
        return self.node(
            "DequantizeLinear", [self.node("QuantizeLinear", [x, *inputs], f"{x}_q"), *inputs], f"{x}_dq"
        )

    def weight(self, codes: Tensor, scale: Tensor, axis: int) -> str:
        zeros = self.constant("weight_zero", torch.zeros(len(scale), dtype=torch.int8))
        return self.node(
            "DequantizeLinear",
            [self.constant("weight_q", codes), self.constant("weight_scale", scale), zeros],
            "weight",
            axis=axis,
        )

    def product(self, layer: Layer, x: str, weight: str, bias: Tensor | None) -> None:
        more = [] if bias is None else [self.constant("bias", bias)]
        if layer.op == "conv2d":
            c = layer.conv or ConvAttributes()
            shape = {
                "kernel_shape": list(layer.weight_shape[2:]),
                "strides": list(c.stride),
                "pads": [*c.padding, *c.padding],
            }
            options = {**shape, "dilations": list(c.dilation), "group": c.groups}
            self.node("Conv", [x, weight, *more], "y", UNIT, **options)
        elif more:
            self.node("Add", [self.node("MatMul", [x, weight], "product", UNIT), *more], "y")
        else:
            self.node("MatMul", [x, weight], "y", UNIT)

    def model(self, shape: tuple[int, ...]) -> bytes:
        ends = (
            [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
        )
        graph = helper.make_graph(self.nodes, "unit", *ends, self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        return bytes(made.SerializeToString())


def _half(scale: Tensor) -> Tensor:
    """Never zero after rounding to half precision."""
    return scale.clamp(min=1e-6).half()


def trt_cell(layer: Layer, candidate: Candidate, batch: int, *, device: str = "cuda") -> Cell:
    """A unit in TensorRT, on torch's buffers and stream. Each copy is an engine of its own, because contexts
    of one engine share its weights, which would lie in the cache.

    Args:
        layer: A linear layer or a convolution.
        candidate: `float` or `W8A8`.
        batch: Images in a call.
        device: Where its buffers lie.
    Raises: RuntimeError: TensorRT refuses the graph.
    """
    trt: Any = importlib.import_module("tensorrt")
    draw = Draw.of(layer, batch, torch.float16, device)
    model, expected = unit_onnx(draw, candidate)
    plan, logger = _plan(trt, model, layer.name), trt.Logger(trt.Logger.ERROR)

    def opened() -> Any:
        return trt.Runtime(logger).deserialize_cuda_engine(plan)

    told = opened().create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = untimed("the engine", read_layers("the engine", json.loads(told)))
    as_asked = candidate.is_float or computes_in_int8(layers)

    def make() -> Run:
        engine = opened()
        context = engine.create_execution_context()
        source = draw.x[0].permute(0, 3, 1, 2).contiguous() if layer.op == "conv2d" else draw.x[0].clone()
        y = torch.empty(tuple(context.get_tensor_shape("y")), dtype=torch.float16, device=device)
        context.set_tensor_address("x", source.data_ptr())
        context.set_tensor_address("y", y.data_ptr())

        def run(engine: Any = engine, source: Tensor = source) -> Tensor:  # both live as long as it does
            stream = torch.cuda.current_stream().cuda_stream if source.is_cuda else 0
            context.execute_async_v3(stream)
            return y.permute(0, 2, 3, 1) if layer.op == "conv2d" else y

        return run

    names = tuple(absorbed(found)[:80] for found in layers)
    size = layer.weight_numel * (2 if candidate.is_float else 1)
    cell = finished(draw, make, expected, names, as_asked, 4 * TOLERANCE[torch.float16], size)
    return replace(cell, most_copies=_MOST_ENGINES)


def computes_in_int8(layers: Sequence[EngineLayer]) -> bool:
    """Whether the layer that computes the unit reads int8; a quantising reformat beside a product in half
    precision does not count.

    Args:
        layers: Of the engine of one unit, from `unit_onnx`.
    """
    own = [layer for layer in layers if UNIT in layer.nodes]
    return bool(own) and all(kernel_of(layer) == "W8A8" for layer in own)


def _plan(trt: Any, model: bytes, name: str) -> Any:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flags = getattr(
        trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None
    )  # from version 11 on there is nothing else
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise RuntimeError(
            f"TensorRT {trt.__version__} cannot read the unit {name!r}: {parser.get_error(0)}."
        )
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(
            f"TensorRT {trt.__version__} builds no engine for the unit {name!r}; its log says why."
        )
    return plan
