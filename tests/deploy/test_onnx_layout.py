"""The ONNX file of an assignment has the predicted size to the byte, whatever its neighbours are."""

import random

import onnx
import pytest
import torch
from odd_nets import job_of as odd_job
from target_jobs import MAKERS, job_of
from torch import nn

from mpsearch.deploy import quantize_onnx
from mpsearch.deploy.onnx_layout import OnnxLayout, pad_to
from mpsearch.deploy.onnx_packing import pack_weights
from mpsearch.deploy.targets import TARGETS
from mpsearch.errors import MpsearchError
from mpsearch.hardware.qdq import OPSET
from mpsearch.problem import FLOAT, Assignment, Candidate

MIXED = (*(f"W{b}A8" for b in range(2, 9)), "W8A6", "W5A4", "W4A8/tensor", "float")


@pytest.mark.parametrize("name", MAKERS)
def test_files_have_the_predicted_size(name, tmp_path):
    target = TARGETS.create("onnx:weights=packed")
    for seed in range(12):
        job, assignment, _ = job_of(name, seed, MIXED)
        target.write(job, tmp_path)
        layout = target.layout(job.layout, job.float_onnx)
        assert (tmp_path / target.file).stat().st_size == layout.size_bytes(assignment)
        assert target.bytes_of(tmp_path) == layout.constant_bytes + sum(
            layout.unit_bytes(u, c) for u, c in assignment.items()
        )


class Zeros(nn.Module):
    """Tokens through layers whose biases are zero: the graph of the float model holds one for all, or none."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12 if i == 0 else 16, 16) for i in range(6))
        for layer in self.layers:
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return x.mean((1, 2))


def test_corrected_biases_that_were_one_are_counted(tmp_path):
    images = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    job, _ = odd_job("zero biases", Zeros, "W2A8", images)
    target = TARGETS.create("onnx")
    target.write(job, tmp_path)
    chosen = Assignment(tuple((unit, state.candidate) for unit, state in job.states.items()))
    assert all(state.bias is not None for state in job.states.values())
    size = (tmp_path / target.file).stat().st_size
    assert size == target.layout(job.layout, job.float_onnx).size_bytes(chosen)
    without = OnnxLayout.of(job.float_onnx(OPSET), job.layout.weights).size_bytes(chosen)
    assert size - without >= 6 * 4 * 16


@pytest.mark.parametrize("name", ["mobile", "same", "test_resnet", "test_efficientnet", "test_vit"])
def test_little_is_filled_up(exported, name):
    """No file is larger than predicted; what is filled up are functions that it does not call, and some
    hundred bytes a unit.
    """
    net, graph = exported(name)
    layout = OnnxLayout.of(graph, net.layout.weights)
    draw = random.Random(name)
    for choices in (
        *([f"W{b}A8"] for b in range(2, 9)),
        ["W2A2", "W7A7", "float"],
        MIXED,
        ["float", "W8A8"],
        ["float", "W2A8"],
        ["float"],
    ):
        assignment = Assignment(tuple((unit, Candidate.parse(draw.choice(choices))) for unit in net.units))
        model = quantize_onnx(graph, net.calibration.states(assignment), net.calibration)
        pack_weights(model)
        called = sum(function.ByteSize() for function in model.functions)
        bare = model.ByteSize()
        pad_to(model, layout.size_bytes(assignment))
        onnx.checker.check_model(model)
        assert len(model.SerializeToString()) == layout.size_bytes(assignment)
        if set(choices) <= {"W2A8", "float"}:  # other codes may need fewer bits than they were given
            assert model.ByteSize() - bare <= 15_700 - called + 600 * len(net.units)


def test_stored_weights_too(exported):
    net, graph = exported("test_vit")
    layout = OnnxLayout.of(graph, net.layout.weights)
    for text in ("W4A16", "W8A16"):
        assignment = Assignment(
            tuple((u, FLOAT if len(net.layout.weights[u]) > 2 else Candidate.parse(text)) for u in net.units)
        )
        model = quantize_onnx(graph, net.calibration.states(assignment), net.calibration)
        pack_weights(model)
        pad_to(model, layout.size_bytes(assignment))
        assert model.ByteSize() == layout.size_bytes(assignment)


def test_more_bits_are_never_smaller(exported):
    net, graph = exported("mobile")
    layout = OnnxLayout.of(graph, net.layout.weights)
    for unit in net.units:
        sizes = [layout.unit_bytes(unit, Candidate(bits, 8)) for bits in range(2, 9)]
        assert sizes == sorted(sizes)
        weights = net.module.get_submodule(unit).weight.numel()
        assert layout.unit_bytes(unit, FLOAT) >= 4 * weights


def test_a_file_reaches_every_length():
    """Length fields grow by a byte at 128 and at 16,384; all sizes beyond the least are reached."""
    for extra in (*range(30, 400), *range(16_300, 16_500)):
        model = onnx.ModelProto(ir_version=10, producer_name="x")
        pad_to(model, 10 + extra)
        assert len(model.SerializeToString()) == 10 + extra
    with pytest.raises(MpsearchError, match=r"not the predicted 12\. Nothing was written"):
        pad_to(onnx.ModelProto(ir_version=10), 12)
