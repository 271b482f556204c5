"""ONNX Runtime's own static quantiser, the plain baseline: QDQ, per channel, int8, or int4 weights below."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from benchmarks.peers.counting import Layer
from benchmarks.peers.job import CannotError, Images, Made, Task

KERNELS = ("Conv", "Gemm", "MatMul")
TYPES = {8: QuantType.QInt8, 4: QuantType.QInt4}


class _Reader(CalibrationDataReader):
    def __init__(self, images: Images) -> None:
        self.batches = ({"input": x.numpy()} for x, _ in images.batches(1))

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def quantize(task: Task) -> Made:
    """Uniform widths: 8 where the budget allows them, else 4.

    Raises: CannotError: Fewer than 4 bits, or inputs of other than 8.
    """
    job = task.job
    if job.a_bits != 8:
        raise CannotError("quantize_static has 8 and 16 bits for tensors between layers, not 4.")
    if job.bits < 4:
        raise CannotError("quantize_static has 8 and 4 bits a weight, no fewer, and no mixed search.")
    bits = 8 if job.bits >= 8 else 4
    plain, prepared, packed = (task.folder / f"{name}.onnx" for name in ("float", "prepared", "quantized"))
    example = task.calibration.inputs(0, 1)
    torch.onnx.export(
        task.model,
        (example,),
        str(plain),
        input_names=["input"],
        output_names=["logits"],
        dynamo=False,
        opset_version=17,
        dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}},
    )
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    if bits == 4:  # int4 tensors exist from opset 21 on
        onnx.save(onnx.version_converter.convert_version(onnx.load(str(prepared)), 21), str(prepared))
    quantize_static(
        str(prepared),
        str(packed),
        _Reader(task.calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(KERNELS),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=TYPES[bits],
        calibrate_method=CalibrationMethod.MinMax,
    )
    layers = counted_layers(onnx.load(str(packed)))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # arithmetic as written
    session = ort.InferenceSession(str(packed), options, providers=["CPUExecutionProvider"])

    def predict(x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {"input": x.numpy()})[0]))

    notes = f"quantize_static, QDQ, per channel, min-max ranges, int{bits} weights of {', '.join(KERNELS)}"
    return Made(predict, layers, {}, notes, packed.stat().st_size)


def counted_layers(model: onnx.ModelProto) -> list[Layer]:
    """Each kernel whose weight comes from a DequantizeLinear of a stored tensor."""
    stored = {t.name: t for t in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    layers = []
    for node in model.graph.node:
        maker = makers.get(node.input[1]) if node.op_type in KERNELS else None
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in stored:
            continue
        tensor, scales = stored[maker.input[0]], stored[maker.input[1]]
        numel, rows = int(np.prod(tensor.dims)), int(np.prod(scales.dims)) or 1
        bits = 4 if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) else 8
        layers.append(Layer(node.name, rows, numel // rows, bits, 8, rows))
    return layers
