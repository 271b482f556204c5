"""Random mixed assignments of a small CNN, a ViT block and a mixer block go to every CPU target, and compute
what they stand for.
"""

import importlib.util

import pytest
import torch
from target_jobs import MAKERS, job_of, net
from torch import nn
from torch.nn.functional import cosine_similarity

from mpsearch.deploy import PackedLayout, open_packed
from mpsearch.deploy.integer import IntegerLayer, float_units, integer_module
from mpsearch.deploy.targets import TARGETS, Job
from mpsearch.errors import MissingExtraError, OptionError, UserError
from mpsearch.hardware import BACKENDS
from mpsearch.models import ModelSource
from mpsearch.pipeline import RunConfig
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import QuantLayer, install
from mpsearch.reconstruct import calibrate

TEXTS = (
    "packed",
    "packed:integer_arithmetic=true",
    "onnx",
    "onnx:four_bit=matmulnbits",
    "onnx:four_bit=blockwise",
    "onnx-tensorrt",
    "torchao",
)
LEAST = {"packed:integer_arithmetic=true": 0.999, "onnx": 0.99, "onnx-tensorrt": 0.999, "torchao": 0.99}
"""Median cosine similarity with the fake-quantised module. Where sums are formed in another order a value
next to a border may take the other code; `onnx` adds its 8-bit grids behind convolutions, torchao quantises
inputs that its reference leaves float."""


def check(name, seed, folder):
    job, assignment, images = job_of(name, seed)
    for text in TEXTS:
        if text == "torchao" and importlib.util.find_spec("torchao") is None:
            continue
        target, where = TARGETS.create(text), folder / text.replace(":", "-")
        where.mkdir()
        target.write(job, where)
        with torch.no_grad():
            want, got = target.reference(job)(images), target.load(where, 1, job.module)(images)
        if text == "packed":
            assert torch.equal(want, got), (name, seed)
            assert (where / "model.safetensors").stat().st_size == job.layout.size_bytes(assignment)
        else:
            found = float(cosine_similarity(want, got).median())
            assert found > LEAST.get(text, LEAST["onnx"]), (name, seed, text, found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MAKERS)
def test_twenty_random_assignments(name, tmp_path):
    for seed in range(7 if name == "cnn" else 6 if name == "vit" else 7):
        (tmp_path / str(seed)).mkdir()
        check(name, seed, tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MAKERS)
def test_two_hundred_random_assignments(name, tmp_path):
    for seed in range(100, 167):
        (tmp_path / str(seed)).mkdir()
        check(name, seed, tmp_path / str(seed))


@pytest.mark.parametrize("text", ["onnx:four_bit=matmulnbits", "onnx:four_bit=blockwise"])
def test_four_bits_take_four_bits_in_the_file(text):
    job, _, _ = job_of("mixer", 0, ("W4A8", "W3A8", "W2A8"))
    sizes = {}
    for form in ("onnx:weights=plain", f"{text},weights=plain"):
        model = TARGETS.create(form).model(job)
        sizes[form] = sum(
            len(i.raw_data)
            for i in model.graph.initializer
            if i.name.rpartition("/")[2].startswith("weight_") and i.data_type != 1
        )
    linear = sum(s.weight.codes.numel() for s in job.states.values() if s.weight.codes.ndim == 2)
    saved = sizes["onnx:weights=plain"] - sizes[f"{text},weights=plain"]
    assert saved > 0.3 * linear  # rows of 16 and 24 are padded to whole blocks in one of the forms


def test_matmulnbits_is_what_runs(tmp_path):
    job, _, _ = job_of("vit", 0, ("W4A8",))
    target = TARGETS.create("onnx:four_bit=matmulnbits")
    target.write(job, tmp_path)
    linear = sum(s.weight.codes.ndim == 2 for s in job.states.values())
    assert target.executed(tmp_path, 1).count("MatMulNBits") == linear == 5


def test_the_tensorrt_file_has_int8_alone_no_zero_points_and_its_command(tmp_path):
    import onnx
    from onnx import numpy_helper

    job, _, _ = job_of("cnn", 1, ("W8A8", "W4A4"))
    TARGETS.create("onnx-tensorrt:max_batch=16").write(job, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    pairs = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) >= 3 * 4 - 2
    for node in pairs:
        assert constants[node.input[2]].dtype == "int8" and not constants[node.input[2]].any()
    command = (tmp_path / "build.sh").read_text()
    assert "--stronglyTyped" in command and "--onnx=model.onnx" in command and ":16x3x16x16" in command


def test_integers_equal_an_int32_product_and_the_fake_quantised_layers_to_the_stated_bound():
    job, _, images = job_of("cnn", 5, ("W8A8", "W3A4", "W2A8"))
    whole, fake = integer_module(job.module, job.states), install(job.module, job.states)
    seen = {}
    for name, layer in whole.named_modules():
        if isinstance(layer, IntegerLayer):
            layer.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
    with torch.no_grad():
        whole(images)
        for name, x in seen.items():
            layer, reference = whole.get_submodule(name), fake.get_submodule(name)
            assert isinstance(reference, QuantLayer)
            error = (layer(x).double() - reference(x).double()).abs()
            assert (error <= layer.rounding_bound(x)).all(), name
            total = layer.accumulate(x)
            assert total.dtype == torch.int32
            if name == "head":
                params, codes = job.states[name].activation, job.states[name].weight.codes.to(torch.int32)
                q = (torch.round(x / params.scale) + params.zero_point).clamp(0, params.qmax).to(
                    torch.int32
                ) - params.zero_point
                assert torch.equal(total, q @ codes.T)
    assert set(seen) == set(job.quantized)


def test_a_sum_beyond_the_accumulator_is_refused():
    from mpsearch.errors import MpsearchError
    from mpsearch.quant import AffineParams, QuantizedTensor

    columns = 2**17
    params = AffineParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), 8, False)
    weight = QuantizedTensor(
        torch.full((1, columns), -128, dtype=torch.int16),
        AffineParams(torch.ones(1), torch.zeros(1, dtype=torch.int32), 8, True, 0),
    )
    layer = IntegerLayer(nn.Linear(columns, 1), weight, params)
    with pytest.raises(MpsearchError, match="does not fit an accumulator"):
        layer(torch.full((1, columns), 255.0))


@pytest.mark.parametrize("bits", ["W8A8", "W4A4", "W6A3"])
def test_a_fully_quantised_transformer_round_trips_bit_for_bit(bits, tmp_path):
    """Products of attention, two-region and logarithmic grids."""
    module, units, _, images, _, _ = net("vit")
    units = [*units, "block.attn.matmul0", "block.attn.matmul1"]
    calibration = calibrate(module, units, [images], input_observer="opt_m")
    layout = PackedLayout.of(module, units, ModelSource("module", "vit"), (), {})
    assignment = Assignment(tuple((unit, Candidate.parse(bits)) for unit in units))
    states = calibration.states(assignment)
    kinds = {type(q).__name__ for s in states.values() for q in (s.activation, s.second) if q is not None}
    assert kinds > {"TwoRegionParams"}
    path = tmp_path / "vit.safetensors"
    job = Job(module, layout, states, calibration, images[:1])
    TARGETS.create("packed").write(job, tmp_path)
    (tmp_path / "model.safetensors").rename(path)
    assert path.stat().st_size == layout.size_bytes(assignment)
    opened, found = open_packed(path, module)
    with torch.no_grad():
        want = install(module, states)(images)
        assert torch.equal(install(opened, found)(images), want)
        close = integer_module(opened, found)(images)
    assert cosine_similarity(close, want).median() > 0.999
    assert {"block.attn.matmul0", "block.attn.matmul1"} <= set(float_units(found))
    with pytest.raises(UserError, match="quantised functions"):
        TARGETS.create("onnx-tensorrt").write(job, tmp_path)


def test_a_float_product_takes_no_bytes_and_comes_back_float(tmp_path):
    module, units, _, images, _, _ = net("vit")
    units = [*units, "block.attn.matmul0", "block.attn.matmul1"]
    calibration = calibrate(module, units, [images])
    layout = PackedLayout.of(module, units, ModelSource("module", "vit"), (), {})
    choices = dict.fromkeys(units, "W4A8") | {"block.attn.matmul0": "float"}
    assignment = Assignment(tuple((u, Candidate.parse(t)) for u, t in choices.items()))
    states = calibration.states(assignment)
    TARGETS.create("packed").write(Job(module, layout, states, calibration, images[:1]), tmp_path)
    _, found = open_packed(tmp_path / "model.safetensors", module)
    assert (
        layout.unit_bytes("block.attn.matmul0", Candidate.parse("float")) == 0
        and layout.unit_bytes("block.attn.matmul1", Candidate(8, 8)) == 16
    )
    assert found["block.attn.matmul0"].activation is None and found["block.attn.matmul1"].second is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("text", "package"), [("modelopt", "modelopt"), ("nncf", "nncf")])
@pytest.mark.parametrize("name", MAKERS)
def test_the_real_package_loads_its_configuration_and_computes_the_same(name, text, package, tmp_path):
    pytest.importorskip(package)
    job, _, images = job_of(name, 4)
    target = TARGETS.create(text)
    target.write(job, tmp_path)
    reference = target.reference(job)
    with torch.no_grad():
        clear = clear_of_edges(reference, target.states(job), images)
        want, got = reference(images), target.load(tmp_path, 1, job.module)(images)
    assert clear.sum() >= 8
    torch.testing.assert_close(got[clear], want[clear], rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    assert float(cosine_similarity(got, want).min()) > 0.999


def clear_of_edges(reference, states, images):
    """N bool: no input of a quantised unit is within 3e-5 of a step of that step's edge, where the rounding
    of float32 sums decides for either code.
    """
    clear, handles = torch.ones(len(images), dtype=torch.bool), []
    for unit, params in (
        (unit, state.activation) for unit, state in states.items() if state.activation is not None
    ):

        def look(_, args, params=params):
            code = args[0].double() / params.scale.double() + float(params.zero_point)
            near = ((code - code.floor() - 0.5).abs() < 3e-5) & (code > params.qmin) & (code < params.qmax)
            clear.logical_and_(~near.flatten(1).any(1))

        handles.append(reference.get_submodule(unit).register_forward_pre_hook(look))
    reference(images)
    for handle in handles:
        handle.remove()
    return clear


def test_modelopts_importer_reads_what_its_target_writes(tmp_path):
    from mpsearch.deploy.imports import IMPORTERS
    from mpsearch.models import analyze

    job, assignment, images = job_of("vit", 9, ("W8A8", "W4A6", "float"))
    TARGETS.create("modelopt").write(job, tmp_path)
    found = IMPORTERS.create("modelopt").read(
        tmp_path / "modelopt.json", analyze(job.module, images[:1]).layers
    )
    assert {u: str(found.assignment[u]) for u in assignment} == assignment.to_json()


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    import sys

    job, _, _ = job_of("cnn", 0)
    for name, module in (
        ("modelopt", "modelopt.torch.quantization"),
        ("nncf", "nncf.torch"),
        ("torchao", "torchao.quantization"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        TARGETS.create(name).write(job, folder)
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, module.rpartition(".")[0], None)
        with pytest.raises(MissingExtraError, match=rf"mpsearch\[{name}\]"):
            TARGETS.create(name).load(folder, 1, job.module)


@pytest.mark.parametrize(
    ("alias", "text", "backend"),
    [
        ("ort-cpu", "onnx", "ort-cpu"),
        ("openvino-cpu", "openvino", "openvino-cpu"),
        ("openvino-cpu-bf16", "openvino:precision=bf16", "openvino-cpu-bf16"),
        ("triton-cuda", "triton-cuda", "triton-cuda"),
    ],
)
def test_a_name_of_a_runtime_is_the_target_that_it_runs(alias, text, backend):
    target = TARGETS.create(alias)
    assert target == TARGETS.create(text) and target.in_run
    assert (target.backend(1).name, target.backend(1)) == (backend, BACKENDS.create(backend))


def test_options_are_added_to_those_of_an_alias():
    assert TARGETS.create("openvino-cpu-bf16:overflow_fix=on") == TARGETS.create(
        "openvino:precision=bf16,overflow_fix=on"
    )


@pytest.mark.parametrize(
    "text",
    [
        "onnx:four_bit=matmulnbits",
        "openvino:overflow_fix=off",
        "torchao",
        "modelopt",
        "nncf",
    ],
)
def test_what_no_backend_times_is_for_export_alone(text, tmp_path):
    target = TARGETS.create(text)
    assert not target.in_run
    with pytest.raises(
        OptionError,
        match=rf"--target {text} is written but not measured.*mpsearch export STUDY --target {text}",
    ):
        RunConfig(("5bits",), target=text)
    if target.backend() is None:
        with pytest.raises(UserError, match="no backend"):
            target.measure(None, tmp_path, 1)
