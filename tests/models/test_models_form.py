"""Any model: what it reads and gives is seen, its units found, its checkpoint and its ONNX file the same model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mpsearch.deploy.onnx import quantize_onnx, save_onnx
from mpsearch.deploy.onnx_float import export_float
from mpsearch.deploy.onnx_run import run_onnx
from mpsearch.deploy.packed import PackedLayout, save_packed
from mpsearch.deploy.packed_reading import load_packed
from mpsearch.errors import ModelError
from mpsearch.evaluate import predict
from mpsearch.models import (
    Form,
    ModelSource,
    analyze,
    as_batch,
    bound,
    find_foldable,
    fold_batch_norm,
    observe_form,
    rebound,
    require_function,
    trace_model,
)
from mpsearch.problem import Candidate
from mpsearch.pytrees import flatten, leaves_of, like
from mpsearch.quant import install
from mpsearch.reconstruct import calibrate
from mpsearch.testing.nested import nested_net

ROUNDING = 0.05
"""Of the spread of an output: the file has 8-bit grids behind convolutions that the module has not, and a code at
the edge of a step may tip over, which on nets of eight channels is seen.
"""


@pytest.mark.parametrize("seed", range(16))
def test_random_nets_with_nested_inputs_and_outputs(seed, tmp_path):
    _check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16, 200))
def test_many_random_nets_with_nested_inputs_and_outputs(seed, tmp_path):
    _check(seed, tmp_path)


@torch.no_grad()
def _check(seed, tmp_path):
    net = nested_net(seed)
    module, inputs = net.bound, net.inputs
    require_function(module, inputs)
    pairs = find_foldable(trace_model(module, inputs), module)
    folded = fold_batch_norm(module, pairs)
    graph = analyze(folded, inputs)
    units = [layer.name for layer in graph.layers if layer.op != "matmul"]
    assert set(units) == net.called and "idle" in graph.unused
    calibration = calibrate(folded, units, [inputs])
    choices = [Candidate(bits, 8) for bits in (4, 8, 3)]
    states = {unit: calibration.state(unit, choices[i % 3]) for i, unit in enumerate(units)}
    quantized = install(folded, states)
    wanted = quantized(inputs)
    layout = PackedLayout.of(folded, units, ModelSource("module", "net"), pairs, {})
    save_packed(tmp_path / "net.safetensors", layout, folded, states)
    back = rebound(load_packed(tmp_path / "net.safetensors", net.module), folded)
    assert torch.equal(back(inputs), wanted)
    save_onnx(tmp_path / "net.onnx", quantize_onnx(export_float(folded, inputs), states, calibration))
    ran = run_onnx(tmp_path / "net.onnx")(inputs)
    for name, part in net.form.parts(wanted).items():
        apart = (net.form.parts(ran)[name] - part).square().mean().sqrt()
        assert apart <= ROUNDING * max(float(part.std()), 1e-3), name


@dataclass
class Heads:
    boxes: Tensor
    maps: dict[str, Tensor]
    anchors: Tensor


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box, self.map = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Conv2d(4, 2, 1)
        self.register_buffer("anchors", torch.zeros(5, 4))

    def forward(self, image: Tensor, *, size: Tensor) -> Heads:
        x = self.stem(image)
        return Heads(
            self.box(x.mean((2, 3)) + size), {"all": self.map(x), "best": self.map(x).argmax(1)}, self.anchors
        )


def _given(module: nn.Module, *args, batch_axis: int = 0, **kwargs) -> tuple[Form, object]:
    leaves, call = flatten((args, kwargs))
    inputs = as_batch([leaf.movedim(batch_axis, 0) for leaf in leaves], call)
    return observe_form(module, inputs, call, batch_axis), inputs


def test_the_form_of_a_model_says_what_counts():
    module = Detector().eval()
    form, inputs = _given(module, torch.randn(3, 3, 6, 6), size=torch.randn(3, 4))
    assert [(leaf.name, leaf.shape) for leaf in form.inputs] == [("image", (3, 6, 6)), ("size", (4,))]
    assert [leaf.name for leaf in form.outputs] == ["boxes", "maps.all", "maps.best", "anchors"]
    assert [leaf.name for leaf in form.counted] == ["boxes", "maps.all"]
    run = bound(module, form)
    assert isinstance(run, Detector) and list(run.state_dict()) == list(module.state_dict())
    parts = form.parts(run(inputs))
    expected = module(torch.as_tensor(leaves_of(inputs)[0]), size=leaves_of(inputs)[1])
    assert torch.equal(parts["boxes"], expected.boxes) and torch.equal(
        parts["maps.all"], expected.maps["all"]
    )
    assert bound(run, form) is run and run(inputs).shape == (3, 4 + 2 * 4 * 4)
    told = Form.from_json(form.to_json())
    assert (told.inputs, told.call, told.outputs) == (form.inputs, form.call, form.outputs)


def test_a_model_of_one_tensor_stays_as_it_is():
    module = nn.Sequential(nn.Conv2d(3, 4, 1))
    form, _ = _given(module, torch.randn(2, 3, 4, 4))
    assert form.plain and bound(module, form) is module


def test_another_batch_axis(tmp_path):
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, steps: Tensor) -> Tensor:  # T x N x 3
            return self.layer(steps).cumsum(0)

    module = Steps().eval()
    steps = torch.randn(7, 4, 3)
    form, inputs = _given(module, steps, batch_axis=1)
    run = bound(module, form)
    assert torch.allclose(run(inputs), module(steps).movedim(1, 0)) and run(inputs[:1]).shape == (1, 7, 2)
    graph = export_float(run, inputs)
    save_onnx(tmp_path / "m.onnx", graph)
    torch.testing.assert_close(run_onnx(tmp_path / "m.onnx")(inputs), run(inputs), rtol=1e-4, atol=1e-5)
    assert [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim] == [7, 0, 3]


class _Odd(nn.Module):
    def __init__(self, give) -> None:
        super().__init__()
        self.layer, self.give = nn.Linear(3, 3), give

    def forward(self, x: Tensor) -> object:
        return self.give(self.layer(x))


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda y: [{"boxes": row} for row in y], r"1 tensors for one sample and 2 for two.*--metric"),
        (lambda y: y[y[:, 0] > -1e9].repeat(2, 1), r"2 x 3 for one sample and 4 x 3 for two"),
        (lambda y: y.argmax(1), "no float tensor with a row for each sample on axis 0.*--batch-axis"),
        (lambda y: None, "gives no tensor: no float tensor"),
    ],
)
def test_what_gives_no_row_for_each_sample_is_refused(give, message):
    with pytest.raises(ModelError, match=message):
        _given(_Odd(give).eval(), torch.randn(4, 3))


def test_a_missing_argument_is_named_as_such():
    with pytest.raises(
        ModelError, match=r"size.*Give every argument of its forward.*--data file.py:function"
    ):
        _given(Detector().eval(), torch.randn(2, 3, 6, 6))


def test_predict_takes_several_inputs():
    net = nested_net(3)

    class Held:
        name = "held"

        def batches(self, size: int):
            for start in range(0, len(net.inputs), 4):
                yield net.inputs[start : start + 4], None

    assert torch.allclose(predict(net.bound, Held()), net.bound(net.inputs), atol=1e-5)
    assert len(like(net.inputs, leaves_of(net.inputs))) == len(net.inputs)
