"""Blocks, on each family of networks and on nets written by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.mlp_mixer import Affine, MixerBlock, MlpMixer, ResBlock
from torch import Tensor, nn

from mpsearch.models import ModelGraph, analyze, find_foldable, fold_batch_norm, trace_model


def graph(module: nn.Module, size: int) -> ModelGraph:
    image = torch.zeros(1, 3, size, size)
    pairs = find_foldable(trace_model(module, image), module)
    return analyze(fold_batch_norm(module, pairs), image)


def classes(module: nn.Module, found: ModelGraph) -> Counter[tuple[str, int]]:
    """(class, number of units) of each block."""
    return Counter((type(module.get_submodule(b.name)).__name__, len(b.units)) for b in found.blocks)


SMALL = {
    "test_resnet": (
        {},
        64,
        {
            ("BasicBlock", 3): 2,
            ("BasicBlock", 2): 1,
            ("Bottleneck", 4): 1,
            ("Conv2d", 1): 3,
            ("Linear", 1): 1,
        },
    ),
    "test_vit": ({"depth": 2}, 160, {("Block", 6): 2, ("Conv2d", 1): 1, ("Linear", 1): 1}),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 56, "depths": (1, 2), "embed_dim": 24, "num_heads": (2, 4), "num_classes": 3},
        56,
        {("SwinTransformerBlock", 6): 3, ("Conv2d", 1): 1, ("Linear", 1): 2},
    ),
    "mobilenetv2_035": (
        {"num_classes": 3},
        32,
        {("InvertedResidual", 3): 16, ("Conv2d", 1): 4, ("Linear", 1): 1},
    ),
    "mobilenetv1_100": (
        {"num_classes": 3},
        32,
        {("DepthwiseSeparableConv", 2): 13, ("Conv2d", 1): 1, ("Linear", 1): 1},
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_families(name: str):
    kwargs, size, expected = SMALL[name]
    module = timm.create_model(name, **kwargs)
    assert classes(module, graph(module, size)) == expected


@pytest.mark.parametrize(("block", "count"), [(MixerBlock, 4), (ResBlock, 3)])
def test_mixer_and_resmlp(block: type[nn.Module], count: int):
    norm = Affine if block is ResBlock else nn.LayerNorm
    module = MlpMixer(
        num_classes=3,
        img_size=32,
        patch_size=16,
        num_blocks=2,
        embed_dim=16,
        mlp_ratio=4 if block is ResBlock else (0.5, 4.0),
        block_layer=block,
        norm_layer=norm,
    )
    assert classes(module, graph(module, 32)) == {
        (block.__name__, count): 2,
        ("Conv2d", 1): 1,
        ("Linear", 1): 1,
    }


def test_order_follows_execution():
    kwargs, size, _ = SMALL["swin_tiny_patch4_window7_224"]
    found = graph(timm.create_model("swin_tiny_patch4_window7_224", **kwargs), size)
    names = [b.name for b in found.blocks]
    assert names == [
        "patch_embed.proj",
        "layers.0.blocks.0",
        "layers.1.downsample.reduction",
        "layers.1.blocks.0",
        "layers.1.blocks.1",
        "head.fc",
    ]
    assert [u for b in found.blocks for u in b.units] == [layer.name for layer in found.layers]


def test_blocks_run_alone():
    kwargs, size, _ = SMALL["swin_tiny_patch4_window7_224"]
    module = timm.create_model("swin_tiny_patch4_window7_224", **kwargs).eval()
    found = graph(module, size)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for block in found.blocks:
        module.get_submodule(block.name).register_forward_hook(
            lambda m, args, out, name=block.name: seen.update({name: (args[0], out)})
        )
    with torch.no_grad():
        module(torch.randn(1, 3, size, size))
        assert len(seen) == len(found.blocks)
        for name, (x, y) in dict(seen).items():
            assert torch.equal(module.get_submodule(name)(x), y)


class Body(nn.Module):
    """Two convolutions; whether and where it adds is the subclass's."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class Residual(Body):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class InPlaceResidual(Body):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        y += x
        return y


class WithConstant(Body):
    """Adds, but a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.position)


class WithContext(Body):
    """Adds, but one value to a whole channel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean((2, 3), keepdim=True)


class Two(nn.Module):
    """Reads two tensors and adds them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Body()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(x) + y


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Residual()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class UsesTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.two = nn.Conv2d(3, 3, 1), Two()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.two(x, F.relu(x))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Sequential(Residual()), [("0", 2)]),
        (nn.Sequential(InPlaceResidual()), [("0", 2)]),
        (Residual(), [("a", 1), ("b", 1)]),
        (nn.Sequential(Nested()), [("0", 2)]),
        (nn.Sequential(Body()), [("0.a", 1), ("0.b", 1)]),
        (nn.Sequential(Body(), Body()), [("0", 2), ("1", 2)]),
        (nn.Sequential(nn.Sequential(Body()), nn.Sequential(Body())), [("0.0", 2), ("1.0", 2)]),
        (nn.Sequential(WithConstant()), [("0.a", 1), ("0.b", 1)]),
        (nn.Sequential(WithContext()), [("0.a", 1), ("0.b", 1)]),
        (UsesTwo(), [("stem", 1), ("two.inner.a", 1), ("two.inner.b", 1)]),
    ],
)
def test_rule(module: nn.Module, expected: list[tuple[str, int]]):
    assert [(b.name, len(b.units)) for b in analyze(module, torch.zeros(1, 3, 8, 8)).blocks] == expected


class Parallel(nn.Module):
    """Two branches that take turns, so that execution crosses the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 3, 1), Two(), Two()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.right(self.left(x, F.relu(x)), x)


def test_parallel_branches_keep_the_order_of_execution():
    found = analyze(Parallel(), torch.zeros(1, 3, 8, 8))
    assert [b.name for b in found.blocks] == ["stem", "left.inner", "right.inner"]
    assert [layer.name for layer in found.layers] == [
        "stem",
        "left.inner.a",
        "left.inner.b",
        "right.inner.a",
        "right.inner.b",
    ]


class Masked(nn.Module):
    """Two units on a tensor, and what is added to it between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)) + mask)


class Chain(nn.Module):
    """Two of them, on a mask that comes from the input past every unit, or through one."""

    def __init__(self, through: bool) -> None:
        super().__init__()
        self.first, self.second, self.scores = (
            Masked(),
            Masked(),
            nn.Conv2d(3, 3, 1) if through else nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        mask = self.scores((x > 0).float())
        return self.second(self.first(x, mask), mask)


@pytest.mark.parametrize(
    ("through", "expected"),
    [(False, ["first", "second"]), (True, ["scores", "first", "second.a", "second.b"])],
)
def test_a_block_may_read_beside_its_tensor_only_what_no_unit_has_worked_on(
    through: bool, expected: list[str]
):
    found = analyze(Chain(through), torch.zeros(1, 3, 8, 8))
    assert [b.name for b in found.blocks] == expected


LARGE = {  # name: convolutions and linear layers, products, blocks of more than one unit
    "resnet18": (21, 0, {"BasicBlock": 8}),
    "resnet50": (54, 0, {"Bottleneck": 16}),
    "regnetx_002": (45, 0, {"Bottleneck": 13}),
    "mobilenetv2_100": (53, 0, {"InvertedResidual": 16}),
    "vit_tiny_patch16_224": (50, 24, {"Block": 12}),
    "deit_tiny_patch16_224": (50, 24, {"Block": 12}),
    "swin_tiny_patch4_window7_224": (53, 24, {"SwinTransformerBlock": 12}),
    "swin_small_patch4_window7_224": (101, 48, {"SwinTransformerBlock": 24}),
    "resmlp_12_224": (38, 0, {"ResBlock": 12}),
    "resmlp_24_224": (74, 0, {"ResBlock": 24}),
    "mixer_s32_224": (34, 0, {"MixerBlock": 8}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_published_models(name: str):
    weighted, products, expected = LARGE[name]
    module = timm.create_model(name)
    found = graph(module, 224)
    assert sum(layer.op != "matmul" for layer in found.layers) == weighted
    assert sum(layer.op == "matmul" for layer in found.layers) == products
    blocks = Counter(type(module.get_submodule(b.name)).__name__ for b in found.blocks if len(b.units) > 1)
    assert blocks == expected
    assert found.unused == found.leftovers == ()
