"""What OpenVINO says it can run, and that each cell runs it with the right numbers."""

import pickle
import sys

import numpy as np
import pytest
from hardware_units import FLOAT, MATMUL, POINTWISE, UNITS, W4A16, W7A8, W8A8, W8A16, conv, linear

from mpsearch.errors import MissingExtraError, UserError
from mpsearch.hardware import BACKENDS, identity
from mpsearch.problem import Candidate

pytest.importorskip("openvino")
INTEGER = W7A8 if identity().saturates else W8A8


@pytest.fixture
def backend():
    return BACKENDS.create("openvino-cpu")


def _kernels(cell):
    """Precision and primitive of the nodes that multiply."""
    return [
        op.split(":")[1:]
        for op in cell.executed
        if op.split(":")[0] in ("Convolution", "FullyConnected", "MatMul")
    ]


@pytest.mark.parametrize("layer", UNITS.values(), ids=UNITS)
def test_integers_run_in_an_integer_kernel_with_right_numbers(backend, layer):
    cell = backend.build(layer, INTEGER, 2)
    ((precision, primitive),) = _kernels(cell)
    assert precision in ("u8", "i8") and primitive.lower().endswith("i8")
    assert cell.as_asked and 0 < cell.relative_error <= cell.tolerance < 0.01


@pytest.mark.parametrize("inputs", [1280, 3072])
def test_a_sum_of_zero_points_beyond_float32_is_no_wrong_kernel(backend, inputs):
    cell = backend.build(linear(7, inputs=inputs, outputs=100), INTEGER, 1)
    assert cell.as_asked and 0 < cell.relative_error <= cell.tolerance < 0.01


@pytest.mark.parametrize("layer", [*UNITS.values(), MATMUL], ids=[*UNITS, "matmul"])
def test_float_runs_in_float32_with_right_numbers(backend, layer):
    cell = backend.build(layer, FLOAT, 1)
    ((precision, _),) = _kernels(cell)
    assert precision == "f32" and cell.as_asked
    assert cell.relative_error <= cell.tolerance <= 1e-4


@pytest.mark.parametrize("candidate", [W8A16, W4A16], ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        linear(1),
        linear(1, 7, bias=False),
        linear(1, 3, inputs=34, outputs=5),
        linear(1, 5, inputs=192, outputs=100),
    ],
    ids=lambda la: str(la.weight_shape),
)
def test_stored_weights_of_linear_layers_stay_small_with_right_numbers(backend, layer, candidate):
    cell = backend.build(layer, candidate, 2)
    ((precision, primitive),) = _kernels(cell)
    assert precision == f"i{candidate.w_bits}" and primitive.endswith("f32")
    assert cell.as_asked and cell.relative_error <= cell.tolerance <= 1e-4


def test_the_batch_is_the_leading_axis(backend):
    assert np.asarray(backend.build(conv(), FLOAT, 3).run()[0]).shape == (3, 16, 8, 8)
    assert np.asarray(backend.build(linear(1, 7), FLOAT, 3).run()[0]).shape == (3, 7, 24)


@pytest.mark.parametrize("layer", [conv(), linear(1, 7)], ids=["conv", "linear"])
@pytest.mark.parametrize(
    "candidate", [Candidate(w, a) for w in (2, 4, 7) for a in (3, 8) if (w, a) != (7, 8)], ids=str
)
def test_fewer_bits_are_storage_only(backend, layer, candidate):
    support = backend.supports(layer, candidate)
    assert (support.status, support.kernel) == ("storage-only", INTEGER)
    assert str(candidate) in support.reason


@pytest.mark.parametrize(
    ("layer", "candidate", "status", "kernel"),
    [
        (linear(1), Candidate(2, 16), "storage-only", W4A16),
        (linear(1), Candidate(6, 16), "storage-only", W8A16),
        (linear(1, inputs=33), W4A16, "storage-only", W8A16),  # four bits of odd rows are read wrongly
        (conv(), W4A16, "storage-only", FLOAT),
        (POINTWISE, W4A16, "no", None),
        (MATMUL, W8A16, "no", None),
        (MATMUL, INTEGER, "no", None),
        (MATMUL, FLOAT, "ok", FLOAT),
        (conv(), Candidate(7, 8, w_granularity="tensor"), "no", None),
    ],
)
def test_every_answer_has_its_reason(backend, layer, candidate, status, kernel):
    support = backend.supports(layer, candidate)
    assert (support.status, support.kernel) == (status, kernel) and len(support.reason) > 5


def test_a_cell_is_only_built_for_a_kernel(backend):
    with pytest.raises(UserError, match=r"W4A8 of 'c'"):
        backend.build(conv(), Candidate(4, 8), 1)
    with pytest.raises(UserError, match="in float on this backend"):
        backend.build(MATMUL, INTEGER, 1)


@pytest.mark.parametrize(
    ("layer", "candidate", "size"),
    [
        (conv(groups=4), FLOAT, 16 * 4 * 9 * 4),
        (conv(groups=4), INTEGER, 16 * 4 * 9 + 16 * 4),
        (linear(1), W8A16, 24 * 32 + 24 * 4),
        (linear(1), W4A16, 24 * 32 // 2 + 24 * 4),
        (MATMUL, FLOAT, 0),
    ],
)
def test_packed_bytes_by_hand(backend, layer, candidate, size):
    assert backend.packed_bytes(layer, candidate) == size


def test_bf16_is_offered_where_the_processor_has_it(monkeypatch):
    backend = BACKENDS.create("openvino-cpu-bf16")
    monkeypatch.setattr("mpsearch.hardware.backends.openvino_cpu.capabilities", lambda: ("FP32", "INT8"))
    refused = backend.supports(conv(), FLOAT)
    assert (
        (refused.status, refused.kernel) == ("no", None)
        and "bf16" in refused.reason
        and "FP32, INT8" in refused.reason
    )
    monkeypatch.undo()
    if backend.supports(conv(), FLOAT).status == "ok":
        cell = backend.build(conv(), FLOAT, 1)
        assert (
            cell.as_asked and _kernels(cell)[0][0] == "bf16" and 1e-5 < cell.relative_error <= cell.tolerance
        )


def test_the_backends_are_registered_members(backend):
    assert {"openvino-cpu", "openvino-cpu-bf16"} <= set(BACKENDS.names())
    assert BACKENDS.create("openvino-cpu:threads=2").threads == 2
    assert pickle.loads(pickle.dumps(backend)) == backend  # noqa: S301
    assert backend.version[0].isdigit() and "-" not in backend.version


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    backend = BACKENDS.create("openvino-cpu")  # listing and creating do not need it
    with pytest.raises(MissingExtraError, match=r"'openvino'.*mpsearch\[openvino\]"):
        _ = backend.version
    with pytest.raises(MissingExtraError, match=r"mpsearch\[openvino\]"):
        backend.build(conv(), FLOAT, 1)


def test_the_same_cell_has_the_same_numbers(backend):
    first, second = (np.array(backend.build(conv(), INTEGER, 1).run()[0]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
