"""What was timed is what ships, for ONNX Runtime: cells and exported models; and weights that are stored
alone.
"""

import onnx
import pytest
import torch
from torch import nn

from mpsearch.deploy import quantize_onnx, run_onnx, save_onnx
from mpsearch.errors import ModelError
from mpsearch.hardware import BACKENDS
from mpsearch.hardware.backends.ort_cpu import arithmetic_of, executed, kernels_of
from mpsearch.models import analyze
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import install

FLOAT = Candidate.parse("float")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["mobile", "test_vit"])
def test_what_ships_runs_in_the_kernels_that_were_timed(exported, tmp_path, name, seed):
    """As many kernels of each arithmetic as the cells of the units have, products of activations added in
    float.
    """
    (net, graph), backend = exported(name), BACKENDS.create("ort-cpu")
    layers = analyze(net.module, net.images[:1]).layers
    choices = net.mixed(seed, ("float", "W8A8", "W4A16", "W8A16"))
    offered = {
        layer.name: choices[layer.name]
        for layer in layers
        if layer.name in choices and backend.supports(layer, choices[layer.name]).kernel is not None
    }
    assignment = Assignment(tuple((unit, offered.get(unit, FLOAT)) for unit in net.units))
    save_onnx(tmp_path / "m.onnx", quantize_onnx(graph, net.calibration.states(assignment), net.calibration))
    timed = []
    for layer in layers:
        cell = backend.build(layer, assignment.get(layer.name, FLOAT), 1)
        assert cell.as_asked
        timed += kernels_of(cell.executed) * layer.calls
    assert sorted(kernels_of(executed(tmp_path / "m.onnx"))) == sorted(timed)
    assert len(set(timed)) > 1


@pytest.mark.parametrize("text", ["W8A16", "W4A16", "W2A16"])
@pytest.mark.parametrize("name", ["mobile", "test_vit"])
def test_stored_weights_compute_what_the_module_computes(exported, tmp_path, name, text):
    net, graph = exported(name)
    convs = {u for u in net.units if isinstance(net.module.get_submodule(u), nn.Conv2d)}
    states = net.calibration.states(
        Assignment(tuple((u, FLOAT if u in convs else Candidate.parse(text)) for u in net.units))
    )
    model = quantize_onnx(graph, states, net.calibration)
    save_onnx(tmp_path / "m.onnx", model)
    with torch.no_grad():
        want = install(net.module, states)(net.images)
    torch.testing.assert_close(
        run_onnx(tmp_path / "m.onnx")(net.images), want, rtol=1e-3, atol=1e-4 * float(want.abs().max())
    )
    assert executed(tmp_path / "m.onnx").count("MatMulNBits") == len(net.units) - len(convs)
    assert arithmetic_of(Candidate.parse(text)) == "stored"
    onnx.checker.check_model(str(tmp_path / "m.onnx"))


def test_a_convolution_of_stored_weights_is_refused(exported):
    net, graph = exported("mobile")
    states = net.calibration.states(net.uniform("W4A16"))
    with pytest.raises(ModelError, match=r"'stem.0' is at W4A16.*linear layers only"):
        quantize_onnx(graph, states, net.calibration)
