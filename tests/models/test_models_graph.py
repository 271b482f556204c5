"""Units, ties and what is left out, on nets written by hand."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2d
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.models import ModelGraph, analyze
from mpsearch.problem import ConvAttributes, Layer

IMAGE = (2, 4, 8, 8)


def graph(module: nn.Module, shape: tuple[int, ...] = IMAGE) -> ModelGraph:
    """Analyse, and check what holds for every graph."""
    torch.manual_seed(0)
    found = analyze(module, torch.randn(shape))
    names = [layer.name for layer in found.layers]
    assert len(set(names)) == len(names)
    assert sorted(u for b in found.blocks for u in b.units) == sorted(names)
    assert {layer.name: layer.block for layer in found.layers} == {
        u: b.name for b in found.blocks for u in b.units
    }
    assert all(layer.tie is None or layer.tie in names for layer in found.layers)
    return found


def by_name(found: ModelGraph) -> dict[str, Layer]:
    return {layer.name: layer for layer in found.layers}


class Flow(nn.Module):
    """Modules by name and a forward given as a function of (self, x)."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self._flow = forward
        for name, m in modules.items():
            setattr(self, name, m)

    def forward(self, x: Tensor) -> Tensor:
        return self._flow(self, x)


def conv(i: int = 4, o: int = 4, k: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **options)  # type: ignore[arg-type]


def test_shapes_macs_and_attributes():
    module = nn.Sequential(
        conv(4, 6, 3, stride=2, padding=1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )
    first, second = graph(module).layers
    assert first == Layer(
        "0",
        "conv2d",
        (6, 4, 3, 3),
        ((1, 4, 8, 8),),
        (1, 6, 4, 4),
        16 * 6 * 36,
        "0",
        None,
        False,
        ConvAttributes((2, 2), (1, 1)),
        1,
    )
    assert second == Layer("3", "linear", (5, 6), ((1, 6),), (1, 5), 30, "3", None, True, None, 1)


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_and_depthwise(groups: int):
    (layer,) = graph(nn.Sequential(conv(4, 8, 3, groups=groups, dilation=2))).layers
    assert layer.weight_shape == (8, 4 // groups, 3, 3)
    assert layer.output_shape == (1, 8, 4, 4)
    assert layer.macs == 16 * 8 * (4 // groups) * 9
    assert layer.conv == ConvAttributes((1, 1), (0, 0), (2, 2), groups)


def test_explicit_padding_is_seen_before_the_kernel():
    (layer,) = graph(nn.Sequential(Conv2dSame(4, 4, 3, stride=2))).layers
    assert layer.input_shapes == ((1, 4, 9, 9),) and layer.conv == ConvAttributes((2, 2), (0, 0))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("kernel", "padding", "shape"), [(3, (1, 1), (8, 8)), (4, (0, 0), (11, 11)), ((1, 3), (0, 1), (8, 8))]
)
def test_same_padding(kernel: int, padding: tuple[int, int], shape: tuple[int, int]):
    (layer,) = graph(nn.Sequential(conv(4, 4, kernel, padding="same"))).layers
    assert layer.conv is not None and layer.conv.padding == padding
    assert layer.input_shapes == ((1, 4, *shape),) and layer.output_shape == (1, 4, 8, 8)


def test_circular_padding_is_explicit():
    (layer,) = graph(nn.Sequential(conv(padding=1, padding_mode="circular"))).layers
    assert layer.input_shapes == ((1, 4, 10, 10),) and layer.conv == ConvAttributes()


def test_layers_that_read_one_tensor_are_tied():
    flow = Flow(lambda s, x: s.c(s.a(F.relu(x)) + s.b(F.relu(x))), a=conv(), b=conv(), c=conv())
    assert [layer.tie for layer in graph(flow).layers] == [None, None, None]
    flow = Flow(lambda s, x: (lambda y: s.c(s.a(y) + s.b(y)))(F.relu(x)), a=conv(), b=conv(), c=conv())
    assert [layer.tie for layer in graph(flow).layers] == ["a", "a", None]


def test_ties_see_through_dropout_padding_and_contiguous():
    flow = Flow(
        lambda s, x: s.a(s.drop(x)) + s.b(x.contiguous()) + s.c(x.clone()),
        a=Conv2dSame(4, 4, 3),
        b=conv(padding=1),
        c=conv(k=1),
        drop=nn.Dropout(0.5),
    )
    assert {layer.tie for layer in graph(flow).layers} == {"a"}


def test_an_in_place_write_makes_another_tensor():
    def forward(s: Flow, x: Tensor) -> Tensor:
        x = x + 1
        y = s.a(x)
        F.relu_(x)
        return y + s.b(x) + s.c(x)

    assert [layer.tie for layer in graph(Flow(forward, a=conv(), b=conv(), c=conv())).layers] == [
        None,
        "b",
        "b",
    ]


def test_a_write_through_another_name_writes_the_original():
    def forward(s: Flow, x: Tensor) -> Tensor:
        x = x + 1
        y = s.a(x)
        other = x.detach()  # the same memory
        F.relu_(other)
        return y + s.b(x) + s.c(other)

    assert [layer.tie for layer in graph(Flow(forward, a=conv(), b=conv(), c=conv())).layers] == [
        None,
        "b",
        "b",
    ]


def test_a_write_to_a_copy_leaves_the_original():
    def forward(s: Flow, x: Tensor) -> Tensor:
        copied = x.clone()
        F.relu_(copied)
        return s.a(x) + s.b(copied) + s.c(x)

    assert [layer.tie for layer in graph(Flow(forward, a=conv(), b=conv(), c=conv())).layers] == [
        "a",
        None,
        "a",
    ]


def test_ties_join_through_a_layer_that_is_called_twice():
    flow = Flow(
        lambda s, x: (lambda y: s.a(x) + s.b(y) + s.c(x) + s.c(y))(F.relu(x)), a=conv(), b=conv(), c=conv()
    )
    assert [layer.tie for layer in graph(flow).layers] == ["a", "a", "a"]


def test_separate_query_key_value_are_tied():
    def forward(s: Flow, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        return (s.q(x) @ s.k(x).transpose(1, 2)).softmax(-1) @ s.v(x)

    found = graph(Flow(forward, q=nn.Linear(4, 4), k=nn.Linear(4, 4), v=nn.Linear(4, 6)))
    layers = by_name(found)
    assert list(layers) == ["q", "k", "matmul0", "v", "matmul1"]
    assert [layers[n].tie for n in "qkv"] == ["q", "q", "q"]
    assert layers["matmul0"] == Layer(
        "matmul0", "matmul", (), ((1, 64, 4), (1, 4, 64)), (1, 64, 64), 64 * 64 * 4, "matmul0"
    )
    assert (
        layers["matmul1"].input_shapes == ((1, 64, 64), (1, 64, 6)) and layers["matmul1"].macs == 64 * 64 * 6
    )


def attention(s: Flow, x: Tensor) -> Tensor:
    q, k, v = s.qkv(x.flatten(2).transpose(1, 2)).reshape(-1, 64, 3, 2, 2).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v)


def einsum_attention(s: Flow, x: Tensor) -> Tensor:
    q, k, v = s.qkv(x.flatten(2).transpose(1, 2)).reshape(-1, 64, 3, 2, 2).permute(2, 0, 3, 1, 4)
    return torch.einsum("...ij,...jd->...id", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)


@pytest.mark.parametrize(("forward", "lead"), [(attention, (1, 2)), (einsum_attention, (2,))])
def test_fused_and_einsum_attention_have_two_products(forward, lead: tuple[int, ...]):
    layers = by_name(graph(Flow(forward, qkv=nn.Linear(4, 12))))
    first, second = layers["matmul0"], layers["matmul1"]
    assert first.input_shapes == ((*lead, 64, 2), (*lead, 2, 64)) and first.output_shape == (*lead, 64, 64)
    assert second.input_shapes == ((*lead, 64, 64), (*lead, 64, 2)) and second.output_shape == (*lead, 64, 2)
    assert first.macs == second.macs == 2 * 64 * 64 * 2


def test_products_are_numbered_within_the_innermost_module():
    inner = Flow(lambda s, x: (x @ x.transpose(-1, -2)) @ x)
    found = graph(Flow(lambda s, x: s.inner(s.inner(s.a(x))), a=conv(), inner=inner))
    assert [(layer.name, layer.calls, layer.macs) for layer in found.layers[1:]] == [
        ("inner.matmul0", 2, 2 * 4 * 6**3),
        ("inner.matmul1", 2, 2 * 4 * 6**3),
    ]


def test_product_with_a_constant_is_no_unit():
    module = Flow(lambda s, x: s.a(x) @ s.table.weight, a=conv(), table=nn.Embedding(6, 5))
    found = graph(module)
    assert [layer.name for layer in found.layers] == ["a"]
    assert found.leftovers == ("table.weight",)


def test_a_layer_that_reads_a_constant_is_left_over_as_exporters_fold_it():
    found = graph(
        Flow(
            lambda s, x: s.a(x) * s.mlp(s.table.weight).mean(),
            a=conv(),
            mlp=nn.Linear(5, 2),
            table=nn.Embedding(6, 5),
        )
    )
    assert [layer.name for layer in found.layers] == ["a"]
    assert found.leftovers == ("table.weight", "mlp.weight")


def test_layer_called_twice():
    found = graph(Flow(lambda s, x: s.a(s.a(x)), a=conv()))
    assert [(layer.name, layer.calls, layer.macs) for layer in found.layers] == [("a", 2, (36 + 16) * 4 * 36)]


def test_layer_never_called():
    assert graph(Flow(lambda s, x: s.a(x), a=conv(), b=conv(), c=nn.Linear(2, 2))).unused == ("b", "c")


def test_other_products_are_left_over_and_named():
    def forward(s: Flow, x: Tensor) -> Tensor:
        x = s.up(s.std(s.a(x)))
        x = F.linear(x.mean((2, 3)), s.functional.weight)
        return s.mha(x[:, None], x[:, None], x[:, None])[0] + s.one(x[:, None])

    found = graph(
        Flow(
            forward,
            a=conv(),
            std=ScaledStdConv2d(4, 4, 3),
            up=nn.ConvTranspose2d(4, 4, 2),
            functional=nn.Linear(4, 4, bias=False),
            mha=nn.MultiheadAttention(4, 1, batch_first=True),
            one=nn.Conv1d(1, 1, 1),
        )
    )
    assert [layer.name for layer in found.layers if layer.op != "matmul"] == ["a"]
    assert set(found.leftovers) == {
        "std.weight",
        "std.gain",
        "up.weight",
        "functional.weight",
        "mha.in_proj_weight",
        "mha.out_proj.weight",
        "one.weight",
    }
    assert found.unused == ()


def test_modes_and_switches_are_as_found():
    module = timm.create_model("test_vit").train()
    module.blocks[1].eval()
    before = [(m.training, getattr(m, "fused_attn", None)) for m in module.modules()]
    assert any(fused for _, fused in before)
    found = graph(module, (1, 3, 160, 160))
    assert [(m.training, getattr(m, "fused_attn", None)) for m in module.modules()] == before
    assert sum(layer.op == "matmul" for layer in found.layers) == 12
    assert torch.backends.mha.get_fastpath_enabled()


class WithAutocastOff(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.a(x) + 1


def test_units_inside_an_autocast_region_are_found():
    found = graph(Flow(lambda s, x: s.b(s.inner(x)), inner=WithAutocastOff(), b=conv()))
    assert [layer.name for layer in found.layers] == ["inner.a", "b"]


def test_one_weight_in_two_modules_is_refused():
    flow = Flow(lambda s, x: s.b(s.a(x)), a=conv(), b=conv())
    flow.b.weight = flow.a.weight
    with pytest.raises(ModelError, match="'a', 'b' share one weight"):
        graph(flow)


def test_one_module_under_two_names_is_refused():
    flow = Flow(lambda s, x: s.b(s.a(x)), a=conv())
    flow.b = flow.a
    with pytest.raises(ModelError, match=r"one module under 2 names \(a, b\)"):
        graph(flow)


def test_a_block_under_two_names_has_one():
    inner = nn.Sequential(conv(padding=1))
    flow = Flow(lambda s, x: s.b(s.a(x)), a=inner, b=inner)
    assert [(layer.name, layer.calls) for layer in graph(flow).layers] == [("a.0", 2)]


def branching(s: Flow, x: Tensor) -> Tensor:
    return s.a(x) if x.sum() > 0 else -s.a(x)


@pytest.mark.parametrize(
    ("module", "example", "message"),
    [
        (nn.Sequential(nn.ReLU()), torch.zeros(IMAGE), "nothing to quantise"),
        (
            nn.Sequential(conv()),
            torch.zeros(1, 3, 8, 8),
            "does not take an input of shape 1 x 3 x 8 x 8.*expected input",
        ),
        (nn.Sequential(conv()), torch.zeros(IMAGE, dtype=torch.int64), "does not take an input.*long int"),
        (nn.Sequential(conv()), torch.zeros(IMAGE, dtype=torch.bool), "Give float images"),
        (nn.Sequential(conv()), "image", "example input is str"),
        (Flow(lambda s, x: (s.a(x), x), a=conv()), torch.zeros(IMAGE), "returns a tuple"),
        (Flow(branching, a=conv()), torch.zeros(IMAGE), "cannot be traced"),
    ],
)
def test_what_cannot_be_analysed(module: nn.Module, example: Tensor, message: str):
    with pytest.raises(ModelError, match=message):
        analyze(module, example)


def test_nan_weights_are_refused():
    module = nn.Sequential(conv())
    module[0].bias.data[2] = float("nan")
    with pytest.raises(ModelError, match=r"'0\.bias'"):
        analyze(module, torch.zeros(IMAGE))
