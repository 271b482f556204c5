"""The nodes of quantised units give what fake quantisation gives, and run in integer kernels."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from mpsearch.deploy.graph import keep_arithmetic
from mpsearch.hardware.backends.ort_cpu import executed, session
from mpsearch.hardware.overflow import without_overflow
from mpsearch.hardware.qdq import OPSET, Grid, QdqWriter, QuantizedWeight

CONVS = [
    pytest.param((1, 1), (1, 1, 1, 1), (1, 1), 1, id="padding"),
    pytest.param((2, 1), (1, 2, 1, 2), (1, 1), 1, id="stride"),
    pytest.param((1, 1), (2, 2, 2, 2), (2, 2), 1, id="dilation"),
    pytest.param((1, 1), (1, 1, 1, 1), (1, 1), 4, id="groups"),
    pytest.param((2, 2), (1, 1, 1, 1), (1, 1), 16, id="depthwise"),
]


def run(writer, x, name="y"):
    graph = helper.make_graph(
        writer.nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        writer.initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    keep_arithmetic(made)
    model = made.SerializeToString()
    return session(model).run(None, {"x": x})[0], executed(model)


def on_grid(x, grid):
    codes = np.clip(np.round(x / np.float32(grid.scale)) + grid.zero_point, 0, 2**grid.bits - 1)
    return (codes - grid.zero_point) * np.float64(grid.scale)


def spanning(x, bits=8):
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = float(np.float32((high - low) / (2**bits - 1)))
    return Grid(scale, round(-low / scale), bits)


def weight_of(rng, *shape):
    """Codes over the range that is exact on every processor, scales that differ by a factor of 10 between
    channels.
    """
    return without_overflow(
        QuantizedWeight(
            rng.integers(-128, 128, shape, dtype=np.int8),
            (10 ** rng.uniform(-3, -2, shape[0])).astype(np.float32),
        )
    )


def values_of(weight):
    return weight.codes.astype(np.float64) * weight.scale.astype(np.float64).reshape(
        -1, *[1] * (weight.codes.ndim - 1)
    )


def conv_case(rng, stride, pads, dilation, groups, bits, biased):
    x = rng.standard_normal((2, 16, 11, 9)).astype(np.float32)
    weight, grid = weight_of(rng, 16, 16 // groups, 3, 3), spanning(x, bits)
    bias = rng.standard_normal(16).astype(np.float32) if biased else None
    padded = torch.nn.functional.pad(torch.from_numpy(on_grid(x, grid)), (pads[1], pads[3], pads[0], pads[2]))
    shift = None if bias is None else torch.from_numpy(bias.astype(np.float64))
    reference = torch.nn.functional.conv2d(
        padded, torch.from_numpy(values_of(weight)), shift, stride, 0, dilation, groups
    ).numpy()
    attributes = {
        "kernel_shape": [3, 3],
        "strides": stride,
        "pads": pads,
        "dilations": dilation,
        "group": groups,
    }
    return x, weight, bias, grid, attributes, reference


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("stride", "pads", "dilation", "groups"), CONVS)
def test_convolution_is_within_half_a_step_of_fake_quantisation(stride, pads, dilation, groups, biased, bits):
    x, weight, bias, grid, attributes, reference = conv_case(
        np.random.default_rng(0), stride, pads, dilation, groups, bits, biased
    )
    writer, out = QdqWriter(), spanning(reference)
    writer.node("Identity", [writer.quantized(writer.conv("x", weight, bias, grid, attributes), out)], "y")
    found, ops = run(writer, x)
    assert "QLinearConv" in ops and "Conv" not in ops
    # the accumulator is exact, so what is left is rounding to the output's grid, and of the bias to the
    # accumulator's
    bound = out.scale / 2 * 1.001 + (grid.scale * float(weight.scale.max()) / 2 if biased else 0.0)
    assert np.abs(found - reference).max() <= bound


def test_a_relu_between_convolution_and_grid_keeps_the_integer_kernel():
    x, weight, bias, grid, attributes, reference = conv_case(
        np.random.default_rng(1), (1, 1), (1, 1, 1, 1), (1, 1), 1, 8, True
    )
    writer, out = QdqWriter(), spanning(np.maximum(reference, 0))
    assert out.zero_point == 0
    relu = writer.node("Relu", [writer.conv("x", weight, bias, grid, attributes)])
    writer.node("Identity", [writer.quantized(relu, out)], "y")
    found, ops = run(writer, x)
    assert "QLinearConv" in ops and "Relu" not in ops
    assert (
        np.abs(found - np.maximum(reference, 0)).max()
        <= out.scale / 2 * 1.001 + grid.scale * float(weight.scale.max()) / 2
    )


def test_executed_tells_of_a_convolution_that_runs_in_float():
    x, weight, bias, grid, attributes, reference = conv_case(
        np.random.default_rng(2), (1, 1), (1, 1, 1, 1), (1, 1), 1, 8, True
    )
    writer = QdqWriter()
    writer.conv("x", weight, bias, grid, attributes, "y")
    found, ops = run(writer, x)
    assert "QLinearConv" not in ops and "Conv" in ops
    np.testing.assert_allclose(found, reference, atol=1e-4 * np.abs(reference).max())


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(5, 32), (2, 7, 32), (2, 3, 4, 32)], ids=["2-D", "3-D", "4-D"])
def test_linear_is_fake_quantisation_in_an_integer_kernel(shape, biased, bits):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape).astype(np.float32)
    weight, grid = weight_of(rng, 24, 32), spanning(x, bits)
    bias = rng.standard_normal(24).astype(np.float32) if biased else None
    writer = QdqWriter()
    writer.linear("x", weight, bias, grid, "y")
    found, ops = run(writer, x)
    reference = on_grid(x, grid) @ values_of(weight).T + (0 if bias is None else bias)
    assert "MatMulIntegerToFloat" in ops and not {"MatMul", "Gemm"} & set(ops)
    # the sum is an exact int32; only its scaling to float32 and the bias are rounded
    np.testing.assert_allclose(found, reference, atol=1e-6 * np.abs(reference).max())


def test_units_that_read_a_tensor_alike_share_its_codes():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((3, 16)).astype(np.float32)
    first, second, grid = weight_of(rng, 8, 16), weight_of(rng, 8, 16), spanning(x)
    writer = QdqWriter()
    writer.node("Add", [writer.linear("x", first, None, grid), writer.linear("x", second, None, grid)], "y")
    assert sum(node.op_type == "QuantizeLinear" for node in writer.nodes) == 1
    found, ops = run(writer, x)
    assert ops.count("MatMulIntegerToFloat") == 2
    reference = on_grid(x, grid) @ (values_of(first) + values_of(second)).T
    np.testing.assert_allclose(found, reference, atol=1e-6 * np.abs(reference).max())


def test_other_grids_of_a_tensor_are_not_shared():
    writer = QdqWriter()
    assert writer.quantized("x", Grid(0.1, 3)) != writer.quantized("x", Grid(0.1, 3, 4))


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_codes_end_where_the_grid_ends(bits):
    grid = Grid(0.25, 1, bits)
    writer = QdqWriter()
    writer.node("Identity", [writer.quantized("x", grid)], "y")
    x = np.array([[-1e3, -0.3, 0.0, 0.374, 1e3]], dtype=np.float32)
    found, _ = run(writer, x)
    np.testing.assert_allclose(found, on_grid(x, grid), atol=1e-6)
    assert (found.min(), found.max()) == pytest.approx(grid.range())


def test_a_dead_channel_keeps_its_bias():
    """After folding a batch norm a channel may be all zero, with the smallest scale there is, 1e-8, and any
    bias.
    """
    x = np.random.default_rng(5).uniform(0, 1, (1, 4, 5, 5)).astype(np.float32)
    weight = QuantizedWeight(np.zeros((4, 4, 1, 1), np.int8), np.full(4, 1e-8, np.float32))
    bias, grid, out = np.array([0.5, 1, 1.5, 2], np.float32), spanning(x), Grid(2 / 255, 0)
    writer = QdqWriter()
    writer.node(
        "Identity",
        [writer.quantized(writer.conv("x", weight, bias, grid, {"kernel_shape": [1, 1]}), out)],
        "y",
    )
    found, _ = run(writer, x)
    np.testing.assert_allclose(found, np.broadcast_to(bias.reshape(1, 4, 1, 1), found.shape), atol=out.scale)
