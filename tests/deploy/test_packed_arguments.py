"""A checkpoint may name a timm model, and may not make timm reach for files or the network."""

import pytest
import torch

from mpsearch.deploy import PackedLayout, load_packed, save_packed
from mpsearch.errors import CheckpointError
from mpsearch.models import ModelSource, build_model
from mpsearch.problem import Candidate
from mpsearch.quant import UnitState


@pytest.mark.parametrize(
    "arguments", [{"checkpoint_path": "/etc/passwd"}, {"pretrained": True}, {"num_classes": {"a": 1}}]
)
def test_arguments_that_reach_outside_are_refused(tmp_path, arguments):
    module = build_model(ModelSource("timm", "test_resnet", {}))
    layout = PackedLayout.of(module, ["fc"], ModelSource("timm", "test_resnet", arguments), [], {})
    path = tmp_path / "model.safetensors"
    save_packed(path, layout, module, {"fc": UnitState(Candidate.parse("float"))})
    with pytest.raises(CheckpointError, match=next(iter(arguments))):
        load_packed(path)
    inputs = torch.zeros(1, 3, 160, 160)
    assert torch.equal(load_packed(path, module)(inputs), module(inputs))
