"""The GPU backends: what they say they can run on which card, that without one nothing is `ok`, and their
cells' numbers on the CPU (ours interpreted).
"""

import ctypes
import dataclasses
import json
import math
import pickle
import sys
import types

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from mpsearch.errors import DeviceMismatchError, TableError
from mpsearch.hardware import BACKENDS, Measured, Timing
from mpsearch.hardware.backends.tensorrt import TensorRt
from mpsearch.hardware.cell import CellTimer
from mpsearch.hardware.gpu import card as cards
from mpsearch.hardware.gpu import probe
from mpsearch.hardware.gpu.bench import CudaBench
from mpsearch.hardware.gpu.cells import Draw, float_cell, matrix_instruction, own_cell
from mpsearch.hardware.gpu.probe import Gpu
from mpsearch.hardware.gpu.trt import trt_cell, unit_onnx
from mpsearch.hardware.kernels.tiles import Shape, default_tile
from mpsearch.problem import Candidate, ConvAttributes, Layer

H200 = Gpu("NVIDIA H200", (9, 0), 132, 141 * 2**30, 50 * 2**20, 227 * 2**10)
T4 = dataclasses.replace(H200, name="Tesla T4", capability=(7, 5))
FLOAT, W8A8, W4A8, W4A4, W4A16, FP8 = (
    Candidate.parse(t) for t in ("float", "W8A8", "W4A8", "W4A4", "W4A16", "fp8")
)
ALL = (FLOAT, W8A8, W4A8, W4A4, W4A16, FP8)
OURS = ("triton-cuda", "tensorrt")


def linear(n=48, k=64, rows=5):
    return Layer("l", "linear", (n, k), ((1, rows, k),), (1, rows, n), 1, "b", bias=True)


def conv(kernel=3, groups=1, stride=1, channels=16):
    side = (8 + 2 * (kernel // 2) - kernel) // stride + 1
    attributes = ConvAttributes((stride, stride), (kernel // 2,) * 2, (1, 1), groups)
    return Layer(
        "c",
        "conv2d",
        (16, channels // groups, kernel, kernel),
        ((1, channels, 8, 8),),
        (1, 16, side, side),
        1,
        "b",
        bias=True,
        conv=attributes,
    )


MATMUL = Layer("m", "matmul", (), ((1, 2, 5, 8), (1, 2, 8, 5)), (1, 2, 5, 5), 400, "b")


@pytest.fixture
def card(monkeypatch):
    return lambda found: monkeypatch.setattr(probe, "gpu", lambda: found)


@pytest.mark.parametrize("name", OURS)
def test_without_a_gpu_every_cell_is_refused_with_the_reason(card, name):
    card(None)
    backend = BACKENDS.create(name)
    for layer in (linear(), conv(), MATMUL):
        for candidate in ALL:
            support = backend.supports(layer, candidate)
            assert (support.status, support.kernel) == ("no", None) and "CUDA" in support.reason
    with pytest.raises(DeviceMismatchError, match="NVIDIA GPU"):
        backend.build(linear(), FLOAT, 1)


@pytest.mark.parametrize("name", OURS)
def test_the_host_never_times_a_gpu(monkeypatch, name):
    monkeypatch.setattr(cards, "card", lambda: "the card")
    bench = BACKENDS.create(name).bench()
    assert isinstance(bench, CudaBench) and bench.card == "the card"


@pytest.mark.parametrize("name", OURS)
def test_backends_are_members_that_pickle(name):
    backend = BACKENDS.create(name)
    assert pickle.loads(pickle.dumps(backend)) == backend and backend.version and backend.threads == 1  # noqa: S301


def test_an_old_card_is_refused_by_the_backends_that_cannot_serve_it(card, monkeypatch):
    card(T4)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object())
    support = BACKENDS.create("triton-cuda").supports(linear(), FLOAT)
    assert support.status == "no" and "8.0" in support.reason and "Tesla T4 has 7.5" in support.reason
    with pytest.raises(DeviceMismatchError, match=r"8\.0 or more"):
        BACKENDS.create("triton-cuda").require()
    trt = BACKENDS.create("tensorrt")
    assert trt.supports(linear(), W8A8).status == "ok" and trt.require() is None
    card(dataclasses.replace(T4, name="Tesla V100", capability=(7, 0)))
    assert "7.5" in trt.supports(linear(), W8A8).reason


@pytest.mark.parametrize(
    "layer",
    [linear(), linear(n=3, k=5), conv(), conv(groups=16), conv(groups=4, stride=2)],
    ids=["linear", "ragged", "conv", "depthwise", "grouped"],
)
def test_every_width_has_a_triton_kernel(card, layer):
    card(H200)
    backend = BACKENDS.create("triton-cuda")
    for bits in range(2, 9):
        assert backend.supports(layer, Candidate(bits, 8)).kernel == Candidate(bits, 8)
        assert backend.supports(layer, Candidate(bits, 16)).kernel == Candidate(bits, 16)
        less = backend.supports(layer, Candidate(bits, 4))
        assert (less.status, less.kernel) == ("storage-only", Candidate(bits, 8)) and "4 bits" in less.reason
    assert backend.supports(layer, FP8).status == "no" and backend.supports(MATMUL, W4A8).status == "no"


def test_a_cell_is_only_built_for_a_kernel(card):
    card(H200)
    with pytest.raises(TableError, match="W4A4"):
        BACKENDS.create("triton-cuda").build(linear(), W4A4, 1)


@pytest.mark.parametrize(
    ("layer", "columns"),
    [(linear(), 48 * 64), (linear(k=65), 48 * 96), (conv(), 16 * 160), (conv(groups=16), 9 * 32)],
    ids=["even", "padded", "conv", "depthwise"],
)
def test_packed_bytes_are_those_of_the_packer(layer, columns):
    backend = BACKENDS.create("triton-cuda")
    for bits in (2, 3, 4, 8):
        cell = own_cell(dataclasses.replace(layer, bias=False), Candidate(bits, 8), 1, device="cpu")
        y_and_x = cell.bytes_touched - backend.packed_bytes(layer, Candidate(bits, 8))
        assert (
            backend.packed_bytes(layer, Candidate(bits, 8)) == columns * bits // 8 + 8 * layer.weight_shape[0]
        )
        elements = sum(torch.Size(s).numel() for s in (layer.input_shapes[0], layer.output_shape))
        assert y_and_x == 2 * elements
    assert backend.packed_bytes(layer, FLOAT) == 2 * layer.weight_numel


@pytest.mark.parametrize(
    "layer", [linear(), conv(), conv(1), conv(groups=16)], ids=["linear", "conv", "pointwise", "depthwise"]
)
@pytest.mark.parametrize("candidate", [W4A8, W4A16], ids=str)
def test_our_cells_have_right_numbers_and_copies_of_their_own(layer, candidate):
    cell = own_cell(layer, candidate, 2, device="cpu")
    assert 0 < cell.relative_error <= cell.tolerance and cell.as_asked
    assert any("w4_" in name for name in cell.executed) and (cell.executed[0] == "quantize") == (
        candidate == W4A8
    )
    other = cell.another()
    assert torch.equal(cell.run(), other()) and cell.run().data_ptr() != other().data_ptr()


@pytest.mark.parametrize("layer", [linear(), conv(), MATMUL], ids=["linear", "conv", "matmul"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_float_cells_have_right_numbers(layer, dtype):
    cell = float_cell(layer, 2, dtype=dtype, device="cpu")
    assert cell.as_asked and cell.relative_error <= cell.tolerance and cell.bytes_touched > 0
    assert torch.equal(cell.run(), cell.another()())


@pytest.mark.parametrize(
    ("ptx", "found"),
    [
        ("wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {%r1}, %rd2;", "wgmma.s8"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1};", "mma.f16"),
        ("@%p1 tcgen05.mma.cta_group::1.kind::i8 [%r1];", "tcgen05.s8"),
        ("fma.rn.f32 %f1, %f2;", None),
    ],
)
def test_the_matrix_instruction_is_read_from_the_compiled_kernel(ptx, found):
    assert matrix_instruction(type("Kernel", (), {"asm": {"ptx": "ld.global %r1;\n" + ptx}})) == found
    assert matrix_instruction(None) is None


SHAPES = [
    Shape(m, n, k, item)
    for m in (1, 197, 12608)
    for n, k in ((768, 768), (3072, 768), (24, 27))
    for item in (1, 2)
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tile_fits_the_device_and_the_product(shape):
    tile = default_tile(shape)
    assert (
        tile.stages * (tile.block_m + tile.block_n) * tile.block_k * shape.item <= 99 * 1024
    )  # what the smallest of the supported cards has
    assert tile.block_m >= 16 and tile.block_n >= 16 and tile.block_k % 32 == 0
    assert all(value & (value - 1) == 0 for value in (tile.block_m, tile.block_n, tile.block_k, tile.split_k))


def test_few_rows_split_their_columns_so_that_the_device_is_busy():
    assert default_tile(Shape(1, 768, 3072, 2)).split_k > 1
    assert default_tile(Shape(12608, 3072, 768, 1)).split_k == 1


def test_the_identity_of_a_card_names_its_file():
    assert H200.identity.slug == "nvidia-h200-132c-sm90"
    assert type(H200.identity).from_json(H200.identity.to_json()) == H200.identity


def test_an_extra_that_is_not_installed_is_named(card, monkeypatch):
    card(H200)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    support = BACKENDS.create("tensorrt").supports(linear(), W8A8)
    assert support.status == "no" and "mpsearch[tensorrt]" in support.reason


@pytest.mark.parametrize(
    ("layer", "candidate", "status", "reason"),
    [
        (conv(), W8A8, "ok", "int8"),
        (conv(), W4A8, "storage-only", "8-bit"),
        (linear(), W4A16, "no", "symmetric int8"),
        (MATMUL, FLOAT, "no", "whole model"),
    ],
)
def test_what_tensorrt_runs_where_it_is_installed(card, monkeypatch, layer, candidate, status, reason):
    card(H200)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object())
    support = BACKENDS.create("tensorrt").supports(layer, candidate)
    assert support.status == status and reason in support.reason


@pytest.mark.parametrize(
    "layer",
    [linear(), dataclasses.replace(linear(), bias=False), conv(), conv(groups=16, stride=2)],
    ids=["linear", "no bias", "conv", "depthwise"],
)
@pytest.mark.parametrize("candidate", [FLOAT, W8A8], ids=str)
def test_the_onnx_for_tensorrt_says_what_it_must_give(layer, candidate):
    draw = Draw.of(layer, 2, torch.float16, "cpu")
    model, expected = unit_onnx(draw, candidate)
    x = draw.x[0].permute(0, 3, 1, 2) if layer.op == "conv2d" else draw.x[0]
    options = ort.SessionOptions()
    options.log_severity_level, options.graph_optimization_level = (
        3,
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    )
    (y,) = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x.contiguous().numpy()}
    )
    found = torch.from_numpy(y).double()
    found = found.permute(0, 2, 3, 1) if layer.op == "conv2d" else found
    assert float((found - expected).abs().max() / expected.abs().max()) < 2**-8
    ops = [node.op_type for node in onnx.load_from_string(model).graph.node]
    assert ops.count("DequantizeLinear") == (0 if candidate.is_float else 2)


class FakeTensorRt(types.ModuleType):
    """TensorRT's classes over ONNX Runtime on the CPU: engines that compute, and layers as they are told.

    Args:
        layers: What the inspector tells of an engine.
        refuses: Whether no engine is built.
    """

    __version__ = "10.fake"
    NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=0)
    ProfilingVerbosity = types.SimpleNamespace(DETAILED="detailed")
    LayerInformationFormat = types.SimpleNamespace(JSON="json")

    def __init__(self, layers=(), refuses=False):
        super().__init__("tensorrt")
        self.layers, self.refuses, self.engines = layers, refuses, []
        self.Logger = type("Logger", (), {"ERROR": 0, "__init__": lambda *_: None})
        self.Builder = lambda _: types.SimpleNamespace(
            create_network=lambda _: types.SimpleNamespace(),
            create_builder_config=lambda: types.SimpleNamespace(),
            build_serialized_network=lambda network, _: None if self.refuses else network.model,
        )
        self.OnnxParser = lambda network, _: types.SimpleNamespace(
            parse=lambda model: bool(setattr(network, "model", model)) or True
        )
        self.Runtime = lambda _: types.SimpleNamespace(deserialize_cuda_engine=self.engine)

    def engine(self, plan):
        self.engines.append(plan)
        inspector = types.SimpleNamespace(
            get_engine_information=lambda _: json.dumps({"Layers": list(self.layers)})
        )
        return types.SimpleNamespace(
            create_engine_inspector=lambda: inspector, create_execution_context=lambda: FakeContext(plan)
        )


class FakeContext:
    """Runs one engine from and to the addresses that it is given."""

    def __init__(self, plan):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.live = ort.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
        self.x = self.live.get_inputs()[0]
        zeros = {"x": np.zeros(self.x.shape, np.float16)}
        self.shape, self.at = self.live.run(None, zeros)[0].shape, {}

    def get_tensor_shape(self, _):
        return self.shape

    def set_tensor_address(self, name, address):
        self.at[name] = address

    def execute_async_v3(self, _):
        size = 2 * math.prod(self.x.shape)
        x = np.frombuffer(ctypes.string_at(self.at["x"], size), np.float16).reshape(self.x.shape)
        (y,) = self.live.run(None, {"x": x})
        ctypes.memmove(self.at["y"], y.tobytes(), y.nbytes)


def engine_layer(name, reads, kind="CaskConvolution", **more):
    ends = {
        side: [{"Name": side, "Dimensions": [1, 1], "Format/Datatype": f"Row major {dtype} format"}]
        for side, dtype in (("Inputs", reads), ("Outputs", "FP16"))
    }
    return {"Name": name, "LayerType": kind, **ends, **more}


QUANTIZE = engine_layer("x_q", "FP16", "Reformat", Origin="QDQ", TacticName="int8 reformat")
UNIT_META = "[ONNX Layer: x_dq]\x1e[ONNX Layer: unit]"


@pytest.mark.parametrize(
    ("layers", "as_asked"),
    [
        ([QUANTIZE, engine_layer("unit", "Int8")], True),
        ([QUANTIZE, engine_layer("weight + unit", "Int8")], True),
        ([QUANTIZE, engine_layer("__myl_Conv", "Int8", "gemm", Metadata=UNIT_META)], True),
        ([QUANTIZE, engine_layer("unit", "FP16")], False),
        ([QUANTIZE, engine_layer("__myl_Conv", "FP16", "gemm", Metadata=UNIT_META)], False),
        ([QUANTIZE], False),
    ],
    ids=["int8", "fused", "metadata", "float", "float block", "unit not named"],
)
def test_fake_tensorrt_only_the_units_own_layer_proves_int8(monkeypatch, layers, as_asked):
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(layers))
    cell = trt_cell(conv(), W8A8, 2, device="cpu")
    assert cell.as_asked is as_asked and 0 < cell.relative_error <= cell.tolerance


@pytest.mark.parametrize("layer", [linear(), conv()], ids=["linear", "conv"])
def test_fake_tensorrt_every_copy_is_an_engine_with_weights_of_its_own(monkeypatch, layer):
    fake = FakeTensorRt([engine_layer("unit", "FP16")])
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    cell = trt_cell(layer, FLOAT, 1, device="cpu")
    before = len(fake.engines)
    copies = [cell.another() for _ in range(3)]
    assert len(fake.engines) == before + 3 and cell.most_copies == 64 and cell.as_asked
    outputs = [run() for run in (cell.run, *copies)]
    assert all(torch.equal(y, outputs[0]) for y in outputs)
    assert len({y.data_ptr() for y in outputs}) == 4


def test_fake_tensorrt_a_refused_unit_costs_its_row_and_no_other(card, monkeypatch, tmp_path):
    card(H200)
    fake = FakeTensorRt([QUANTIZE, engine_layer("unit", "Int8")], refuses=True)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object())
    monkeypatch.setattr(TensorRt, "build", lambda self, *unit: trt_cell(*unit, device="cpu"))
    measured = Measured(Timing(5.0, 0.1, 10, "gpu", 5.0, (5.0, 5.0)), 7.0, True)
    monkeypatch.setattr(
        TensorRt,
        "bench",
        lambda *_: types.SimpleNamespace(measure=lambda cell: cell.run() is None or measured),
    )
    with CellTimer(TensorRt()) as timer:
        row, steady = timer.measure(linear(), W8A8)
        assert row.status == "crash" and "builds no engine" in row.executed and steady
        fake.refuses = False
        assert timer.measure(conv(), W8A8)[0].status == "ok"
