"""Transformers and MLPs of several families with every tensor quantised: what is found to quantise, the predicted
size, and a checkpoint that reads back bit for bit.
"""

from collections import Counter
from functools import partial

import pytest
import torch
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock

from mpsearch.deploy.packed import PackedLayout, save_packed
from mpsearch.deploy.packed_reading import load_packed, open_packed
from mpsearch.models import ModelSource, analyze, build_model
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import LogParams, install
from mpsearch.quant.operands import FUNCTIONS
from mpsearch.reconstruct import calibrate

FAMILIES = {
    "deit_tiny_patch16_224": (
        {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3},
        {"matmul": 4, "softmax": 2, "gelu": 2, "layer_norm": 5},
    ),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 56, "depths": (2, 2), "embed_dim": 24, "num_heads": (1, 2)},
        {"matmul": 8, "softmax": 4, "gelu": 4, "layer_norm": 11},
    ),
}
"""A timm name -> a small form of it, and how many functions of each kind it calls."""


@pytest.fixture
def tried(tmp_path):
    """`tried(module, fresh, inputs, source)`: the functions that were found, and the states that were read back."""

    def of(module, fresh, inputs, source):
        layers = analyze(module, inputs[:1], functions=True).layers
        units = [layer.name for layer in layers if layer.weight_shape or layer.op in FUNCTIONS]
        assert len(units) == len(layers)  # nothing that multiplies stays float
        calibration = calibrate(module, units, [inputs], softmax="log2")
        held = {layer.name for layer in layers if layer.weight_shape}
        assignment = Assignment(tuple((unit, Candidate(4 if unit in held else None, 5)) for unit in units))
        states = calibration.states(assignment)
        layout, path = PackedLayout.of(module, units, source, (), {}), tmp_path / "model.safetensors"
        save_packed(path, layout, module, states)
        assert path.stat().st_size == layout.size_bytes(assignment)
        with torch.no_grad():
            wanted = install(module, states)(inputs)
            assert torch.equal(load_packed(path, fresh)(inputs), wanted)
            assert not torch.equal(wanted, module(inputs)) and torch.isfinite(wanted).all()
        back = open_packed(path, fresh)[1]
        assert all(state.activation is not None for state in back.values())
        return Counter(layer.op for layer in layers if not layer.weight_shape), back

    return of


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_of_a_family_is_read_back_bit_for_bit(tried, name):
    kwargs, calls = FAMILIES[name]
    source = ModelSource("timm", name, kwargs)
    torch.manual_seed(0)
    module, fresh = build_model(source).eval(), build_model(source).eval()
    side = kwargs["img_size"]
    inputs = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    found, states = tried(module, fresh, inputs, source)
    assert {op: found[op] for op in ("matmul", "softmax", "gelu", "layer_norm")} == calls
    assert found["add"] >= 2 * calls["gelu"]  # residual sums
    logarithmic = [u for u, s in states.items() if isinstance(s.second or s.activation, LogParams)]
    logarithmic += [u for u, s in states.items() if s.second and isinstance(s.activation, LogParams)]
    assert len(logarithmic) == calls["softmax"]


def test_every_tensor_of_a_resmlp_is_read_back_bit_for_bit(tried):
    def built():
        torch.manual_seed(0)
        block = partial(ResBlock, init_values=0.1)
        made = MlpMixer(
            img_size=32,
            patch_size=8,
            num_classes=4,
            num_blocks=2,
            embed_dim=24,
            mlp_ratio=4,
            block_layer=block,
            norm_layer=Affine,
        )
        torch.nn.init.normal_(made.head.weight)  # timm's starts at zero
        return made.eval()

    inputs = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found, _ = tried(built(), built(), inputs, ModelSource("module", "resmlp"))
    assert found["gelu"] == 2 and found["add"] == 4  # a sum for each branch


@pytest.mark.parametrize("head", ["classes", "span"])
def test_every_tensor_of_a_small_bert_is_read_back_bit_for_bit(tried, head):
    transformers = pytest.importorskip("transformers")
    from mpsearch.models import SpanHead, TextModel

    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )

    def built():
        torch.manual_seed(0)
        bert = transformers.BertModel(config, add_pooling_layer=False)
        made = (
            TextModel(bert, torch.nn.Linear(32, 4))
            if head == "classes"
            else TextModel(bert, SpanHead(32), "none")
        )
        return made.eval()

    tokens = torch.randint(
        0, 60, (3, 3 if head == "span" else 2, 9), generator=torch.Generator().manual_seed(0)
    )
    tokens[:, 1:] = 1
    found, _ = tried(built(), built(), tokens, ModelSource("module", "bert"))
    assert {op: found[op] for op in ("matmul", "softmax", "gelu")} == {"matmul": 4, "softmax": 2, "gelu": 2}
    assert found["layer_norm"] == 5 and found["add"] >= 4
