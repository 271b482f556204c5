"""Which ONNX forms of a quantised unit ONNX Runtime turns into integer kernels on this CPU, and how fast they
are.

Run: python benchmarks/ort_forms.py. One thread, process CPU time, random data; the facts that
    mpsearch/hardware/qdq.py is built on.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from mpsearch.hardware import identity, time_callable
from mpsearch.hardware.backends.ort_cpu import executed, session
from mpsearch.hardware.qdq import OPSET, Grid, QdqWriter, QuantizedWeight

GENERATOR = np.random.default_rng(0)


def main() -> None:
    print(
        f"{identity()}; onnxruntime {ort.__version__}; opset {OPSET}; batch 1, one thread, microseconds "
        "of CPU time"
    )
    for rows, inputs, outputs in ((197, 192, 768), (64, 512, 512)):
        print(f"linear {rows} x {inputs} -> {outputs}")
        for name, build in LINEAR.items():
            report(name, build, (1, rows, inputs), (outputs, inputs), {})
    for channels, size, groups in ((64, 56, 1), (144, 56, 144)):
        print(f"convolution 3x3, {channels} x {size} x {size}, groups {groups}")
        attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "group": groups}
        for name, build in CONV.items():
            report(name, build, (1, channels, size, size), (channels, channels // groups, 3, 3), attributes)


def report(name, build, shape, weight_shape, attributes):
    x = GENERATOR.standard_normal(shape).astype(np.float32)
    weight = (GENERATOR.standard_normal(weight_shape) * 0.05).astype(np.float32)
    scale = np.abs(weight.reshape(len(weight), -1)).max(1) / 127
    codes = np.round(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
    writer = QdqWriter()
    build(
        writer,
        QuantizedWeight(codes, scale.astype(np.float32)),
        weight,
        np.ones(len(weight), np.float32),
        attributes,
    )
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    graph = helper.make_graph(
        writer.nodes,
        "form",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        writer.initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
    ).SerializeToString()
    live = session(model)
    timing = time_callable(lambda: live.run(None, {"x": x}))
    print(f"  {name:<38} {timing.median_us:9.0f} +- {timing.iqr_us:6.0f}  {' '.join(executed(model))}")


GRID, OUTPUT, SKEWED = Grid(0.03, 128), Grid(0.05, 128), Grid(0.05, 0)


def constant(writer, name, value):
    writer.initializers.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def float_linear(writer, quantized, weight, bias, attributes):
    product = writer.node("MatMul", ["x", constant(writer, "w", np.ascontiguousarray(weight.T))])
    writer.node("Add", [product, constant(writer, "b", bias)], "y")


def linear(writer, quantized, weight, bias, attributes):
    writer.linear("x", quantized, bias, GRID, "y")


def gemm(writer, quantized, weight, bias, attributes):
    flat = writer.node(
        "Reshape", [writer.quantized("x", GRID), constant(writer, "shape", np.array([-1, weight.shape[1]]))]
    )
    writer.node("Gemm", [flat, writer._weight(quantized, axis=0), constant(writer, "b", bias)], "y", transB=1)


def float_conv(writer, quantized, weight, bias, attributes):
    writer.node("Conv", ["x", constant(writer, "w", weight), constant(writer, "b", bias)], "y", **attributes)


def bare_conv(writer, quantized, weight, bias, attributes):
    writer.conv("x", quantized, bias, GRID, attributes, "y")


def closed_conv(writer, quantized, weight, bias, attributes):
    writer.node(
        "Identity", [writer.quantized(writer.conv("x", quantized, bias, GRID, attributes), OUTPUT)], "y"
    )


def relu_conv(grid):
    def build(writer, quantized, weight, bias, attributes):
        behind = writer.node("Relu", [writer.conv("x", quantized, bias, GRID, attributes)])
        writer.node("Identity", [writer.quantized(behind, grid)], "y")

    return build


LINEAR = {"float MatMul + Add": float_linear, "Q/DQ MatMul + Add (what ships)": linear, "Q/DQ Gemm": gemm}
CONV = {
    "float": float_conv,
    "Q/DQ in, float out": bare_conv,
    "Q/DQ in and out (what ships)": closed_conv,
    "Q/DQ, ReLU, zero point 0": relu_conv(SKEWED),
    "Q/DQ, ReLU, zero point 128": relu_conv(OUTPUT),
}

if __name__ == "__main__":
    main()
