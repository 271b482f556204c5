"""The strongly typed file for TensorRT: float16 but where it must not be, one Q/DQ pair for each tensor and grid,
residual operands and pool inputs among them, and the numbers of the states it stands for.
"""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from mpsearch.deploy.graph import unit_of
from mpsearch.deploy.half import as_half, half_onnx
from mpsearch.deploy.onnx_float import export_float
from mpsearch.deploy.onnx_typed import half_state, typed_onnx
from mpsearch.deploy.packed import PackedLayout
from mpsearch.deploy.targets import TARGETS, Job
from mpsearch.errors import UserError
from mpsearch.hardware.qdq import OPSET
from mpsearch.models import ModelSource
from mpsearch.problem import FLOAT, Assignment, Candidate
from mpsearch.quant import AffineParams, QuantizedTensor, UnitState, install
from mpsearch.reconstruct import calibrate

W8A8 = Candidate(8, 8)
UNITS = ("first", "block.conv1", "block.conv2", "last")
TENSORS = ("first.output", "block.output")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return (self.conv2(self.conv1(x).relu()) + x).relu()


class Net(nn.Module):
    """A residual block, whose operand is the first convolution's output, a pool and a norm."""

    def __init__(self):
        super().__init__()
        self.first, self.block = nn.Conv2d(3, 8, 3, padding=1), Block()
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.last(self.norm(self.block(self.first(x)).mean((2, 3))))


@pytest.fixture(scope="module")
def held():
    torch.manual_seed(0)
    net = Net().eval()
    images = torch.randn(32, 3, 10, 10)
    return net, images, calibrate(net, (*UNITS, *TENSORS), [images], symmetric_inputs=True)


def job_of(held, quantized):
    net, images, calibration = held
    choices = {name: W8A8 if name in quantized else FLOAT for name in (*UNITS, *TENSORS)}
    states = calibration.states(Assignment(tuple(choices.items())))
    layout = PackedLayout.of(net, choices, ModelSource("module", "net"), (), {})
    return Job(net, layout, states, calibration, images[:1], batch=16)


def written(held, quantized, folder, text="tensorrt"):
    job, target = job_of(held, quantized), TARGETS.create(text)
    target.write(job, folder)
    return onnx.load(folder / "model.onnx"), target, job


@pytest.mark.parametrize("quantized", [(), UNITS, (*UNITS, *TENSORS), ("block.conv1", "block.output")])
def test_the_file_computes_its_states_in_half_precision(held, quantized, tmp_path):
    _, target, job = written(held, quantized, tmp_path)
    images = held[1]
    got = target.load(tmp_path, 1)(images)
    with torch.no_grad():
        want = install(job.module, target.states(job))(images)
    assert got.dtype == torch.float32
    assert (got - want).norm() / want.norm() < (0.003 if not quantized else 0.02)  # a code may tip over


def test_a_tensor_is_quantised_once_for_all_that_read_it(held, tmp_path):
    units = sum(n.op_type == "QuantizeLinear" for n in written(held, UNITS, tmp_path)[0].graph.node)
    graph = written(held, (*UNITS, *TENSORS), tmp_path)[0].graph
    quantizers = [n for n in graph.node if n.op_type == "QuantizeLinear"]
    assert units == 4 and len(quantizers) == 5  # the residual operand is the input of conv1, on its grid
    makers = {o: n for n in graph.node for o in n.output}
    add = next(n for n in graph.node if n.op_type == "Add" and unit_of(n) == "block")
    conv1 = next(n for n in graph.node if n.op_type == "Conv" and unit_of(n) == "block.conv1")
    assert conv1.input[0] in add.input
    assert makers[conv1.input[0]].op_type == "DequantizeLinear"


def test_every_float_is_half_but_ends_and_norms(held, tmp_path):
    model, *_ = written(held, ("first",), tmp_path)
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
    for node in model.graph.node:
        for name in node.output:
            if name in types and types[name] in (TensorProto.FLOAT, TensorProto.FLOAT16):
                wide = types[name] == TensorProto.FLOAT
                assert wide == (node is norm or name == norm.input[0]), (node.op_type, name)
    for initializer in model.graph.initializer:
        if initializer.data_type == TensorProto.FLOAT:
            assert initializer.name in norm.input
    ends = (*model.graph.input, *model.graph.output)
    assert {v.type.tensor_type.elem_type for v in ends} == {TensorProto.FLOAT}


def test_a_list_of_modules_stays_in_single_precision(held, tmp_path):
    model, *_ = written(held, ("first",), tmp_path, "tensorrt:fp32=LayerNormalization+last")
    gemm = next(n for n in model.graph.node if unit_of(n) == "last")
    assert all(i.data_type == TensorProto.FLOAT for i in model.graph.initializer if i.name in gemm.input)
    with pytest.raises(UserError, match=r"'last' is quantised, and fp32= names it"):
        written(held, ("last",), tmp_path, "tensorrt:fp32=last")


def test_the_command_builds_for_the_batch_of_the_table_and_leaves_what_is_read(held, tmp_path):
    written(held, (), tmp_path)
    script = (tmp_path / "build.sh").read_text()
    for flag in (
        "--stronglyTyped",
        "--exportLayerInfo",
        "--exportProfile",
        "--exportTimes",
        "--useCudaGraph",
    ):
        assert flag in script
    assert "--optShapes=x:16x3x10x10" in script and "--maxShapes=x:32x3x10x10" in script


def test_scales_are_those_of_half_precision():
    scale = torch.tensor([1e-9, 3e-6, 1e-3, 0.3])
    codes = torch.tensor([[127], [-128], [100], [3]], dtype=torch.int16)
    params = AffineParams(scale, torch.zeros(4, dtype=torch.int32), 8, True, 0)
    state = half_state(
        UnitState(
            W8A8, QuantizedTensor(codes, params), AffineParams(torch.tensor(0.017), torch.tensor(0), 8, True)
        )
    )
    found = state.weight.params.scale
    assert torch.equal(found, found.half().float()) and (found > 0).all()
    error = (state.weight.dequantize() - QuantizedTensor(codes, params).dequantize()).abs().squeeze()
    assert (error <= found / 2 + 127 * scale * 2**-11).all()
    assert torch.equal(state.weight.codes[2:], codes[2:])
    assert state.activation.scale == torch.tensor(0.017).half().float()


def test_numbers_beyond_half_precision_become_its_ends():
    values = np.array([-np.inf, -3.4e38, 1.0, 7e4], np.float32)
    assert as_half(values).tolist() == [-np.inf, -65504.0, 1.0, 65504.0]


def test_a_graph_is_left_as_it_was(held):
    model = export_float(held[0], held[1][:1], OPSET)
    before = model.SerializeToString()
    half_onnx(model)
    typed_onnx(model, {})
    assert model.SerializeToString() == before
    assert {numpy_helper.to_array(i).dtype for i in model.graph.initializer} >= {np.dtype("float32")}


def test_a_tensor_is_refused_by_targets_that_have_none(held, tmp_path):
    with pytest.raises(
        UserError, match=r"no quantised residual operands or pool inputs, such as 'first.output'"
    ):
        TARGETS.create("onnx").write(job_of(held, TENSORS), tmp_path)
