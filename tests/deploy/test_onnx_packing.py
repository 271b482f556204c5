"""Bit-packed ONNX files: the same kernels and the same results as with 8-bit containers, and b bits for each
weight.
"""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from target_jobs import MAKERS, job_of

from mpsearch.deploy import quantize_onnx
from mpsearch.deploy.onnx_packing import (
    DOMAIN,
    bits_of,
    fields_of,
    pack_fields,
    pack_weights,
    packed_code_bytes,
    table_of,
)
from mpsearch.deploy.targets import TARGETS
from mpsearch.hardware.backends.ort_cpu import session
from mpsearch.problem import Assignment, Candidate

PLAIN, PACKED = TARGETS.create("onnx:weights=plain"), TARGETS.create("onnx:weights=packed")
MIXED = (*(f"W{b}A8" for b in range(2, 9)), "W8A6", "W4A8/tensor", "float")


def optimized(model, folder):
    """What ONNX Runtime makes of a file: operators in order, and the int8 constants as bytes, in any
    order.
    """
    session(model.SerializeToString(), 1, folder / "optimized.onnx")
    graph = onnx.load(folder / "optimized.onnx").graph
    weights = [numpy_helper.to_array(i) for i in graph.initializer if i.data_type == onnx.TensorProto.INT8]
    return [node.op_type for node in graph.node], sorted((w.shape, w.tobytes()) for w in weights)


def outputs(model, images):
    live = session(model.SerializeToString())
    return live.run(None, {live.get_inputs()[0].name: images.numpy()})[0]


def require_same(plain, packed, images, folder):
    onnx.checker.check_model(packed, full_check=True)
    assert any(node.domain == DOMAIN for node in packed.graph.node)
    kernels, weights = optimized(packed, folder)
    assert (kernels, weights) == optimized(plain, folder)
    assert {"QLinearConv", "MatMulIntegerToFloat", "QLinearMatMul"} & set(kernels)
    assert not {"Gather", "BitwiseOr", "Cast"} & (set(kernels) - {n.op_type for n in plain.graph.node})
    assert np.array_equal(outputs(packed, images), outputs(plain, images))


@given(bits=st.integers(2, 7), count=st.integers(1, 70), seed=st.integers(0, 2**16))
def test_tables_give_back_the_codes(bits, count, seed):
    codes = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), count).astype(np.int8)
    parts = pack_fields(codes, bits)
    found, place = 0, bits
    for i, (width, part) in enumerate(zip(fields_of(bits), parts, strict=True)):
        place -= width
        found = found | table_of(width, place, signed=i == 0)[part]
    assert np.array_equal(found.ravel()[:count], codes)
    assert sum(part.size for part in parts) == packed_code_bytes(count, bits)
    assert packed_code_bytes(count, bits) - count * bits / 8 < bits  # less than a group is wasted
    assert bits_of(codes) <= bits


@pytest.mark.parametrize(
    ("codes", "bits"), [([0], 2), ([-2, 1], 2), ([2], 3), ([-3], 3), ([-128], 8), ([64], 8), ([-64, 63], 7)]
)
def test_the_least_width_that_holds_codes(codes, bits):
    assert bits_of(np.array(codes, np.int8)) == bits


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MAKERS)
def test_kernels_constants_and_results_are_those_of_the_plain_file(name, seed, tmp_path):
    job, _, images = job_of(name, seed, MIXED)
    require_same(PLAIN.model(job), PACKED.model(job), images, tmp_path)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", ["mobile", "test_efficientnet"])
def test_depthwise_and_grouped_convolutions_at_every_width(exported, name, bits, tmp_path):
    net, graph = exported(name)
    plain = quantize_onnx(graph, net.calibration.states(net.uniform(f"W{bits}A8")), net.calibration)
    packed = onnx.ModelProto()
    packed.CopyFrom(plain)
    pack_weights(packed)
    require_same(plain, packed, net.images, tmp_path)


def test_groups_that_are_not_full(tmp_path):
    """7 x 3 x 3 x 3 and 5 x 343 weights fill no whole groups of eight."""
    from odd_nets import job_of as job_of_net

    def odd():
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 7, 3, 2, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(7 * 64, 5)
        )

    for bits in range(2, 8):
        job, images = job_of_net(
            "odd groups",
            odd,
            f"W{bits}A8",
            images=torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        )
        packed = PACKED.model(job)
        assert any(node.op_type.endswith("Cut") for node in packed.graph.node)
        require_same(PLAIN.model(job), packed, images, tmp_path)


def test_a_file_has_as_many_bits_as_its_weights(exported):
    """Files of uniform widths differ by the codes, and by the functions that unpack them."""
    net, graph = exported("test_vit")
    weights = sum(net.module.get_submodule(unit).weight.numel() for unit in net.units)

    def written(bits):
        model = quantize_onnx(graph, net.calibration.states(net.uniform(f"W{bits}A8")), net.calibration)
        pack_weights(model)
        return model

    models = {bits: written(bits) for bits in (2, 4, 6)}
    sizes = {
        bits: len(m.SerializeToString()) - sum(f.ByteSize() for f in m.functions)
        for bits, m in models.items()
    }
    for bits in (4, 6):
        grown = sizes[bits] - sizes[2] - weights * (bits - 2) / 8
        assert 0 <= grown <= 64 * len(net.units)


def test_nothing_of_the_machine_is_in_the_file(exported):
    net, graph = exported("mobile")
    assert b"site-packages" in graph.SerializeToString()
    model = quantize_onnx(graph, net.calibration.states(net.uniform("W4A8")), net.calibration)
    pack_weights(model)
    assert b"site-packages" not in model.SerializeToString()


def test_versions_that_onnx_runtime_1_22_reads(exported):
    net, graph = exported("mobile")
    model = quantize_onnx(
        graph,
        net.calibration.states(Assignment(tuple((u, Candidate(5, 8)) for u in net.units))),
        net.calibration,
    )
    pack_weights(model)
    assert model.ir_version <= 10
    assert {o.domain: o.version for o in model.opset_import} == {"": 20, "com.microsoft": 1, DOMAIN: 1}
