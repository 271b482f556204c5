"""Smoothing: the same function in float, found without names, and less error behind a symmetric grid."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import nn

from mpsearch.errors import DataError, ModelError, OptionError
from mpsearch.quant import OBSERVERS, fake_quantize
from mpsearch.reconstruct.folds import find_folds
from mpsearch.reconstruct.smooth import smooth


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vit():
    return timm.create_model("test_vit", img_size=32, num_classes=10), [
        (f"blocks.{i}.{a}", (f"blocks.{i}.{b}",)) for i in range(6) for a, b in BLOCK
    ] + HEAD


BLOCK = [("norm1", "attn.qkv"), ("norm2", "mlp.fc1")]
HEAD = [("norm", ("head",))]


def swin():
    net = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        num_classes=10,
        embed_dim=24,
        depths=(2, 1),
        num_heads=(2, 4),
    )
    inside = (
        [f"layers.{i}.blocks.{j}" for i, j in ((0, 0), (0, 1))],
        [("layers.1.downsample.norm", ("layers.1.downsample.reduction",))],
        ["layers.1.blocks.0"],
    )
    folds = [
        [(f"{block}.{a}", (f"{block}.{b}",)) for block in blocks for a, b in BLOCK]
        for blocks in (inside[0], inside[2])
    ]
    return net, [*folds[0], *inside[1], *folds[1], ("norm", ("head.fc",))]


def resmlp():
    block = partial(ResBlock, init_values=0.1)
    net = MlpMixer(
        img_size=16,
        patch_size=4,
        num_classes=10,
        embed_dim=16,
        num_blocks=2,
        mlp_ratio=4,
        block_layer=block,
        norm_layer=Affine,
    )
    return net, [(f"blocks.{i}.norm2", (f"blocks.{i}.mlp_channels.fc1",)) for i in range(2)] + HEAD


def mixer():
    net = MlpMixer(img_size=16, patch_size=4, num_classes=10, embed_dim=16, num_blocks=2)
    return net, [(f"blocks.{i}.norm2", (f"blocks.{i}.mlp_channels.fc1",)) for i in range(2)] + HEAD


NETS = {"vit": vit, "swin": swin, "resmlp": resmlp, "mixer": mixer}


def shake(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.ndim == 2 or value.ndim == 4:
                value.normal_(0, (1 / value[0].numel()) ** 0.5, generator=generator)
            elif "norm" in name and name.endswith(("weight", "alpha")):
                value.uniform_(0.2, 3, generator=generator)
            else:
                value.normal_(0, 0.5, generator=generator)
    return module.eval()


def made(name: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, folds = NETS[name]()
    shake(module)
    size = 16 if name in ("resmlp", "mixer") else 32
    return module, torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1)), folds


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_the_function_stays_the_same(name, bias, left_as_found):
    module, x, _ = made(name)
    check = left_as_found(module)
    smoothed = smooth(module, [x[:2], x[2:]], bias=bias)
    check()
    with torch.no_grad():
        before, after = module(x), smoothed(x)
    assert float(before.abs().max()) > 0.1
    assert float((after - before).abs().max()) < 1e-5 * max(1.0, float(before.abs().max()))
    assert not smoothed.training


@pytest.mark.parametrize("order", [1, -1])
def test_ranges_are_taken_over_all_batches(order):
    module, x, _ = made("resmlp")
    x = torch.cat([x[:2], 3 * x[2:]])
    parts = smooth(module, [x[:2], x[2:]][::order]).state_dict()
    whole = smooth(module, [x]).state_dict()
    assert all(torch.allclose(parts[key], whole[key], rtol=1e-4, atol=1e-6) for key in whole)


@pytest.mark.parametrize("name", NETS)
def test_every_normalisation_that_linear_layers_alone_read_is_found(name):
    module, x, folds = made(name)
    assert [(fold.norm, fold.linears) for fold in find_folds(module, x)] == folds


@pytest.mark.parametrize(("bias", "alpha"), [(True, 0.5), (True, 0.3), (False, 0.8)])
@pytest.mark.parametrize("name", ["vit", "resmlp"])
def test_scale_and_shift_by_hand(name, bias, alpha):
    module, x, folds = made(name)
    seen = {}
    smoothed = smooth(module, [x], alpha=alpha, bias=bias)
    norm, (linear,) = folds[0]
    for key, net in (("before", module), ("after", smoothed)):
        net.get_submodule(norm).register_forward_hook(
            lambda _m, _a, y, key=key: seen.update({key: y.flatten(0, -2)})
        )
        with torch.no_grad():
            net(x)
    low, high = seen["before"].amin(0), seen["before"].amax(0)
    shift = (low + high) / 2 if bias else torch.zeros_like(low)
    weight = module.get_submodule(linear).weight
    scale = (seen["before"] - shift).abs().amax(0) ** alpha / weight.abs().amax(0) ** (1 - alpha)
    assert torch.allclose(seen["after"], (seen["before"] - shift) / scale, rtol=1e-3, atol=1e-4)
    assert torch.allclose(smoothed.get_submodule(linear).weight, weight * scale, rtol=1e-3, atol=1e-5)
    if bias:
        assert torch.allclose(seen["after"].amax(0), -seen["after"].amin(0), rtol=1e-3, atol=1e-4)


class Several(nn.Module):
    """Norms: with two readers, also added on, without parameters, with a reader that reads more, with padding
    behind, two of one reader.
    """

    def __init__(self) -> None:
        super().__init__()
        self.two, self.added, self.plain, self.sharing, self.padded = (
            nn.LayerNorm(6, elementwise_affine=i != 2) for i in range(5)
        )
        self.left, self.right, self.g = nn.LayerNorm(6), nn.LayerNorm(6), nn.Linear(6, 6)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.c, self.d, self.e, self.f = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = self.a(self.two(x)) + self.b(self.two(x))
        y = self.added(x)
        x = y + self.c(y)
        x = x + self.d(self.plain(x).mean(1, keepdim=True))
        x = x + self.e(self.sharing(x)) + self.e(x) + self.g(self.left(x)) + self.g(self.right(x))
        return self.f(nn.functional.pad(self.padded(x), (0, 0, 0, 1)))


def test_other_readers_keep_a_normalisation_from_being_folded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Several().eval()
        x = torch.randn(2, 3, 6)
    nn.init.uniform_(module.two.bias, 1, 2)
    assert [(f.norm, f.linears) for f in find_folds(module, x)] == [("two", ("a", "b")), ("plain", ("d",))]
    smoothed = smooth(module, [x])
    assert smoothed.b.bias is not None and smoothed.plain.weight is not None
    with torch.no_grad():
        assert torch.allclose(smoothed(x), module(x), atol=1e-5)
    columns = torch.stack([module.a.weight, module.b.weight]).abs().amax((0, 1))
    with torch.no_grad():
        y = module.two(x).flatten(0, 1)
    scale = ((y.amax(0) - y.amin(0)) / 2).sqrt() / columns.sqrt()
    assert torch.allclose(smoothed.a.weight, module.a.weight * scale, rtol=1e-4)
    assert torch.allclose(smoothed.b.weight, module.b.weight * scale, rtol=1e-4)


def output_error(net: nn.Sequential, x: torch.Tensor, target: torch.Tensor, bits: int) -> float:
    with torch.no_grad():
        read = net[0](x)
        params = OBSERVERS.create("minmax").observe(read, bits, symmetric=True)
        return float((net[1](fake_quantize(read, params)) - target).square().mean())


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_shift_and_scale_beat_scale_beats_neither_on_skewed_channels(bits):
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 16)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.exp(torch.randn(32, generator=generator)))
        net[0].bias.copy_(-2 * net[0].weight.abs() * torch.rand(32, generator=generator))
        net[1].weight.normal_(0, 0.2, generator=generator)
        x = torch.randn(512, 32, generator=generator)
        target = net(x)
    plain, scaled, both = (
        output_error(n, x, target, bits) for n in (net, smooth(net, [x], bias=False), smooth(net, [x]))
    )
    assert both < 0.9 * scaled
    assert scaled < 0.9 * plain


def test_what_cannot_be_smoothed_is_refused():
    net, x = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)).eval(), torch.zeros(2, 4)
    with pytest.raises(OptionError, match=r"alpha is 1\.5"):
        smooth(net, [x], alpha=1.5)
    with pytest.raises(DataError, match="no images"):
        smooth(net, [])
    with pytest.raises(ModelError, match="nothing to smooth"):
        smooth(nn.Sequential(nn.Linear(4, 2)).eval(), [x])
    shared = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    shared[3].weight = shared[1].weight
    with pytest.raises(ModelError, match="nothing to smooth"):
        smooth(shared, [x])
