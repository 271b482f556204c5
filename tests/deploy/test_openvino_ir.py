"""OpenVINO's files compute what the fake-quantised module computes, in the kernels that were asked for, and
are whole or refused.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, cosine_similarity

from mpsearch.errors import CheckpointError, ModelError, MpsearchError
from mpsearch.hardware import BACKENDS
from mpsearch.problem import Candidate, ConvAttributes
from mpsearch.quant import install

pytest.importorskip("openvino")
from mpsearch.deploy.openvino import (
    measure_openvino,
    overflowing,
    quantize_openvino,
    run_openvino,
    write_openvino,
)
from mpsearch.hardware import ir
from mpsearch.hardware.fresh import run_fresh
from mpsearch.hardware.openvino_nodes import OpenVinoWriter, compiled, openvino, ran_nodes
from mpsearch.hardware.qdq import Grid, QuantizedWeight

NETS = ("mobile", "test_vit")  # timm's test_resnet and test_efficientnet pass too, and take longer
MIXED = ("float", "W7A8", "W4A8", "W6A5", "W8A16", "W4A16", "W2A16")


def _both(net, graph, assignment, path):
    """Logits of the fake-quantised module and of OpenVINO."""
    states = net.calibration.states(assignment)
    write_openvino(path, graph, states)
    with torch.no_grad():
        return install(net.module, states)(net.images), run_openvino(path)(net.images)


@pytest.mark.parametrize("name", NETS)
def test_the_float_graph_is_the_module(exported, tmp_path, name):
    net, graph = exported(name)
    want, got = _both(net, graph, net.uniform("float"), tmp_path / "m.xml")
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("text", ["W7A8", "W4A8", "W4A16"])
def test_it_agrees_with_the_fake_quantised_module(exported, tmp_path, name, text):
    net, graph = exported(name)
    want, got = _both(net, graph, net.uniform(text), tmp_path / "m.xml")
    cosine = cosine_similarity(want, got)
    assert cosine.median() > 0.999 and cosine.min() > 0.995
    assert (want.argmax(1) == got.argmax(1)).float().mean() >= 0.9
    if text == "W4A16":  # nothing but the order of sums differs
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(2))
def test_every_unit_of_a_mixed_assignment_runs_in_what_was_asked(exported, tmp_path, name, seed):
    net, graph = exported(name)
    assignment = net.mixed(seed, MIXED)
    want, got = _both(net, graph, assignment, tmp_path / "m.xml")
    assert cosine_similarity(want, got).median() > 0.998
    ran = measure_openvino(tmp_path / "m.xml", net.images, seconds=0.02)
    assert ran.fallbacks == {}
    integer = sum(not c.is_float and not c.weight_only for c in assignment.values())
    assert ran.integer_kernels == integer and ran.timing.median_us > 0


@pytest.mark.parametrize("text", ["float", "W7A8"])
def test_convolutions_that_pad_below_and_right_alone(exported, tmp_path, text):
    """OpenVINO makes the pad a part of the convolution."""
    net, graph = exported("same")
    want, got = _both(net, graph, net.uniform(text), tmp_path / "m.xml")
    assert cosine_similarity(want, got).min() > 0.998
    ran = measure_openvino(tmp_path / "m.xml", net.images, seconds=0.02)
    assert ran.fallbacks == {} and ran.integer_kernels == (3 if text == "W7A8" else 0)


def test_a_unit_that_runs_in_something_else_is_named(exported, tmp_path):
    net, graph = exported("mobile")
    model = quantize_openvino(graph, net.calibration.states(net.uniform("float")))
    ir.write_ir(
        tmp_path / "m.xml",
        model,
        "f32",
        {unit: "integer" if unit == "expand.0" else "f32" for unit in net.units} | {"elsewhere": "f32"},
    )
    fallbacks = measure_openvino(tmp_path / "m.xml", net.images, seconds=0.02).fallbacks
    assert set(fallbacks) == {"expand.0", "elsewhere"}
    assert (
        fallbacks["expand.0"].startswith("Convolution:f32:")
        and fallbacks["elsewhere"] == "no node of its own"
    )


@pytest.mark.parametrize("text", ["float", "W7A8", "W4A16"])
@pytest.mark.parametrize("name", ["mobile", "test_vit"])
def test_what_ships_runs_in_the_kernels_that_were_timed(exported, tmp_path, name, text):
    """The kernel of every unit in the whole model is the one of its profiled cell: same arithmetic, same
    precision; of its kind the same primitive.
    """
    from mpsearch.models import analyze

    net, graph = exported(name)
    backend, asked = BACKENDS.create("openvino-cpu"), Candidate.parse(text)
    write_openvino(tmp_path / "m.xml", graph, net.calibration.states(net.uniform(text)))
    held = ir.read_ir(tmp_path / "m.xml", batch=1)
    ran = ir.ran_units(compiled(held.model), held.asked)
    layers = [layer for layer in analyze(net.module, net.images[:1]).layers if layer.name in net.units]
    assert len(layers) == len(ran)
    for layer in layers[:: 1 if name == "mobile" else 5]:
        kernel = backend.supports(layer, asked).kernel
        if kernel is None:
            continue
        cell = backend.build(layer, kernel, 1)
        timed = [
            op for op in cell.executed if op.split(":")[0] in ("Convolution", "FullyConnected", "MatMul")
        ]
        node = ran[layer.name]
        assert cell.as_asked and node is not None and len(timed) == 1
        kind, precision, primitive = timed[0].split(":")
        assert (node.kind, node.precision) == (kind, precision)
        if not any(
            "gelu" in origin for origin in node.origins
        ):  # with a GELU fused behind it a float32 product runs in another library's kernel
            assert _family(node.primitive) == _family(primitive)


def _family(primitive):
    """`brgconv_avx2_1x1_f32` and `brgconv_avx2_f32` differ by what the neighbours' layout lets the same
    library choose.
    """
    return "_".join(part for part in primitive.split("_") if part not in ("1x1", "dw"))


def test_batches_of_any_size_run(exported, tmp_path):
    net, graph = exported("mobile")
    write_openvino(tmp_path / "m.xml", graph, net.calibration.states(net.uniform("W7A8")))
    run = run_openvino(tmp_path / "m.xml")
    whole = run(net.images)
    assert whole.shape == (len(net.images), 10)
    for size in (1, 5, 2, 3, 7, 1):  # more sizes than are kept
        torch.testing.assert_close(run(net.images[:size]), whole[:size], rtol=1e-4, atol=1e-4)


def test_the_file_itself_leaves_the_batch_free(exported, tmp_path):
    import openvino

    net, graph = exported("test_vit")
    write_openvino(tmp_path / "m.xml", graph, net.calibration.states(net.uniform("W7A8")))
    live = openvino.Core().compile_model(str(tmp_path / "m.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in (1, 4):
        assert (
            cosine_similarity(
                torch.from_numpy(live([net.images[:size].numpy()])[0]),
                run_openvino(tmp_path / "m.xml")(net.images[:size]),
            ).min()
            > 0.999
        )


def test_a_process_of_its_own_computes_the_same(exported, tmp_path):
    net, graph = exported("mobile")
    size = write_openvino(tmp_path / "m.xml", graph, net.calibration.states(net.mixed(0, MIXED)))
    fresh = run_fresh(tmp_path / "m.xml", net.images[:3].numpy(), seconds=0.02)
    np.testing.assert_allclose(
        fresh.outputs, run_openvino(tmp_path / "m.xml")(net.images[:3]).numpy(), rtol=1e-3, atol=1e-4
    )
    assert fresh.timing.median_us > 0 and fresh.fallbacks == {} and fresh.executed
    assert fresh.bytes_on_disk == size == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_a_process_that_fails_says_why(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(
        MpsearchError, match=r"m\.onnx failed in a process of its own \(exit code 1\); it said: .*[Pp]rotobuf"
    ):
        run_fresh(tmp_path / "m.onnx", np.zeros((1, 3)), seconds=0.02)


def test_narrow_weights_take_fewer_bytes(exported, tmp_path):
    net, graph = exported("test_vit")
    sizes = {
        t: write_openvino(tmp_path / "m.xml", graph, net.calibration.states(net.uniform(t)))
        for t in ("float", "W8A16", "W4A16")
    }
    linear = sum(w.numel() for unit, w in net.calibration.weights.items() if w.ndim == 2)
    assert sizes["float"] - sizes["W8A16"] > 2.5 * linear
    assert sizes["W8A16"] - sizes["W4A16"] == pytest.approx(linear / 2, rel=0.02)


def test_units_whose_sums_overflow_without_vnni_are_named(prepared):
    net = prepared("mobile")
    found = overflowing(net.calibration.states(net.mixed(0, ("W8A8", "W7A8", "W8A16", "float"))), net.module)
    wide = {
        unit for unit, c in net.mixed(0, ("W8A8", "W7A8", "W8A16", "float")).items() if c == Candidate(8, 8)
    }
    assert wide and set(found) == wide - {"depthwise.0"}
    assert "depthwise.0" not in overflowing(net.calibration.states(net.uniform("W8A8")), net.module)


@pytest.mark.parametrize(("channels", "stride", "kernel"), [(3, 1, 3), (32, 2, 3), (48, 1, 5)])
def test_depthwise_products_are_added_in_32_bits(channels, stride, kernel):
    """The greatest products of 8 bits that there are: where this fails, the weights of depthwise convolutions
    must be narrowed too.
    """
    writer = OpenVinoWriter()
    images = writer.parameter((1, channels, 14, 14))
    weight = QuantizedWeight(
        np.full((channels, 1, kernel, kernel), 127, np.int8), np.full(channels, 0.01, np.float32)
    )
    conv = ConvAttributes((stride, stride), (kernel // 2, kernel // 2), (1, 1), channels)
    node = writer.conv(
        writer.quantized(images.output(0), Grid(1 / 255, 0, 8)), writer.weight(weight, channels), conv
    )
    live = compiled(openvino().Model([node], [images], "unit"), 1, "f32")
    ones = np.ones((1, channels, 14, 14), np.float32)
    want = conv2d(
        torch.from_numpy(ones),
        torch.full((channels, 1, kernel, kernel), 1.27),
        stride=stride,
        padding=kernel // 2,
        groups=channels,
    )
    assert [node.arithmetic for node in ran_nodes(live) if node.computes] == ["integer"]
    np.testing.assert_allclose(
        np.array(live.create_infer_request().infer([ones])[0]), want.numpy(), rtol=1e-5
    )


def test_a_unit_without_a_node_of_its_own_is_named(exported, prepared):
    net, graph = exported("mobile")
    states = net.calibration.states(net.uniform("W7A8"))
    with pytest.raises(ModelError, match=r"no node for the units \['elsewhere'\].*--target packed"):
        quantize_openvino(graph, {**states, "elsewhere": states["head"]})


def test_the_float_graph_is_left_as_it_is(exported):
    net, graph = exported("mobile")
    before = graph.SerializeToString(deterministic=True)
    quantize_openvino(graph, net.calibration.states(net.uniform("W7A8")))
    assert graph.SerializeToString(deterministic=True) == before


@pytest.fixture
def written(exported, tmp_path):
    net, graph = exported("mobile")
    write_openvino(tmp_path / "m.xml", graph, net.calibration.states(net.uniform("W7A8")))
    return tmp_path / "m.xml"


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "empty", "longer"])
def test_damaged_files_are_refused(written, suffix, damage):
    path = written.with_suffix(suffix)
    data = path.read_bytes()
    middle = len(data) // 2
    changed = {
        "cut": data[:middle],
        "flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "empty": b"",
        "longer": data + b" ",
    }
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(changed[damage])
    with pytest.raises(CheckpointError, match=r"m\.(xml|bin)"):
        run_openvino(written)


def test_random_changes_never_reach_the_runtime(written):
    """The seal is over both files: any changed byte is told before OpenVINO reads it."""
    draw = np.random.default_rng(0)
    for suffix in (".xml", ".bin"):
        path = written.with_suffix(suffix)
        data = path.read_bytes()
        for _ in range(60):
            at, value = int(draw.integers(len(data))), int(draw.integers(1, 256))
            path.write_bytes(data[:at] + bytes([data[at] ^ value]) + data[at + 1 :])
            with pytest.raises(CheckpointError):
                ir.read_ir(written)
        path.write_bytes(data)
    ir.read_ir(written)


def test_files_of_two_models_do_not_pass_as_one(exported, written, tmp_path):
    net, graph = exported("mobile")
    write_openvino(tmp_path / "other.xml", graph, net.calibration.states(net.uniform("W4A8")))
    (tmp_path / "other.bin").replace(written.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="not of the same model"):
        ir.read_ir(written)


def test_a_file_that_mpsearch_did_not_write_is_refused(exported, tmp_path):
    import openvino

    net, graph = exported("mobile")
    openvino.save_model(
        quantize_openvino(graph, net.calibration.states(net.uniform("float"))), str(tmp_path / "m.xml")
    )
    with pytest.raises(CheckpointError, match="was not written by mpsearch"):
        ir.read_ir(tmp_path / "m.xml")


def test_a_write_that_fails_leaves_the_old_files(exported, written, monkeypatch):
    import openvino

    net, graph = exported("mobile")
    held = {p.name: p.read_bytes() for p in written.parent.iterdir()}

    def full(model, path, **_):
        Path(path).write_bytes(b"<net")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(OSError, match="No space left"):
        write_openvino(written, graph, net.calibration.states(net.uniform("W4A8")))
    assert {p.name: p.read_bytes() for p in written.parent.iterdir()} == held
