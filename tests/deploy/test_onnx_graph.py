"""The ONNX file computes what the fake-quantised module computes, in integer kernels."""

from pathlib import Path

import onnx
import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from mpsearch.deploy import export_float, measure_onnx, quantize_onnx, run_onnx, save_onnx
from mpsearch.deploy.onnx import exact
from mpsearch.errors import ModelError, MpsearchError
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import OBSERVERS, fake_quantize, install

NETS = ("mobile", "test_resnet", "test_efficientnet", "test_vit")
FLOAT = Candidate.parse("float")


def _both(net, graph, assignment, path):
    """Logits of the fake-quantised module and of ONNX Runtime."""
    states = net.calibration.states(assignment)
    save_onnx(path, quantize_onnx(graph, states, net.calibration))
    with torch.no_grad():
        return install(net.module, states)(net.images), run_onnx(path)(net.images)


def _exact(net, states):
    return {
        unit: exact(state, getattr(net.module.get_submodule(unit), "groups", 1))
        for unit, state in states.items()
    }


@pytest.mark.parametrize("name", NETS)
def test_the_float_graph_is_the_module(exported, tmp_path, name):
    net, graph = exported(name)
    save_onnx(tmp_path / "float.onnx", graph)
    with torch.no_grad():
        torch.testing.assert_close(
            run_onnx(tmp_path / "float.onnx")(net.images), net.module(net.images), rtol=1e-3, atol=1e-4
        )


def test_fused_attention_with_a_mask_is_exported(tmp_path):
    torch.manual_seed(0)
    module, x = (
        timm.create_model("beit_base_patch16_224", img_size=32, depth=1, embed_dim=32, num_heads=2).eval(),
        torch.randn(3, 3, 32, 32),
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1).requires_grad_(False)
    save_onnx(tmp_path / "masked.onnx", export_float(module, x))
    torch.testing.assert_close(run_onnx(tmp_path / "masked.onnx")(x), module(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("text", ["W8A8", "W4A8"])
def test_it_agrees_with_the_fake_quantised_module(exported, tmp_path, name, text):
    net, graph = exported(name)
    want, got = _both(net, graph, net.uniform(text), tmp_path / "model.onnx")
    # SiLU and softmax stand between convolutions and the next input grid: the convolution's own 8-bit output
    # grid is one rounding more
    cosine = cosine_similarity(want, got)
    assert cosine.median() > (0.999 if name in ("mobile", "test_resnet") else 0.995)
    assert (want.argmax(1) == got.argmax(1)).float().mean() >= 0.85
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("text", ["W8A8", "W4A4"])
def test_linear_layers_alone_agree_closely(exported, tmp_path, name, text):
    """Nothing but a tie of rounding may differ where no convolution needs an output grid."""
    net, graph = exported(name)
    convs = [u for u in net.units if isinstance(net.module.get_submodule(u), torch.nn.Conv2d)]
    assignment = Assignment(tuple((u, FLOAT if u in convs else Candidate.parse(text)) for u in net.units))
    _, got = _both(net, graph, assignment, tmp_path / "model.onnx")
    with (
        torch.no_grad()
    ):  # rows of 8 bits that would overflow are on other scales, which the target's reference has too
        want = install(net.module, _exact(net, net.calibration.states(assignment)))(net.images)
    if (
        name == "test_vit"
        # five blocks of products between quantised layers: one code that tips over is seen in every token
        # behind it
    ):
        assert cosine_similarity(want, got).median() > 0.9999
    else:
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


def _with_output_grids(net, states):
    """The fake-quantised hand-written net with what integer kernels need: biases in whole steps of the
    accumulator, 8-bit grids behind convolutions.
    """
    module = install(net.module, states)
    bounds = {"stem.0": 6.0, "expand.0": 6.0, "depthwise.0": 6.0, "project.0": None, "grouped.0": torch.inf}
    reader = {"expand.0": "depthwise.0", "depthwise.0": "project.0"}

    for unit, high in bounds.items():
        values = net.calibration.outputs[unit]
        values = values if high is None else values.clamp(0.0, high)
        grid = OBSERVERS.create(net.calibration.input_observer).observe(values, 8, symmetric=False)
        step = states[unit].activation.scale * states[unit].weight.params.scale
        bias = module.get_submodule(unit).bias.data
        bias.copy_((bias / step).round() * step)
        if unit in reader:
            following = states[reader[unit]].activation
            assert int(following.zero_point) == 0
            if 255 * float(following.scale) <= high * (1 + 1e-6):
                continue  # the reader's own grid does the work of the activation
        module.get_submodule(unit.partition(".")[0]).register_forward_hook(
            lambda _m, _x, y, grid=grid: fake_quantize(y, grid)
        )
    return module


@pytest.mark.parametrize("text", ["W8A8", "W4A8", "W8A4", "W2A4"])
def test_convolutions_differ_by_their_integer_biases_and_output_grids_and_nothing_else(
    exported, tmp_path, text
):
    """ReLU6, a residual sum, depthwise and grouped convolutions."""
    net, graph = exported("mobile")
    assignment = net.uniform(text)
    plain, got = _both(net, graph, assignment, tmp_path / "model.onnx")
    with torch.no_grad():
        want = _with_output_grids(net, _exact(net, net.calibration.states(assignment)))(net.images)
    error, beside = (got - want).norm() / want.norm(), (got - plain).norm() / plain.norm()
    assert error < 0.2 * beside
    assert cosine_similarity(want, got).median() > 0.99995


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("a_bits", [4, 8])
def test_every_quantised_unit_runs_in_integers_and_a_float_unit_stays_float(exported, tmp_path, name, a_bits):
    net, graph = exported(name)
    kept = set(net.units[1::3])
    assignment = Assignment(tuple((u, FLOAT if u in kept else Candidate(8, a_bits)) for u in net.units))
    model = quantize_onnx(graph, net.calibration.states(assignment), net.calibration)
    save_onnx(tmp_path / "model.onnx", model)
    ran = measure_onnx(tmp_path / "model.onnx", net.images, seconds=0.02)
    assert ran.integer_kernels == len(net.units) - len(kept)
    stored = {
        tuple(i.dims)
        for i in model.graph.initializer
        if i.data_type == onnx.TensorProto.FLOAT and len(i.dims) > 1
    }
    for unit in kept:
        shape = tuple(net.calibration.weights[unit].shape)
        assert shape in stored or shape[::-1] in stored


@pytest.mark.parametrize("a_bits", [2, 4, 6])
def test_codes_of_inputs_stay_in_their_bits(exported, a_bits):
    net, graph = exported("test_resnet")
    model = quantize_onnx(graph, net.calibration.states(net.uniform(f"W8A{a_bits}")), net.calibration)
    limits = {
        i.name: int(onnx.numpy_helper.to_array(i))
        for i in model.graph.initializer
        if i.data_type == onnx.TensorProto.UINT8 and not i.dims
    }
    clips = [n for n in model.graph.node if n.op_type == "Clip" and n.input[2] in limits]
    assert clips and {limits[n.input[2]] for n in clips} == {2**a_bits - 1}


def test_weights_keep_their_narrower_range(exported):
    net, graph = exported("mobile")
    model = quantize_onnx(graph, net.calibration.states(net.uniform("W3A8")), net.calibration)
    codes = [
        onnx.numpy_helper.to_array(i)
        for i in model.graph.initializer
        if i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1
    ]
    assert len(codes) == len(net.units)
    assert (
        min(c.min() for c in codes) >= -4
        and max(c.max() for c in codes) <= 3
        and max(c.max() for c in codes) > 1
    )


def test_the_float_graph_is_left_as_it_is(exported):
    net, graph = exported("mobile")
    before = graph.SerializeToString(deterministic=True)
    quantize_onnx(graph, net.calibration.states(net.uniform("W8A8")), net.calibration)
    assert graph.SerializeToString(deterministic=True) == before


def test_batches_of_any_size_run(exported, tmp_path):
    net, graph = exported("mobile")
    save_onnx(
        tmp_path / "model.onnx",
        quantize_onnx(graph, net.calibration.states(net.uniform("W8A8")), net.calibration),
    )
    run = run_onnx(tmp_path / "model.onnx")
    whole = run(net.images)
    assert whole.shape == (len(net.images), 10)
    torch.testing.assert_close(
        torch.cat([run(net.images[:1]), run(net.images[1:6])]), whole[:6], rtol=1e-4, atol=1e-4
    )


def test_a_unit_without_a_node_of_its_own_is_named(exported):
    net, graph = exported("mobile")
    states = net.calibration.states(net.uniform("W8A8"))
    with pytest.raises(ModelError, match=r"no node for the units \['elsewhere'\].*--target packed"):
        quantize_onnx(graph, {**states, "elsewhere": states["head"]}, net.calibration)


def test_a_model_that_cannot_be_exported_is_one_error():
    class Branches(torch.nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(ModelError, match="cannot be exported to ONNX: Could not guard on data-dependent"):
        export_float(Branches(), torch.zeros(1, 3, 4, 4))


class _Windows(nn.Module):
    """Attention over tokens of 3 axes, or over windows, of 5."""

    def __init__(self, masked: bool, windows: bool) -> None:
        super().__init__()
        self.qkv, self.masked, self.windows = nn.Linear(8, 24), masked, windows

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.windows:
            q, k, v = (t.unflatten(1, (2, 3, 4)) for t in (q, k, v))
        mask = torch.linspace(0, 2, q.shape[-2] ** 2).reshape(q.shape[-2], -1) if self.masked else None
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("windows", [False, True])
def test_fused_attention_of_other_than_four_axes_is_exported(tmp_path, masked, windows):
    torch.manual_seed(0)
    module, x = _Windows(masked, windows).eval(), torch.randn(3, 24, 8)
    save_onnx(tmp_path / "float.onnx", export_float(module, x))
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(tmp_path / "float.onnx")(x), module(x))


def test_a_write_that_fails_leaves_the_old_file(exported, tmp_path, monkeypatch):
    net, graph = exported("mobile")
    path = tmp_path / "best.onnx"
    size = save_onnx(path, graph)
    held = path.read_bytes()
    assert size == len(held)

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(MpsearchError, match="No space left"):
        save_onnx(path, quantize_onnx(graph, net.calibration.states(net.uniform("W4A8")), net.calibration))
    monkeypatch.undo()
    assert path.read_bytes() == held and [p.name for p in tmp_path.iterdir()] == ["best.onnx"]


def test_a_padding_with_zeros_before_a_max_pool_is_kept(tmp_path: Path):
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.ConstantPad2d(1, 0.0),
        nn.MaxPool2d(3, 2),
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.MaxPool2d(2, 2),
    ).eval()
    nn.init.constant_(module[0].bias, -5.0)  # all that is pooled is negative, so the zeros win
    x = torch.randn(2, 3, 9, 9)
    save_onnx(tmp_path / "float.onnx", export_float(module, x))
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(tmp_path / "float.onnx")(x), module(x))
