"""Which forms of a quantised unit OpenVINO's CPU plugin turns into integer kernels here, how fast they are,
and whether their numbers are right.

Run: python benchmarks/openvino_forms.py. One thread, process CPU time, random data; the facts that
    mpsearch/hardware/openvino_nodes.py is built on.
"""

from __future__ import annotations

import numpy as np
import openvino
import openvino.opset13 as op

from mpsearch.hardware import identity, time_callable
from mpsearch.hardware.draws import draw, grid_of, on_grid, quantized, reference, relative_error, values_of
from mpsearch.hardware.openvino_nodes import CONFIG, OpenVinoWriter, compiled, ran_nodes
from mpsearch.problem import ConvAttributes, Layer


def main() -> None:
    print(
        f"{identity()}; openvino {openvino.__version__}; {CONFIG}; batch 1, one thread, microseconds of "
        "CPU time"
    )
    for title, layer in LAYERS.items():
        print(title)
        for name, (form, bits) in FORMS.items():
            report(name, form, bits, layer)


def report(name, form, bits, layer):
    data, writer, conv = draw(layer, 1), OpenVinoWriter(), layer.conv
    parameter, grid = writer.parameter(data.feeds["x0"].shape), grid_of(data.feeds["x0"])
    codes, x, feeds = quantized(data.weight, bits or 8), parameter.output(0), data.feeds
    values = values_of(codes) if bits else data.weight.astype(np.float64)
    weight = (
        writer.weight(codes, conv.groups if conv else 1, bits if name.endswith("packed") else 8)
        if bits
        else float_weight(writer, data.weight, conv)
    )
    if form is not None:
        x, feeds = form(writer, x, grid), {"x0": on_grid(data.feeds["x0"], grid)}
    node = writer.linear(x, weight) if conv is None else writer.conv(x, weight, conv)
    live = compiled(openvino.Model([node], [parameter], "form"))
    request, given = live.create_infer_request(), list(data.feeds.values())
    error = relative_error(np.array(request.infer(given)[0]), reference(layer, feeds, values, None))
    timing = time_callable(lambda: request.infer(given))
    ran = " ".join(str(node) for node in ran_nodes(live))
    print(f"  {name:<44} {timing.median_us:9.0f} +- {timing.iqr_us:6.0f}  error {error:.1e}  {ran}")


def float_weight(writer, weight, conv):
    groups = conv.groups if conv else 1
    return writer.constant(weight if groups == 1 else weight.reshape(groups, -1, *weight.shape[1:]))


def fake_quantize(writer, x, grid):
    return writer.quantized(x, grid)


def through_u8(writer, x, grid):
    """What OpenVINO's ONNX reader makes of QuantizeLinear and DequantizeLinear."""
    low, high = grid.range()
    codes = op.convert(
        op.fake_quantize(x, *(op.constant(np.float32(v)) for v in (low, high, 0, 255)), levels=256), np.uint8
    )
    zero = op.convert(op.constant(np.uint8(grid.zero_point)), np.float32)
    return op.multiply(
        op.subtract(op.convert(codes, np.float32), zero), op.constant(np.float32(grid.scale))
    ).output(0)


def sixteen_levels(writer, x, grid):
    """A 4-bit grid written as such."""
    return op.fake_quantize(x, *(op.constant(np.float32(v)) for v in grid.range() * 2), levels=16).output(0)


LAYERS = {
    "convolution 3x3, 64 x 56 x 56": Layer(
        "c",
        "conv2d",
        (64, 64, 3, 3),
        ((1, 64, 56, 56),),
        (1, 64, 56, 56),
        1,
        "b",
        conv=ConvAttributes((1, 1), (1, 1)),
    ),
    "convolution 1x1 stride 2, 64 x 56 x 56 -> 128": Layer(
        "c",
        "conv2d",
        (128, 64, 1, 1),
        ((1, 64, 56, 56),),
        (1, 128, 28, 28),
        1,
        "b",
        conv=ConvAttributes((2, 2)),
    ),
    "convolution 3x3 depthwise, 144 x 56 x 56": Layer(
        "c",
        "conv2d",
        (144, 1, 3, 3),
        ((1, 144, 56, 56),),
        (1, 144, 56, 56),
        1,
        "b",
        conv=ConvAttributes((1, 1), (1, 1), (1, 1), 144),
    ),
    "linear 197 x 192 -> 768": Layer("l", "linear", (768, 192), ((1, 197, 192),), (1, 197, 768), 1, "b"),
    "linear 1 x 768 -> 1000": Layer("l", "linear", (1000, 768), ((1, 768),), (1, 1000), 1, "b"),
}
FORMS = {
    "float": (None, 0),
    "FakeQuantize, 7-bit weights": (fake_quantize, 7),
    "FakeQuantize, 8-bit weights": (fake_quantize, 8),
    "FakeQuantize, 7-bit weights, packed": (fake_quantize, 7),
    "FakeQuantize, 4-bit weights": (fake_quantize, 4),
    "FakeQuantize, 4-bit weights, packed": (fake_quantize, 4),
    "through u8, 7-bit weights": (through_u8, 7),
    "FakeQuantize of 16 levels (error: of the grid)": (sixteen_levels, 7),
    "8-bit weights alone": (None, 8),
}

if __name__ == "__main__":
    main()
