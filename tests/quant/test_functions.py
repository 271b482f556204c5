"""Functions of activations as units: what the tracer finds is what the forward calls, in transformers and mixers, and
their operands alone are quantised.
"""

import copy
import math
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import nn

from mpsearch.models import analyze
from mpsearch.problem import Candidate
from mpsearch.quant import UnitState, affine_params, fake_quantize
from mpsearch.quant.operands import FUNCTIONS
from mpsearch.quant.weightless import operands_of, unwrap_weightless, wrap_weightless
from mpsearch.testing.text import tiny_text, tiny_tokens

STATE = Candidate(None, 4)


def _fused(module, fused):
    for m in module.modules():
        if hasattr(m, "fused_attn"):
            m.fused_attn = fused
    return module


def _timm(name, fused=False, **options):
    model = timm.create_model(name, img_size=32, num_classes=10, **options)
    return _fused(model, fused), torch.randn(2, 3, 32, 32)


SWIN = {"window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
DEIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
MIXER = {"img_size": 32, "num_classes": 10, "patch_size": 8, "embed_dim": 24, "num_blocks": 2, "mlp_ratio": 4}
NETS = {
    "vit fused": lambda: _timm("test_vit", True),
    "deit": lambda: _timm("deit_tiny_patch16_224", **DEIT),
    "swin fused": lambda: _timm("swin_tiny_patch4_window7_224", True, **SWIN),
    "swin": lambda: _timm("swin_tiny_patch4_window7_224", **SWIN),
    "mixer": lambda: (MlpMixer(**{**MIXER, "mlp_ratio": (0.5, 4.0)}), torch.randn(2, 3, 32, 32)),
    "resmlp": lambda: (
        MlpMixer(**MIXER, block_layer=ResBlock, norm_layer=Affine),
        torch.randn(2, 3, 32, 32),
    ),
    "bert": lambda: (tiny_text(nn.Linear(16, 3), "first"), tiny_tokens(3, fields=3).inputs()),
}
COUNTS = {  # matmul, add, softmax, gelu, layer_norm, addcmul
    "vit fused": (12, 12, 6, 6, 13, 0),
    "deit": (4, 4, 2, 2, 5, 0),
    "swin fused": (8, 8, 4, 4, 11, 0),
    "swin": (8, 8, 4, 4, 11, 0),
    "mixer": (0, 4, 0, 4, 5, 0),
    "resmlp": (0, 4, 0, 2, 0, 5),
    "bert": (4, 5, 2, 2, 5, 0),  # the types' embeddings are added to the words' too
}


def make(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, x = NETS[name]()
    graph = analyze(module.eval(), x[:1], functions=True)
    return module, x, {layer.name: layer for layer in graph.layers if not layer.weight_shape}


@pytest.mark.parametrize("name", NETS)
def test_the_tracer_and_the_forward_agree_on_every_function(name):
    module, x, layers = make(name)
    ops = [layer.op for layer in layers.values()]
    assert tuple(ops.count(op) for op in FUNCTIONS) == COUNTS[name]
    with torch.no_grad():
        before = module(x)
        switches = [m.fused_attn for m in module.modules() if hasattr(m, "fused_attn")]
        wrapped = wrap_weightless(module, layers)
        seen = {}
        for unit, held in wrapped.items():
            held.register_forward_pre_hook(
                lambda _, args, unit=unit: seen.update({unit: [a.numel() for a in args]})
            )
        same = module(x)
    assert float((same - before).abs().max()) < 1e-5
    assert set(seen) == set(layers)
    for unit, layer in layers.items():
        assert len(layer.input_shapes) == operands_of(unit) == len(seen[unit])
        assert [n // len(x) for n in seen[unit]] == [math.prod(shape) for shape in layer.input_shapes]
    for held in wrapped.values():
        held._forward_pre_hooks.clear()
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(module))(x), same)  # noqa: S301
    unwrap_weightless(module, wrapped)
    with torch.no_grad():
        assert torch.equal(module(x), before)
    assert switches == [m.fused_attn for m in module.modules() if hasattr(m, "fused_attn")]


class Plain(nn.Module):
    """Every function once, the sum in place, some scores masked."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -math.inf, 0.0]))
        self.offset, self.gain = nn.Parameter(torch.ones(4)), nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x):
        y = self.norm(x) + self.offset
        y += F.gelu(x)
        y = torch.addcmul(self.offset, self.gain, y)
        return (y + self.mask).softmax(-1)


def grid(*values):
    held = torch.cat([v.flatten() for v in values])
    return affine_params(held.min(), held.max(), 4, symmetric=False)


def test_each_operand_is_quantised_where_it_is_read():
    module, x = Plain(), torch.randn(3, 5, 4)
    reads = {}
    q = {name: grid(torch.tensor([-2.0, 3.0])) for name in ("norm", "gelu", "left", "right", "mul", "soft")}
    normed = F.layer_norm(fake_quantize(x, q["norm"]), (4,)) + module.offset
    reads["sum"] = fake_quantize(normed, q["left"]) + fake_quantize(
        F.gelu(fake_quantize(x, q["gelu"])), q["right"]
    )
    scaled = torch.addcmul(module.offset, module.gain, fake_quantize(reads["sum"], q["mul"]))
    scores = torch.where(module.mask == 0, fake_quantize(scaled, q["soft"]), -math.inf)
    wrapped = wrap_weightless(module, ["norm.layer_norm0", "gelu0", "add0", "addcmul0", "softmax0"])
    states = {"norm.layer_norm0": "norm", "gelu0": "gelu", "addcmul0": "mul", "softmax0": "soft"}
    for unit, key in states.items():
        wrapped[unit].set_state(UnitState(STATE, None, q[key]))
    wrapped["add0"].set_state(UnitState(STATE, None, q["left"], q["right"]))
    with torch.no_grad():
        assert torch.equal(module(x), scores.softmax(-1))
        assert torch.equal(copy.deepcopy(module)(x), module(x))


def test_a_softmax_inside_fused_attention_reads_quantised_scores_before_the_mask():
    class Attention(nn.Module):
        def forward(self, q):
            mask = torch.tensor([[True, True, False]])
            return F.scaled_dot_product_attention(q, q * 2, q + 1, attn_mask=mask)

    module, q = Attention(), torch.randn(2, 3, 4)
    scores = q @ (q * 2).mT / 2
    params = grid(scores)
    expected = fake_quantize(scores, params).masked_fill(torch.tensor([False, False, True]), -math.inf)
    wrap_weightless(module, ["softmax0"])["softmax0"].set_state(UnitState(STATE, None, params))
    torch.testing.assert_close(module(q), expected.softmax(-1) @ (q + 1))
