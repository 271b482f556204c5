"""ONNX files as models: the layers that are found, the same numbers as the file, and what is told of files that
cannot be read.
"""

from __future__ import annotations

import pytest
import torch
from onnx import helper
from onnx_nets import net, weights, written
from torch import nn

from mpsearch.errors import ModelError
from mpsearch.models import analyze, load_model, require_same_as_file
from mpsearch.models.onnx_file import load_onnx
from mpsearch.named import require_model_name

pytest.importorskip("onnx2torch")


def test_layers_have_the_names_of_their_weights_and_compute_the_same(tmp_path):
    path = net(tmp_path / "net.onnx")
    require_model_name(str(path))
    loaded = load_model(str(path))
    assert loaded.source.kind == "onnx" and loaded.data_config["input_size"] == (3, 8, 8)
    found = analyze(loaded.module, torch.rand(1, 3, 8, 8))
    assert [(layer.name, layer.op) for layer in found.layers] == [
        ("body.0", "conv2d"), ("fc", "linear"), ("MatMul_5", "linear")
    ]  # fmt: skip
    images = torch.rand(3, 3, 8, 8)
    require_same_as_file(path, loaded.module, [images])
    with torch.no_grad():
        loaded.module.get_submodule("fc").weight.mul_(1.1)
    with pytest.raises(ModelError, match=r"'logits' differs by 0\.\d+ of its norm"):
        require_same_as_file(path, loaded.module, [images])
    with pytest.raises(ModelError, match=r"does not take a sample of shape \(1, 3, 9, 9\).*|reads 1 tensors"):
        require_same_as_file(path, loaded.module, [images, images])


def test_several_outputs_have_their_names(tmp_path):
    module = load_onnx(net(tmp_path / "net.onnx", outputs=("logits", "e")))
    found = module(torch.rand(2, 3, 8, 8))
    assert {name: tuple(value.shape) for name, value in found.items()} == {"logits": (2, 5), "e": (2, 6)}


def test_operators_that_are_not_converted_are_named(tmp_path):
    nodes = [helper.make_node("Unique", ["x"], ["y"]), helper.make_node("Det", ["y"], ["z"])]
    path = written(tmp_path / "odd.onnx", nodes, {}, ("z",))
    with pytest.raises(
        ModelError, match=r"cannot be converted: Det \(opset 17\), Unique \(opset 17\).*PyTorch model"
    ):
        load_onnx(path)
    scale = weights(scale=())
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale"], ["y"])]
    with pytest.raises(ModelError, match=r"QuantizeLinear.*It is quantised already"):
        load_onnx(written(tmp_path / "q.onnx", nodes, scale, ("y",)))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match="no readable ONNX model"):
        load_onnx(tmp_path / "text.onnx")
    with pytest.raises(ModelError, match="There is no file"):
        require_model_name(str(tmp_path / "gone.onnx"))


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_torchs_own_exporter(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.SiLU(), nn.Flatten(1), nn.Linear(36, 5)).eval()
    images = torch.rand(2, 3, 8, 8)
    shape = {"input": {0: torch.export.Dim("n", min=1, max=64)}}
    program = torch.onnx.export(module, (images,), dynamo=True, dynamic_shapes=shape, verbose=False)
    program.save(tmp_path / "net.onnx")
    again = load_onnx(tmp_path / "net.onnx")
    assert [name for name, m in again.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)] == ["0", "3"]
    torch.testing.assert_close(again(images), module(images))
    require_same_as_file(tmp_path / "net.onnx", again, [images])
