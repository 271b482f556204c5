"""Liveness is what can be counted by hand, fused tensors do not exist, and a process takes about as much."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from mpsearch.deploy.memory import activation_peak, measured_peak, memory_rows
from mpsearch.errors import MpsearchError
from mpsearch.hardware.qdq import OPSET, Grid, QdqWriter, QuantizedWeight
from mpsearch.problem import ConvAttributes, Layer


def model(nodes, initializers=(), shape=("N", 4, 8, 8)):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], name=output, **attributes)


ONE = 4 * 8 * 8 * 4  # bytes of x


def test_a_chain_holds_two_tensors_beside_the_input_and_a_branch_three():
    chain = [node("Sigmoid", ["x"], "a"), node("Tanh", ["a"], "b"), node("Sigmoid", ["b"], "y")]
    assert activation_peak(model(chain)).bytes == 3 * ONE
    branch = [node("Sigmoid", ["x"], "a"), node("Tanh", ["a"], "b"), node("Add", ["a", "b"], "y")]
    peak = activation_peak(model(branch))
    assert (peak.bytes, peak.node) == (4 * ONE, "y")
    assert peak.by_node == {"a": 2 * ONE, "b": 3 * ONE, "y": 4 * ONE}
    assert activation_peak(model(branch), batch=5).bytes == 20 * ONE


def test_a_view_is_no_tensor_and_keeps_what_it_is_a_view_of():
    flat = [node("Sigmoid", ["x"], "a"), node("Flatten", ["a"], "f"), node("Tanh", ["f"], "y")]
    assert activation_peak(model(flat)).bytes == 3 * ONE


def quantised_pair():
    """Two integer convolutions with a ReLU between them, 4 channels to 4."""
    writer, grid = QdqWriter(), Grid(0.1, 0)
    weight = QuantizedWeight(np.ones((4, 4, 1, 1), np.int8), np.full(4, 0.1, np.float32))
    middle = writer.node("Relu", [writer.conv("x", weight, None, grid, {"kernel_shape": [1, 1]})])
    last = writer.conv(middle, weight, None, grid, {"kernel_shape": [1, 1]})
    writer.node("Identity", [writer.quantized(last, grid)], "y")
    return model(writer.nodes, writer.initializers)


def test_between_integer_kernels_there_are_codes_and_no_floats():
    """x stays; beside it codes and codes (both convolutions), or codes and y (behind): 2.25 float tensors at
    most, and 1.5 up to there.
    """
    peak = activation_peak(quantised_pair())
    sizes = list(peak.by_node.values())
    assert peak.bytes == sizes[-2] == 2 * ONE + ONE // 4
    assert max(sizes[:-2]) == ONE + ONE // 2


def test_rows_are_the_floats_and_the_codes_and_never_below_what_is_no_unit():
    conv = Layer("c", "conv2d", (4, 4, 1, 1), ((1, 4, 8, 8),), (1, 4, 8, 8), 1, "b", conv=ConvAttributes())
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4, 1, 1], [0.0] * 16)
    nodes = [node("Conv", ["x", "w"], "c"), node("Tanh", ["c"], "t"), node("Add", ["c", "t"], "y")]
    graph = model(nodes, [weight])
    assert memory_rows(graph, [conv], [["float", "W8A8"]], {"c": ["c"]}) == [[4.0 * ONE, 4.0 * ONE]]
    alone = model([node("Conv", ["x", "w"], "y")], [weight])
    assert memory_rows(alone, [conv], [["float", "W8A8"]], {"c": ["y"]}) == [[2.0 * ONE, 2.5 * ONE]]


def test_a_process_takes_what_liveness_says_and_some_scratch(tmp_path):
    """Big tensors without kernels that need scratch: the input and three of 4 MiB are alive at once."""
    nodes = [
        node("Sigmoid", ["x"], "a"),
        node("Tanh", ["a"], "b"),
        node("Sub", ["a", "b"], "c"),
        node("Mul", ["c", "a"], "y"),
    ]
    graph = model(nodes, shape=("N", 16, 256, 256))
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    said = activation_peak(graph).bytes
    assert said == 16 * 2**20
    assert 0.9 * said <= measured_peak(path, [((1, 16, 256, 256), "float32")]) <= 1.5 * said


def test_a_file_that_does_not_run_has_no_peak(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(MpsearchError, match="could not be measured"):
        measured_peak(tmp_path / "model.onnx", [((1, 3, 4, 4), "float32")])
