"""An ONNX file computes the same on every x86 processor, opened by ONNX Runtime's default session."""

import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odd_nets import job_of
from onnx import numpy_helper
from sklearn.datasets import load_digits
from torch import nn

from mpsearch.deploy import quantize_onnx, run_onnx, save_onnx
from mpsearch.deploy.onnx import held_weight
from mpsearch.deploy.targets import TARGETS
from mpsearch.hardware.backends.ort_cpu import executed, kernels_of
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.hardware.overflow import is_depthwise, widest_pairs, without_overflow
from mpsearch.hardware.qdq import QuantizedWeight
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import install

ORDERS = {
    "channels fastest": lambda w: np.moveaxis(w, 1, -1),
    "as in the file": lambda w: w,
    "an odd start": lambda w: np.pad(np.moveaxis(w, 1, -1), ((0, 0), *((1, 0),) * (w.ndim - 1))),
}


def saturating(codes, inputs):
    """Sums of u8 x s8 products as pmaddubsw and pmaddwd form them: pairs cut off at 16 bits, then added in
    32. [C_out].
    """
    rows = codes.reshape(len(codes), -1).astype(np.int64)
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    products = rows * inputs[: rows.shape[1]]
    pairs = products[:, ::2] + products[:, 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(1), products.sum(1)


def inputs_of(codes):
    """Unsigned inputs that push the pairs of some row to their ends, and random ones."""
    rows = codes.reshape(len(codes), -1)
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    generator = np.random.default_rng(0)
    yield np.full(rows.shape[1], 255, np.int64)
    for row in rows:
        yield np.where(row > 0, 255, 0).astype(np.int64)
        yield np.where(row < 0, 255, 0).astype(np.int64)
    yield from generator.integers(0, 256, (8, rows.shape[1]))


def overflows(codes, order):
    held = ORDERS[order](codes)
    return any((np.subtract(*saturating(held, inputs)) != 0).any() for inputs in inputs_of(held))


def integer_weights(model):
    """Codes of the weights that integer kernels multiply, [C_out, C_in, ...], but those of depthwise
    convolutions.
    """
    held = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if (
            node.op_type in ("Conv", "MatMul")
            and node.input[1] in makers
            and makers[node.input[1]].op_type == "DequantizeLinear"
        ):
            codes = held[makers[node.input[1]].input[0]]
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            if codes.dtype == np.int8 and not is_depthwise(codes.shape, groups):
                yield codes.T if node.op_type == "MatMul" else codes


@functools.cache
def digits():
    """A small net trained on digits of 16 x 16: three convolutions with norms and ReLUs, two linear layers;
    and 540 digits that it did not see.
    """
    held = load_digits()
    images = nn.functional.interpolate(
        torch.tensor(held.images, dtype=torch.float32)[:, None] / 8 - 1, size=(16, 16), mode="bilinear"
    )
    labels = torch.tensor(held.target)
    parts = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for channels, filters, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
            parts += [
                nn.Conv2d(channels, filters, 3, stride, 1, bias=False),
                nn.BatchNorm2d(filters),
                nn.ReLU(),
            ]
        net = nn.Sequential(*parts, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(3):
            for chosen in torch.randperm(1257).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images[chosen]), labels[chosen]).backward()
                optimizer.step()
    job, _ = job_of("digits", lambda: net, images=images[:256])
    return job, images[1257:], labels[1257:]


@pytest.mark.parametrize("order", ORDERS)
def test_no_pair_of_products_overflows_16_bits(order):
    job, _, _ = digits()
    raw = [held_weight(state).codes for state in job.states.values()]
    assert sum(overflows(codes, order) for codes in raw) >= 4  # what the states hold would
    found = list(integer_weights(TARGETS.create("onnx:weights=plain").model(job)))
    assert len(found) == 5
    assert not any(overflows(codes, order) for codes in found)


def test_the_file_is_the_fake_quantised_model_in_the_default_session(tmp_path):
    job, images, labels = digits()
    target = TARGETS.create("onnx")
    notes = target.write(job, tmp_path)
    assert len(notes) == 1 and notes[0].startswith("5 units have 8-bit weights")
    live = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    got = torch.from_numpy(live.run(None, {live.get_inputs()[0].name: images.numpy()})[0])
    assert torch.equal(got, target.load(tmp_path, 1)(images))  # what is measured is the default session
    with torch.no_grad():
        floats, eight, own = (
            job.module(images),
            install(job.module, job.states)(images),
            target.reference(job)(images),
        )
    assert float((got - eight).square().mean().sqrt() / floats.std()) < 0.01
    assert float((got - own).square().mean().sqrt() / floats.std()) < 0.005
    assert float((floats.argmax(1) == labels).float().mean()) > 0.9
    assert (
        abs(float((got.argmax(1) == labels).float().mean() - (eight.argmax(1) == labels).float().mean()))
        <= 0.004
    )
    assert kernels_of(target.executed(tmp_path, 1)) == ["integer"] * 5


def test_the_file_does_not_depend_on_the_processor_that_wrote_it(monkeypatch):
    job, _, _ = digits()
    written = set()
    for saturates in (False, True):
        monkeypatch.setattr(DeviceIdentity, "saturates", property(lambda _, saturates=saturates: saturates))
        written.add(TARGETS.create("onnx").model(job).SerializeToString(deterministic=True))
    assert len(written) == 1


def test_openvino_files_do_not_depend_on_the_processor_that_wrote_them(monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    job, _, _ = digits()
    for saturates in (False, True):
        monkeypatch.setattr(DeviceIdentity, "saturates", property(lambda _, saturates=saturates: saturates))
        target = TARGETS.create("openvino")
        assert all(int(state.weight.codes.abs().max()) <= 64 for state in target.states(job).values())
        (tmp_path / str(saturates)).mkdir()
        assert "stored with 7 bits" in target.write(job, tmp_path / str(saturates))[0]
    assert (tmp_path / "True" / "model.bin").read_bytes() == (tmp_path / "False" / "model.bin").read_bytes()


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(4, 7), (3, 2, 3, 3), (5, 3, 1, 1), (2, 1, 5, 5), (3, 1)]),
    st.sampled_from([4, 7, 8]),
)
def test_rows_that_are_exact_stay_and_others_are_off_by_half_a_step_at_most(seed, shape, input_bits):
    generator = np.random.default_rng(seed)
    codes = generator.integers(-128, 128, shape).astype(np.int8)
    codes[0] //= 2
    scale = generator.uniform(0.01, 1, shape[0]).astype(np.float32)
    weight = QuantizedWeight(codes, scale)
    found = without_overflow(weight, input_bits)
    limit = (2**15 - 1) // (2**input_bits - 1)
    fits = widest_pairs(codes) <= limit
    assert fits[0] and (fits.all() or input_bits == 8)
    assert (widest_pairs(found.codes) <= limit).all()
    assert np.array_equal(found.codes[fits], codes[fits]) and np.array_equal(found.scale[fits], scale[fits])
    column = (-1, *[1] * (len(shape) - 1))
    error = np.abs(
        found.codes * found.scale.astype(np.float64).reshape(column)
        - codes * scale.astype(np.float64).reshape(column)
    )
    assert (error <= found.scale.reshape(column) * 0.5001).all()
    again = without_overflow(found, input_bits)
    assert np.array_equal(again.codes, found.codes) and np.array_equal(again.scale, found.scale)


class Mixed(nn.Module):
    """Convolutions, a transposed one and linear layers between quantised ones, with pooling and a residual
    sum of linear layers.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.up, self.d = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1)
        self.e, self.f, self.g = nn.Linear(8, 12), nn.Linear(12, 12, bias=False), nn.Linear(12, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.a(x)), 2)
        x = torch.relu(self.c(torch.relu(self.b(x))))
        x = torch.relu(self.d(torch.relu(self.up(x)))).mean((2, 3))
        x = torch.relu(self.e(x))
        return self.g(torch.relu(self.f(x) + x))


@pytest.mark.parametrize("kept", [("b",), ("c", "e"), ("a", "d", "f"), ("e", "g"), ()], ids=str)
def test_the_default_session_computes_in_the_arithmetic_that_was_chosen(kept, tmp_path):
    job, images = job_of("mixed", Mixed)
    states = job.calibration.states(
        Assignment(tuple((unit, Candidate.parse("float" if unit in kept else "W8A8")) for unit in job.states))
    )
    save_onnx(tmp_path / "m.onnx", quantize_onnx(job.float_onnx(20), states, job.calibration))
    ran = executed(tmp_path / "m.onnx")
    assert kernels_of(ran).count("integer") == len(states) - len(kept) and kernels_of(ran).count(
        "float"
    ) == len(kept)
    with torch.no_grad():
        wanted, floats = install(job.module, states)(images), job.module(images)
    assert (
        float((run_onnx(tmp_path / "m.onnx")(images) - wanted).square().mean().sqrt() / floats.std()) < 0.02
    )
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
