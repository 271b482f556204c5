"""A packed checkpoint on the Triton kernels, on the CPU through Triton's interpreter (on the device where
there is one).
"""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import timm.layers
import torch
from torch import nn

import mpsearch
from mpsearch.deploy import load_packed, save_packed
from mpsearch.deploy.artifact import write_artifact
from mpsearch.deploy.kernel_layer import KernelLayer
from mpsearch.deploy.kernels import kernel_layers, kernel_module, require_device
from mpsearch.deploy.targets import TARGETS, Job
from mpsearch.errors import (
    CheckpointError,
    DeviceMismatchError,
    MissingExtraError,
    OptionError,
    UnknownNameError,
    UserError,
)
from mpsearch.hardware import fresh_process
from mpsearch.hardware.gpu import card as cards
from mpsearch.hardware.gpu import probe
from mpsearch.hardware.kernels.layout import padded_columns
from mpsearch.problem import Candidate
from mpsearch.quant import QuantizedTensor, UnitState, affine_params, install, quantize
from mpsearch.quant.regions import LogParams

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTEGER = tuple(f"W{bits}A8" for bits in range(2, 9))
MIXED = (*INTEGER, "W3A4", "W4A16", "W5A8/tensor", "float")


@pytest.fixture
def written(prepared, tmp_path):
    """`written("mobile", choices)`: path, states and net of a checkpoint whose units have the choices in
    turn.
    """

    def make(name, choices=MIXED):
        net, path = prepared(name), tmp_path / f"{name}.safetensors"
        states = net.calibration.states(
            {unit: Candidate.parse(choices[i % len(choices)]) for i, unit in enumerate(net.units)}
        )
        save_packed(path, net.layout, net.module, states)
        return path, states, net

    return make


def compared(path, net, model=None, dtype="fp16", images=2):
    """The module on kernels, and cosine and greatest error, over the greatest logit, of its logits to the
    fake-quantised module's.
    """
    loaded = mpsearch.load(path, model, kernels="triton-cuda", device=DEVICE, dtype=dtype)
    inputs = net.images[:images]
    with torch.no_grad():
        found, wanted = loaded(inputs.to(DEVICE)).cpu().double(), load_packed(path, model)(inputs).double()
    assert found.shape == wanted.shape
    cosine = torch.nn.functional.cosine_similarity(found, wanted).min()
    return loaded, float(cosine), float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("choices", [INTEGER, MIXED], ids=["W2A8 to W8A8", "mixed"])
def test_a_cnn_with_grouped_and_depthwise_convolutions(written, choices):
    path, states, net = written("mobile", choices)
    loaded, cosine, error = compared(path, net, net.unfolded, images=1)
    assert cosine > 0.9999 and error < 0.01
    held = kernel_layers(loaded)
    assert set(held) == {unit for unit, state in states.items() if not state.candidate.is_float}
    assert all(layer.unit.ran for layer in held.values()), "every unit went through its kernel"
    assert [layer.unit.ran[-1][0].split("_")[0] for name, layer in held.items() if name == "depthwise.0"] == [
        "depthwise"
    ]


def test_a_vision_transformer(written):
    path, _, net = written("test_vit")
    loaded, cosine, error = compared(path, net, images=1)
    assert (
        cosine > 0.999 and error < 0.06
        # codes at the edge of a step tip over by half precision in between, as they do by noise of 1e-3 in
        # the input
    )
    assert {layer.unit.weight.bits for layer in kernel_layers(loaded).values()} == {2, 3, 4, 5, 6, 7, 8}


@pytest.mark.parametrize("name", ["mobile", "test_vit"])
def test_every_unit_is_the_fake_quantised_one_on_the_same_input(written, name):
    path, _, net = written(name)
    model = net.unfolded if name == "mobile" else None
    loaded, fake = mpsearch.load(path, model, kernels="triton-cuda", device=DEVICE), load_packed(path, model)
    seen = {}
    for unit, layer in kernel_layers(loaded).items():
        layer.register_forward_hook(
            lambda _, inputs, output, unit=unit: seen.__setitem__(
                unit, (inputs[0].cpu().float(), output.cpu().float())
            )
        )
    loaded(net.images[:1].to(DEVICE))
    for unit, (given, found) in seen.items():
        with torch.no_grad():
            wanted = fake.get_submodule(unit)(given)
        assert float((found - wanted).abs().max() / wanted.abs().max()) <= 2**-9, unit
    assert len(seen) == len(kernel_layers(loaded)) > 4


def test_convolutions_that_pad_below_and_to_the_right_alone(written):
    path, _, net = written("same", INTEGER)
    loaded, cosine, error = compared(path, net, net.unfolded)
    assert cosine > 0.9999 and error < 0.01 and len(kernel_layers(loaded)) == 3


def test_bf16_between_units(written):
    path, _, net = written("mobile", INTEGER)
    loaded, cosine, error = compared(path, net, net.unfolded, "bf16", images=1)
    assert cosine > 0.999 and error < 0.06
    assert loaded(net.images[:1].to(DEVICE)).dtype == torch.bfloat16


def test_weights_are_held_packed_and_never_in_float(written):
    path, states, net = written("mobile", MIXED)
    loaded = mpsearch.load(path, net.unfolded, kernels="triton-cuda", device=DEVICE)
    floats = {name for name, value in loaded.state_dict().items() if value.ndim >= 2}
    assert floats == {f"{unit}.weight" for unit, state in states.items() if state.candidate.is_float}
    for unit, layer in kernel_layers(loaded).items():
        shape, bits = states[unit].weight.codes.shape, states[unit].candidate.w_bits
        rows, columns = (
            (shape[1:].numel(), shape[0]) if unit == "depthwise.0" else (shape[0], shape[1:].numel())
        )
        around = 4 * shape[0] * (2 + (layer.bias is not None))  # scale, correction, bias
        assert layer.unit.packed_bytes == rows * padded_columns(columns) * bits // 8 + around
        tensors = [value for value in vars(layer.unit).values() if isinstance(value, torch.Tensor)] + [
            layer.unit.weight.data
        ]
        assert max(t.numel() * t.element_size() for t in tensors) <= max(
            layer.unit.weight.data.numel(), 4 * shape[0]
        )


def test_logits_do_not_depend_on_the_batch_around_an_image(written):
    path, _, net = written("mobile", INTEGER)
    loaded = mpsearch.load(path, net.unfolded, kernels="triton-cuda", device=DEVICE)
    inputs = net.images[:2, :, :16, :16].to(DEVICE)
    assert torch.equal(loaded(inputs)[:1], loaded(inputs[:1]))


def test_a_module_is_left_as_found_and_its_copy_has_every_unit(prepared):
    net = prepared("mobile")
    before = {name: value.clone() for name, value in net.module.state_dict().items()}
    copied = kernel_module(net.module, net.calibration.states(net.uniform("W4A8")), device=DEVICE)
    assert all(
        torch.equal(value, before[name]) for name, value in net.module.state_dict().items()
    ) and not kernel_layers(net.module)
    assert len(kernel_layers(copied)) == len(net.units)


class Padding(nn.Module):
    """Every way of padding that a convolution of torch has."""

    def __init__(self):
        super().__init__()
        self.same = nn.Conv2d(3, 4, 2, padding="same")
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.valid = nn.Conv2d(4, 4, 3, padding="valid", dilation=2)
        self.oblong = nn.Conv2d(4, 4, (1, 3), padding=(0, 1), stride=(2, 1))
        self.linear = timm.layers.Linear(4, 5)

    def forward(self, x):
        return self.linear(self.oblong(self.valid(self.reflect(self.same(x)))).mean((2, 3)))


def states_of(module, inputs, bits=6):
    """States by min-max, from the inputs that each unit really reads."""
    seen = {}
    hooks = [
        m.register_forward_pre_hook(lambda _, a, n=n: seen.__setitem__(n, a[0]))
        for n, m in module.named_children()
    ]
    with torch.no_grad():
        module(inputs)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, layer in module.named_children():
        flat = layer.weight.detach().flatten(1)
        weight = affine_params(flat.amin(1), flat.amax(1), bits, symmetric=True, axis=0)
        reads = affine_params(seen[name].min(), seen[name].max(), 8, symmetric=False)
        found[name] = UnitState(
            Candidate(bits, 8), QuantizedTensor(quantize(layer.weight.detach(), weight), weight), reads
        )
    return found


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_every_padding_of_torch_and_signed_inputs():
    torch.manual_seed(0)
    module, inputs = Padding().eval(), torch.randn(2, 3, 9, 8)
    states = states_of(module, inputs)
    reads = affine_params(torch.tensor(-2.0), torch.tensor(2.0), 8, symmetric=True)
    states["same"] = UnitState(states["same"].candidate, states["same"].weight, reads)
    with torch.no_grad():
        found, wanted = (
            kernel_module(module, states, device=DEVICE)(inputs.to(DEVICE)).cpu().float(),
            install(module, states)(inputs),
        )
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 0.01


class Odd(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def test_units_without_a_kernel_are_all_named():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), Odd(4, 4, 3), nn.Conv2d(4, 4, 1)).eval()
    states = states_of(module, torch.randn(1, 3, 9, 9))
    states["2"] = UnitState(states["2"].candidate, states["2"].weight, LogParams(torch.tensor(1.0), 8, 1))
    product = UnitState(Candidate(8, 8), None, states["0"].activation, states["0"].activation)
    with pytest.raises(
        UserError,
        match=(
            r"'1' \(a Odd with a forward of its own\); '2' \(its input has a LogParams.*'m\.matmul0' "
            r"\(a product of two activ"
        ),
    ):
        kernel_module(module, {**states, "m.matmul0": product}, device=DEVICE)


def test_a_module_on_kernels_is_not_moved_and_has_no_gradient(written):
    path, _, net = written("mobile", INTEGER)
    loaded = mpsearch.load(path, net.unfolded, kernels="triton-cuda", device=DEVICE)
    for move in (lambda: loaded.to("meta"), lambda: loaded.float(), lambda: loaded.bfloat16()):
        with pytest.raises(UserError, match="Load it again"):
            move()
    layer = kernel_layers(loaded)["expand.0"]
    assert layer.half() is layer and layer.to(DEVICE) is layer
    with pytest.raises(UserError, match="no gradient"):
        layer(torch.zeros(1, 16, 4, 4, device=DEVICE, requires_grad=True))


def test_a_layer_keeps_the_sizes_of_the_float_one_and_no_weight(written):
    path, _, net = written("mobile", INTEGER)
    layer = kernel_layers(mpsearch.load(path, net.unfolded, kernels="triton-cuda", device=DEVICE))[
        "depthwise.0"
    ]
    assert (
        isinstance(layer, KernelLayer)
        and (layer.in_channels, layer.groups, layer.stride) == (32, 32, (1, 1))
        and not hasattr(layer, "weight")
    )
    assert "w" in repr(layer) and f"{layer.unit.packed_bytes} bytes" in repr(layer)


def test_options_are_refused_with_what_is_right(written, monkeypatch):
    path, _, net = written("mobile", INTEGER)
    with pytest.raises(OptionError, match="dtype is given without kernels"):
        mpsearch.load(path, net.unfolded, dtype="bf16")
    with pytest.raises(UnknownNameError, match="triton-cuda"):
        mpsearch.load(path, net.unfolded, kernels="triton")
    with pytest.raises(OptionError, match="fp16 or bf16"):
        mpsearch.load(path, net.unfolded, kernels="triton-cuda", device=DEVICE, dtype="fp32")
    with pytest.raises(OptionError, match="device is 'gpu'"):
        mpsearch.load(path, net.unfolded, kernels="triton-cuda", device="gpu")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        mpsearch.load(path.with_name("none"), kernels="triton-cuda", device=DEVICE)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"mpsearch\[cuda\]"):
        mpsearch.load(path, net.unfolded, kernels="triton-cuda")


def test_without_kernels_a_device_is_where_the_fake_quantised_module_computes(written):
    path, _, net = written("mobile", INTEGER)
    module = mpsearch.load(path, net.unfolded, device="meta")
    image = torch.empty(2, 3, 16, 16, device="meta")
    assert {p.device.type for p in module.parameters()} == {"meta"} and module(image).device.type == "meta"
    with pytest.raises(OptionError, match="device is 'gpu'"):
        mpsearch.load(path, net.unfolded, device="gpu")


def test_a_machine_without_a_gpu_is_told_so_before_the_file_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "gpu", lambda: None)
    with pytest.raises(DeviceMismatchError, match=r"cannot run on 'cuda': .*CUDA.*without kernels="):
        mpsearch.load(tmp_path / "none.safetensors", kernels="triton-cuda")
    with pytest.raises(DeviceMismatchError, match="not on 'meta'"):
        require_device("meta")


@pytest.mark.skipif(DEVICE == "cuda", reason="Triton compiles here")
def test_an_interpreted_kernel_is_not_taken_for_a_compiled_one(monkeypatch):
    monkeypatch.setattr(probe, "gpu", lambda: H200)
    with pytest.raises(DeviceMismatchError, match="TRITON_INTERPRET"):
        require_device("cuda")


def test_layers_of_a_transformer_encoder_stay_off_its_fused_path():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).eval()
    layer = encoder.linear1
    flat = layer.weight.detach()
    weight = affine_params(flat.amin(1), flat.amax(1), 8, symmetric=True, axis=0)
    state = UnitState(Candidate(8, 16), QuantizedTensor(quantize(flat, weight), weight))
    x = torch.randn(1, 3, 16)
    with torch.no_grad():
        found = (
            kernel_module(nn.Sequential(encoder), {"0.linear1": state}, device=DEVICE)(x.to(DEVICE))
            .cpu()
            .float()
        )
        assert float((found - install(encoder, {"linear1": state})(x)).abs().max()) < 0.02


def test_the_cast_of_inputs_pickles_and_leaves_tokens_alone():
    module = kernel_module(nn.Sequential(nn.Embedding(4, 3)), {}, device=DEVICE)
    (hook,) = module._forward_pre_hooks.values()
    assert pickle.loads(pickle.dumps(hook)).dtype == torch.float16  # noqa: S301
    assert module(torch.tensor([1, 2], device=DEVICE)).shape == (2, 3)


H200 = probe.Gpu("NVIDIA H200", (9, 0), 132, 2**37, 2**25, 2**18)


class Counting:
    """A monitor whose counter moves 30 mJ at every look."""

    def __init__(self):
        self.read = 0

    def energy_mj(self):
        self.read += 1
        return 30.0 * self.read


@pytest.fixture
def exported_artifact(prepared, tmp_path, monkeypatch):
    """An artifact of `triton-cuda`, with a fake card that has the device of this file."""
    net = prepared("test_resnet")
    job = Job(
        net.module,
        net.layout,
        net.calibration.states(net.uniform("W4A8")),
        net.calibration,
        net.images[:1, :, :8, :8],
    )
    monkeypatch.setattr(cards, "card", lambda: SimpleNamespace(device=DEVICE, monitor=Counting(), gpu=H200))
    return write_artifact(tmp_path / "artifact", "triton-cuda", job, {"label": "best"}), job, net


@pytest.fixture
def asked(tmp_path, capsys):
    """`asked(artifact, request, inputs)`: what the other process answers, in this one."""

    def ask(artifact, request, inputs=None):
        program = artifact.target.program(artifact.folder)
        given, answer = tmp_path / "inputs.npz", tmp_path / "outputs.npy"
        np.savez(given, np.zeros(0, np.float32) if inputs is None else inputs.numpy())
        job = {"loader": program.loader, "path": str(program.path), "options": program.options, "threads": 1}
        assert (
            fresh_process._main(json.dumps({**job, "inputs": str(given), "outputs": str(answer), **request}))
            == 0
        )
        return torch.from_numpy(np.load(answer)), json.loads(capsys.readouterr().out.splitlines()[-1])

    return ask


def test_an_exported_artifact_is_run_and_benched_on_the_kernels(exported_artifact, asked, monkeypatch):
    artifact, job, net = exported_artifact
    assert artifact.manifest["target"] == "triton-cuda" and artifact.size_bytes == net.layout.size_bytes(
        net.uniform("W4A8")
    )
    logits, _ = asked(artifact, {"do": "run"}, net.images[:1])
    with torch.no_grad():
        wanted = install(job.module, job.states)(net.images[:1])
    assert (
        logits.dtype == torch.float32 and float(torch.nn.functional.cosine_similarity(logits, wanted)) > 0.999
    )
    monkeypatch.setattr(
        fresh_process, "_latencies", lambda run, inputs, seconds: {"latency_us": {}}
    )  # dozens of calls, which the interpreter takes seconds for
    _, found = asked(artifact, {"do": "bench", "batches": [1], "seconds": 0.0, "shapes": artifact.inputs})
    assert found["device"].startswith("NVIDIA H200")
    assert found["energy"] == {"mj_per_image": 30.0, "batch": 1} and found["batches"] == [
        {"batch": 1, "latency_us": {}}
    ]


def test_the_runtime_reads_the_file_back_and_counts_the_calls_on_kernels(written, monkeypatch):
    path, states, net = written("mobile", ("W4A8", "float"))
    monkeypatch.setattr(cards, "card", lambda: SimpleNamespace(device=DEVICE))
    target, job = (
        TARGETS.create("triton-cuda"),
        Job(net.module, net.layout, states, net.calibration, net.images[:2]),
    )
    path.rename(path.with_name(target.file))
    run, calls = target.one_call(job, path.parent, 1)
    assert calls == sum(not state.candidate.is_float for state in states.values()) == 3
    logits = target.reload(job, path.parent, 1)(net.images[:1])
    assert logits.dtype == torch.float32 and torch.equal(run().float().cpu(), logits)


def test_an_artifact_on_kernels_needs_a_gpu(exported_artifact, monkeypatch):
    artifact, _, _ = exported_artifact
    monkeypatch.undo()
    monkeypatch.setattr(probe, "gpu", lambda: None)
    cards.card.cache_clear()
    with pytest.raises(DeviceMismatchError, match="NVIDIA GPU"):
        artifact.target.load(artifact.folder, 1)
