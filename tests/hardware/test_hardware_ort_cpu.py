"""What ONNX Runtime says it can run, and that each cell runs it with the right numbers."""

import pickle

import numpy as np
import pytest

from mpsearch.errors import UnknownNameError, UserError
from mpsearch.hardware import BACKENDS, identity, time_callable
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.problem import Candidate, ConvAttributes, Layer

FLOAT, W8A8 = Candidate.parse("float"), Candidate(8, 8)


def conv(groups=1, stride=1, bias=True):
    side = (8 + 2 - 3) // stride + 1
    attributes = ConvAttributes((stride, stride), (1, 1), (1, 1), groups)
    return Layer(
        "c",
        "conv2d",
        (16, 16 // groups, 3, 3),
        ((1, 16, 8, 8),),
        (1, 16, side, side),
        1,
        "b",
        bias=bias,
        conv=attributes,
    )


def linear(*leading, bias=True):
    return Layer("l", "linear", (24, 32), ((*leading, 32),), (*leading, 24), 1, "b", bias=bias)


MATMUL = Layer("m", "matmul", (), ((1, 2, 5, 8), (1, 2, 8, 5)), (1, 2, 5, 5), 400, "b")
UNITS = {
    "conv": conv(),
    "strided": conv(stride=2, bias=False),
    "grouped": conv(groups=4),
    "depthwise": conv(groups=16),
    "linear 2-D": linear(1),
    "linear 3-D": linear(1, 7, bias=False),
}


@pytest.fixture
def backend():
    return BACKENDS.create("ort-cpu")


@pytest.mark.parametrize("layer", UNITS.values(), ids=UNITS)
def test_w8a8_runs_in_an_integer_kernel_with_right_numbers(backend, layer):
    cell = backend.build(layer, W8A8, 2)
    assert ("QLinearConv" if layer.op == "conv2d" else "MatMulIntegerToFloat") in cell.executed
    assert cell.as_asked
    assert 0 < cell.relative_error <= cell.tolerance


@pytest.mark.parametrize("layer", [*UNITS.values(), MATMUL], ids=[*UNITS, "matmul"])
def test_float_runs_in_float_with_right_numbers(backend, layer):
    cell = backend.build(layer, FLOAT, 1)
    assert cell.as_asked and not {"QLinearConv", "MatMulIntegerToFloat"} & set(cell.executed)
    assert cell.relative_error <= cell.tolerance


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(conv(), (3, 16, 8, 8)), (linear(1, 7), (3, 7, 24)), (MATMUL, (3, 2, 5, 5))],
    ids=["conv", "linear", "matmul"],
)
def test_the_batch_is_the_leading_axis(backend, layer, shape):
    assert np.asarray(backend.build(layer, FLOAT, 3).run()[0]).shape == shape


@pytest.mark.parametrize("layer", [conv(), linear(1, 7)], ids=["conv", "linear"])
@pytest.mark.parametrize(
    "candidate", [Candidate(w, a) for w in (2, 4, 8) for a in (3, 8) if (w, a) != (8, 8)], ids=str
)
def test_fewer_bits_are_storage_only(backend, layer, candidate):
    support = backend.supports(layer, candidate)
    assert (support.status, support.kernel) == ("storage-only", W8A8)
    assert str(candidate) in support.reason


def test_what_has_a_kernel_of_its_own(backend):
    assert [backend.supports(layer, c).status for layer in (conv(), linear(1)) for c in (FLOAT, W8A8)] == [
        "ok"
    ] * 4


def test_an_activation_product_is_float_only(backend):
    assert backend.supports(MATMUL, FLOAT).status == "ok"
    refused = backend.supports(MATMUL, W8A8)
    assert (refused.status, refused.kernel) == ("no", None) and "float" in refused.reason


def test_a_cell_is_only_built_for_a_kernel(backend):
    with pytest.raises(UserError, match="W4A8"):
        backend.build(conv(), Candidate(4, 8), 1)


def test_the_backend_is_a_registered_member(backend):
    assert "ort-cpu" in BACKENDS.names()
    assert BACKENDS.create("ort-cpu:threads=2").threads == 2
    assert pickle.loads(pickle.dumps(backend)) == backend  # noqa: S301
    with pytest.raises(UnknownNameError, match="ort-cpu"):
        BACKENDS.create("ort-gpu")


def test_the_same_cell_has_the_same_numbers(backend):
    first, second = (backend.build(conv(), W8A8, 1).run()[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_identity_survives_json_and_names_the_file():
    device = identity()
    assert DeviceIdentity.from_json(device.to_json()) == device
    assert device.cores >= 1 and set(device.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_identity_without_cpuinfo(tmp_path):
    device = identity(tmp_path / "none")
    assert device.flags == () and device.name and device.slug


def test_identity_reads_name_and_flags(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: Some (R) CPU\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\n"
    )
    device = identity(path)
    assert (device.name, device.flags) == ("Some (R) CPU", ("avx2", "avx512_vnni"))


@pytest.mark.parametrize(("threads", "clock"), [(1, "cpu"), (2, "wall")])
def test_timing_repeats_and_names_its_clock(threads, clock):
    calls = []
    timing = time_callable(
        lambda: calls.append(sum(range(2000))), threads=threads, seconds=0.02, least_repeats=5
    )
    assert timing.clock == clock and timing.repeats >= 5 and timing.median_us > 0 and timing.iqr_us >= 0
    assert len(calls) >= timing.repeats + 4  # three to warm up, one to size the samples


@pytest.mark.parametrize(("threads", "call_us"), [(1, 3000.0), (2, 8000.0)])
def test_one_thread_is_timed_by_cpu_time_and_more_by_the_wall_clock(monkeypatch, threads, call_us):
    clocks = {"cpu": 0, "wall": 0}

    def call():
        clocks["cpu"] += 3_000_000
        clocks["wall"] += 8_000_000

    monkeypatch.setattr("mpsearch.hardware.measure.time.process_time_ns", lambda: clocks["cpu"])
    monkeypatch.setattr("mpsearch.hardware.measure.time.perf_counter_ns", lambda: clocks["wall"])
    timing = time_callable(call, threads=threads, seconds=0.1)
    assert (timing.median_us, timing.iqr_us) == (call_us, 0.0)


@pytest.mark.parametrize("w_bits", [4, 8])
@pytest.mark.parametrize("layer", [linear(1), linear(1, 7, bias=False)], ids=["bias", "no bias"])
def test_stored_weights_run_in_matmulnbits_with_right_numbers(backend, layer, w_bits):
    cell = backend.build(layer, Candidate(w_bits, 16), 2)
    assert cell.executed == ("MatMulNBits",) and cell.as_asked
    assert cell.relative_error <= cell.tolerance <= 1e-4


@pytest.mark.parametrize(("w_bits", "kernel"), [(2, 4), (3, 4), (5, 8), (7, 8)])
def test_other_widths_of_stored_weights_are_storage_only(backend, w_bits, kernel):
    support = backend.supports(linear(1), Candidate(w_bits, 16))
    assert (support.status, support.kernel) == ("storage-only", Candidate(kernel, 16))


@pytest.mark.parametrize(
    ("layer", "candidate", "size"),
    [
        (conv(groups=4), FLOAT, 16 * 4 * 9 * 4),
        (conv(groups=4), W8A8, 16 * 4 * 9 + 16 * 4 + 16),
        (linear(1), Candidate(4, 16), 24 * (128 // 2 + 4)),
        (linear(1), Candidate(8, 16), 24 * (128 + 4)),
        (MATMUL, FLOAT, 0),
    ],
)
def test_packed_bytes_by_hand(backend, layer, candidate, size):
    assert backend.packed_bytes(layer, candidate) == size
