"""Which layers stay float, told to other tools: the real quantisers take the lists, and leave those layers alone."""

import json
import re

import onnx
import pytest
import torch
from target_jobs import job_of, net

from mpsearch.deploy.targets import TARGETS


@pytest.fixture(params=["cnn", "vit"])
def written(request, tmp_path):
    """The job, the folder, and what the lists say."""
    job, *_ = job_of(request.param, 4, ("W8A8", "float"))
    TARGETS.create("exclusions").write(job, tmp_path)
    lists = json.loads((tmp_path / "exclusions.json").read_text())
    floats = [unit for unit in job.layout.weights if job.states[unit].candidate.is_float]
    assert lists["float_units"] == floats and 0 < len(floats) < len(job.layout.weights)
    return request.param, tmp_path, lists


def quantized_products(model):
    """Products that read what a DequantizeLinear gives, and all products, by name."""
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    products = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    return {n.name for n in products if makers.get(n.input[0]) == "DequantizeLinear"}, {
        n.name for n in products
    }


def test_onnx_runtimes_quantiser_leaves_the_listed_nodes_float(written):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    name, folder, lists = written

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(net(name)[3][:4].numpy())

        def get_next(self):
            image = next(self.left, None)
            return None if image is None else {given: image[None]}

    float_model = onnx.load(folder / "model.onnx")
    given = float_model.graph.input[0].name
    quantize_static(
        folder / "model.onnx",
        folder / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        **lists["onnxruntime"],
    )
    quantized, products = quantized_products(onnx.load(folder / "int8.onnx"))
    listed = set(lists["onnxruntime"]["nodes_to_exclude"])
    assert listed < products and quantized == products - listed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # NNCF leaves a pool open
def test_nncf_leaves_the_listed_modules_float(written, monkeypatch):
    monkeypatch.setenv("NNCF_EXTENSION_LOAD_TIMEOUT", "0")  # it is compiled at its first use
    nncf = pytest.importorskip("nncf")
    name, _, lists = written
    module, units, images = net(name)[0], net(name)[1], net(name)[3][:4]
    scope = nncf.IgnoredScope(**lists["nncf"]["torch"])
    found = nncf.quantize(module, nncf.Dataset([i[None] for i in images]), ignored_scope=scope, subset_size=4)
    hooks = " ".join(found.state_dict())  # of a weight: a hook in front of port 1
    weights = {unit for unit in units if re.search(rf"pre_hooks\.{unit.replace('.', '/')}/\w+/0__1\.", hooks)}
    assert weights == set(units) - set(lists["float_units"])


def test_nncf_leaves_the_listed_nodes_float(written):
    nncf = pytest.importorskip("nncf")
    name, folder, lists = written
    model = onnx.load(folder / "model.onnx")
    given = model.graph.input[0].name
    data = nncf.Dataset([{given: image[None].numpy()} for image in net(name)[3][:4]])
    scope = nncf.IgnoredScope(**lists["nncf"]["onnx"])
    quantized, products = quantized_products(nncf.quantize(model, data, ignored_scope=scope, subset_size=4))
    assert products - quantized >= set(lists["nncf"]["onnx"]["names"]) and quantized


def test_the_written_graph_is_the_float_model(written):
    name, folder, lists = written
    module, images = net(name)[0], net(name)[3]
    run = TARGETS.create("exclusions").load(folder, 1)
    torch.testing.assert_close(run(images), module(images), atol=1e-4, rtol=1e-4)
    patterns = {
        entry["quantizer_name"].removesuffix(".*_quantizer") for entry in lists["modelopt"]["quant_cfg"]
    }
    assert patterns == set(lists["float_units"])
    assert set(lists["tensorrt"]["layer_precisions"]) == set(lists["onnxruntime"]["nodes_to_exclude"])
