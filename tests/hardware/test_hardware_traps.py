"""Ways in which runtimes run something else than was asked, or compute it wrongly, and say nothing: none of
them is ever used as a latency.

Each trap is set on purpose, by giving a backend the form that it avoids; the row must say so. Numbers in
names are those of the notes on measuring.
"""

import contextlib
import math
import os

import numpy as np
import pytest
from hardware_units import FLOAT, POINTWISE, W4A16, W7A8, W8A8, conv, linear
from onnx import TensorProto, helper, numpy_helper

from mpsearch.deploy.graph import keep_arithmetic
from mpsearch.errors import TableError
from mpsearch.hardware import BACKENDS, LatencyTable, Support, identity, latency_costs, profile
from mpsearch.hardware.backends import ort_cpu
from mpsearch.hardware.qdq import Grid, QdqWriter, QuantizedWeight, opset_imports
from mpsearch.problem import Candidate

X86 = identity().architecture.lower() in ("x86_64", "amd64")
SATURATES = identity().saturates


@pytest.fixture
def openvino_nodes():
    pytest.importorskip("openvino")
    from mpsearch.hardware import openvino_nodes

    return openvino_nodes


def _profiled(name, layer, candidate, folder):
    """The row of a cell, and what the table says it costs."""
    backend = BACKENDS.create(name)
    table = LatencyTable.open(folder, identity(), backend.name, backend.version, 1)
    profile([layer], [[candidate]], backend, table, folder, seconds=0.005)
    costs = latency_costs([layer], [[candidate]], backend, table)
    return table.get(layer, candidate), costs


def _is_no_latency(row, costs, status):
    assert row.status == status
    assert costs.rows == ((math.inf,),) and costs.unusable[0][2].startswith(f"{status}: ran ")


def test_1_a_float_convolution_between_integer_ones_stays_float():
    generator, writer = np.random.default_rng(0), QdqWriter()
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "group": 1}
    weight = QuantizedWeight(
        generator.integers(-127, 128, (16, 16, 3, 3), dtype=np.int8), np.full(16, 0.01, np.float32)
    )
    grid, values = Grid(0.05, 128), np.ones((16, 16, 3, 3), np.float32)
    first = writer.quantized(writer.conv("x", weight, None, grid, attributes), grid)
    writer.initializers.append(numpy_helper.from_array(values, "float_weight"))
    middle = writer.quantized(writer.node("Conv", [first, "float_weight"], **attributes), grid)
    writer.node(
        "Identity", [writer.quantized(writer.conv(middle, weight, None, grid, attributes), grid)], "y"
    )
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, 8, 8]) for name in ("x", "y")]
    graph = helper.make_graph(writer.nodes, "trap", ends[:1], ends[1:], writer.initializers)
    model = helper.make_model(graph, opset_imports=opset_imports(), ir_version=10)
    assert ort_cpu.kernels_of(ort_cpu.executed(model.SerializeToString())) == [
        "integer",
        "integer",
        "integer",
    ]  # the trap
    keep_arithmetic(model)
    assert ort_cpu.kernels_of(ort_cpu.executed(model.SerializeToString())) == ["integer", "float", "integer"]


@pytest.mark.skipif(not X86, reason="ARM has kernels for signed inputs")
@pytest.mark.parametrize("layer", [conv(), linear(1, 7)], ids=["conv", "linear"])
def test_2_signed_inputs_run_in_float_and_the_row_says_so(monkeypatch, tmp_path, layer):
    def signed(self, x, grid):
        scale, zero = (
            self.constant(np.float32(grid.scale), "scale"),
            self.constant(np.int8(grid.zero_point - 128), "zero_point"),
        )
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [x, scale, zero]), scale, zero])

    monkeypatch.setattr(QdqWriter, "quantized", signed)
    row, costs = _profiled("ort-cpu", layer, W8A8, tmp_path)
    # the exact kernel of processors without VNNI takes them, and one was seen with AVX512-VNNI (AMD, Intel
    # with AMX); then it must be one
    if row.usable:
        assert SATURATES or "avx512_vnni" in identity().flags
        assert ort_cpu.kernels_of(tuple(row.executed.split())) == ["integer"]
    else:
        _is_no_latency(row, costs, "fallback")


def test_3_a_gemm_of_quantised_tensors_runs_in_float_and_the_row_says_so(monkeypatch, tmp_path):
    def gemm(self, x, weight, bias, grid, output=None):
        held = self.constant(np.asarray(bias, np.float32), "bias")
        return self.node(
            "Gemm", [self.quantized(x, grid), self._weight(weight, axis=0), held], output, transB=1
        )

    monkeypatch.setattr(QdqWriter, "linear", gemm)
    row, costs = _profiled("ort-cpu", linear(1), W8A8, tmp_path)
    _is_no_latency(row, costs, "fallback")
    assert "Gemm" in row.executed


def test_4_two_bit_weights_are_never_given_to_matmulnbits(tmp_path):
    backend, two = BACKENDS.create("ort-cpu"), Candidate(2, 16)
    support = backend.supports(linear(1), two)
    assert (support.status, support.kernel) == ("storage-only", W4A16)
    with pytest.raises(TableError, match="W2A16"):
        backend.build(linear(1), two, 1)


def test_4_a_convolution_has_no_weight_only_kernel():
    support = BACKENDS.create("ort-cpu").supports(conv(), W4A16)
    assert (support.status, support.kernel) == ("no", None) and "convolution" in support.reason


def test_5_a_strided_pointwise_convolution_runs_in_integers(openvino_nodes):
    cell = BACKENDS.create("openvino-cpu").build(POINTWISE, W7A8 if SATURATES else W8A8, 1)
    assert cell.as_asked and cell.relative_error <= cell.tolerance


def test_5_where_it_runs_in_float_the_row_says_so(openvino_nodes, monkeypatch, tmp_path):
    def through_u8(self, x, grid):
        op = self._op
        low, high = grid.range()
        codes = op.convert(
            op.fake_quantize(x, *(op.constant(np.float32(v)) for v in (low, high, 0, 255)), levels=256),
            np.uint8,
        )
        shifted = op.subtract(op.convert(codes, np.float32), op.constant(np.float32(grid.zero_point)))
        return op.multiply(shifted, op.constant(np.float32(grid.scale))).output(0)

    monkeypatch.setattr(openvino_nodes.OpenVinoWriter, "quantized", through_u8)
    row, costs = _profiled("openvino-cpu", POINTWISE, W7A8 if SATURATES else W8A8, tmp_path)
    _is_no_latency(row, costs, "fallback")
    assert "Convolution:f32" in row.executed


def test_6_what_changes_kernels_is_set_in_one_place_and_part_of_the_key(openvino_nodes):
    import openvino
    import openvino.opset13 as op

    x = op.parameter([1, 4], np.float32)
    live = openvino_nodes.compiled(openvino.Model([op.relu(x)], [x], "m"), threads=2)
    assert int(live.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 0
    assert int(live.get_property("INFERENCE_NUM_THREADS")) == min(2, len(os.sched_getaffinity(0)))
    assert "float" in str(live.get_property("INFERENCE_PRECISION_HINT"))
    files = {
        LatencyTable(identity(), BACKENDS.create(name).name, "1", 1).file_name
        for name in ("openvino-cpu", "openvino-cpu-bf16")
    }
    assert len(files) == 2


def test_7_a_kernel_that_raises_is_no_silent_row(monkeypatch, tmp_path):
    """A cell that fails must not leave a usable row behind."""
    monkeypatch.setattr(ort_cpu, "session", lambda *_: (_ for _ in ()).throw(RuntimeError("no kernel")))
    backend = BACKENDS.create("ort-cpu")
    table = LatencyTable.open(tmp_path, identity(), backend.name, backend.version, 1)
    with contextlib.suppress(RuntimeError):
        profile([linear(1)], [[W8A8]], backend, table, tmp_path, seconds=0.005)
    assert latency_costs([linear(1)], [[W8A8]], backend, table).rows == ((math.inf,),)


@pytest.mark.skipif(not SATURATES, reason="this processor adds products in 32 bits")
def test_sums_that_overflow_16_bits_are_wrong_and_no_latency_on_onnx_runtime(monkeypatch, tmp_path):
    wide = linear(1, 7, inputs=64)
    assert _profiled("ort-cpu", wide, W8A8, tmp_path / "exact")[0].usable
    monkeypatch.setattr(ort_cpu, "without_overflow", lambda weight: weight)
    _is_no_latency(*_profiled("ort-cpu", wide, W8A8, tmp_path / "fast"), "wrong")


@pytest.mark.skipif(not SATURATES, reason="this processor adds products in 32 bits")
@pytest.mark.parametrize("layer", [conv(), linear(1, 7, inputs=64)], ids=["conv", "linear"])
def test_sums_that_overflow_16_bits_are_refused_and_wrong_on_openvino(
    openvino_nodes, monkeypatch, tmp_path, layer
):
    refused = BACKENDS.create("openvino-cpu").supports(layer, W8A8)
    assert (
        (refused.status, refused.kernel) == ("no", None)
        and "overflow 16 bits" in refused.reason
        and "up to 7 bits" in refused.reason
    )
    assert _profiled("openvino-cpu", layer, W7A8, tmp_path / "exact")[0].usable
    monkeypatch.setattr("mpsearch.hardware.backends.openvino_cpu._integer", lambda c: Support("ok", "", c))
    _is_no_latency(*_profiled("openvino-cpu", layer, W8A8, tmp_path / "wide"), "wrong")


def test_four_bits_of_odd_rows_are_read_wrongly_by_openvino_and_the_row_says_so(
    openvino_nodes, monkeypatch, tmp_path
):
    odd = linear(1, 3, inputs=34, outputs=5)
    assert _profiled("openvino-cpu", odd, W4A16, tmp_path / "even")[0].usable
    monkeypatch.setattr(
        openvino_nodes.OpenVinoWriter, "compressed", lambda self, weight, _: self.weight(weight)
    )
    _is_no_latency(*_profiled("openvino-cpu", odd, W4A16, tmp_path / "wide"), "fallback")


def test_an_integer_kernel_for_a_float_candidate_is_a_fall_back(monkeypatch, tmp_path):
    """More integers than asked are as much a lie as fewer."""
    monkeypatch.setattr(ort_cpu, "executed", lambda *_: ("QuantizeLinear", "MatMulIntegerToFloat"))
    _is_no_latency(*_profiled("ort-cpu", linear(1), FLOAT, tmp_path), "fallback")
