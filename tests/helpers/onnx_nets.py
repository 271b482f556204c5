"""Small ONNX files, written node by node."""

from __future__ import annotations

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper


def weights(**shapes):
    """Random tensors of a graph."""
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def written(path, nodes, tensors, outputs, opset=17, size=(3, 8, 8)):
    """A file that reads `x`, N x ..., and gives `outputs`."""
    kept = [numpy_helper.from_array(value.numpy(), name) for name, value in tensors.items()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        kept,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def net(path, opset=17, outputs=("logits",)):
    """A convolution, a mean, a linear layer as Gemm, and one as MatMul and Add."""
    nodes = [
        helper.make_node(
            "Conv", ["x", "body.0.weight", "body.0.bias"], ["a"], kernel_shape=[3, 3], pads=[1] * 4
        ),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "fc.weight", "fc.bias"], ["e"], transB=1),
        helper.make_node("MatMul", ["e", "onnx::MatMul_7"], ["f"]),
        helper.make_node("Add", ["f", "shift"], ["logits"]),
    ]
    shapes = {"body.0.weight": (4, 3, 3, 3), "body.0.bias": (4,), "fc.weight": (6, 4), "fc.bias": (6,)}
    tensors = weights(**shapes, **{"onnx::MatMul_7": (6, 5), "shift": (5,)})
    return written(path, nodes, tensors, outputs, opset)
