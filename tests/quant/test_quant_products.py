"""Quantised products of activations: the float function without quantisers, the tracer's names, and nothing
left behind.
"""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from mpsearch.errors import ModelError, UnknownNameError
from mpsearch.models import analyze
from mpsearch.problem import Candidate
from mpsearch.quant import UnitState, affine_params, fake_quantize
from mpsearch.quant.attention import attention
from mpsearch.quant.layers import wrap
from mpsearch.quant.products import QuantProduct, product_names, unwrap_products, wrap_products


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Explicit(nn.Module):
    """Attention written out, beside products that do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.mixing = nn.Parameter(torch.eye(8) + 0.1)
        self.relative = nn.Linear(2, 5)
        self.register_buffer("places", torch.linspace(0, 1, 20).view(5, 2, 2)[:, 0])

    def forward(self, x):
        x = x @ self.mixing  # a parameter
        q, k, v = self.q(x) @ (self.mixing * 2), self.k(x), self.v(x)  # computed from a parameter
        bias = self.relative(self.places)  # a child that reads no activation
        q = q + F.pad(bias @ bias.mT, (0, 3))  # two constants
        scores = (q @ k.transpose(-2, -1)).softmax(-1)
        mixed = torch.einsum("bij,bjc->bic", scores, v)
        gram = torch.bmm(mixed.transpose(1, 2), mixed)
        return torch.baddbmm(mixed, mixed, gram) + F.linear(mixed[0], gram[0])


def net_explicit():
    return Explicit(), torch.randn(3, 5, 8)


class Nested(nn.Module):
    """Products before and after those of a child."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Explicit()

    def forward(self, x):
        before = x.mT @ x
        return (self.inside(x) @ before) @ before[:, :, :3]


def net_vit(fused: bool):
    vit = timm.create_model("test_vit", img_size=32, num_classes=10)
    for block in vit.blocks:
        block.attn.fused_attn = fused
    return vit, torch.randn(2, 3, 32, 32)


def net_swin(fused: bool):
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        num_classes=10,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(2, 4),
    )
    for m in swin.modules():
        if hasattr(m, "fused_attn"):
            m.fused_attn = fused
    return swin, torch.randn(2, 3, 32, 32)


NETS = {
    "explicit": net_explicit,
    "nested": lambda: (Nested(), torch.randn(3, 5, 8)),
    "vit fused": lambda: net_vit(True),
    "vit": lambda: net_vit(False),
    "swin fused": lambda: net_swin(True),
    "swin": lambda: net_swin(False),
}
COUNT = {"explicit": 5, "nested": 8, "vit fused": 12, "vit": 12, "swin fused": 8, "swin": 8}


def make(name: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, x = NETS[name]()
    module.eval()
    layers = {layer.name: layer for layer in analyze(module, x[:1]).layers if layer.op == "matmul"}
    assert len(layers) == COUNT[name]
    return module, x, layers


@pytest.mark.parametrize("name", NETS)
def test_the_tracer_and_the_forward_agree_on_every_product(name):
    module, x, layers = make(name)
    wrapped = wrap_products(module, layers)
    seen: dict[str, tuple[tuple[int, ...], ...]] = {}
    for unit, product in wrapped.items():
        product.register_forward_pre_hook(
            lambda _, args, unit=unit: seen.update({unit: tuple(tuple(a.shape) for a in args)})
        )
        assert module.get_submodule(unit) is product
    with torch.no_grad():
        module(x[:1])
    assert list(seen) == list(layers)
    for unit, layer in layers.items():
        left, right = seen[unit]
        assert [math.prod(shape) for shape in (left, right)] == [
            math.prod(shape) for shape in layer.input_shapes
        ]
        if name not in ("explicit", "nested"):
            assert (left, sorted(right)) == (
                layer.input_shapes[0],
                sorted(layer.input_shapes[1]),
            )  # attention's key is not transposed yet


@pytest.mark.parametrize("name", NETS)
def test_without_quantisers_the_output_is_the_float_output(name, left_as_found):
    module, x, layers = make(name)
    with torch.no_grad():
        before = module(x)
        wrapped = copy.deepcopy(module)
        wrap_products(wrapped, layers)
        assert float((wrapped(x) - before).abs().max()) < 1e-5
        for again in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):  # noqa: S301
            assert torch.equal(again(x), wrapped(x))
            assert sum(isinstance(m, QuantProduct) for m in again.modules()) == COUNT[name]
    check = left_as_found(module)
    wrap_products(module, layers)
    with torch.no_grad():
        module(x)
    unwrap_products(module, layers)
    check()


@pytest.mark.parametrize("name", NETS)
def test_every_operand_matters(name):
    module, x, layers = make(name)
    products = wrap_products(module, layers)
    coarse = affine_params(torch.tensor(-1.0), torch.tensor(1.0), 2, symmetric=False)
    with torch.no_grad():
        before = module(x)
        for product in products.values():
            for operand in product.inputs():
                operand.params = coarse
                assert not torch.allclose(module(x), before, rtol=0, atol=1e-7)
                operand.params = None
        assert torch.equal(module(x), before)


def test_attention_by_definition():
    module, _, _ = make("vit fused")
    attn = module.blocks[0].attn
    products = wrap_products(attn, ["matmul0", "matmul1"])
    grids = [
        affine_params(torch.tensor(low), torch.tensor(high), bits, symmetric=False)
        for low, high, bits in ((-1.0, 1.0, 3), (0.0, 1.0, 4))
    ]
    products["matmul0"].set_state(UnitState(Candidate(3, 3), None, grids[0], grids[0]))
    products["matmul1"].set_state(UnitState(Candidate(4, 4), None, grids[1], grids[0]))
    tokens = torch.randn(2, 5, attn.qkv.in_features, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given = attn(tokens)
        q, k, v = attn.qkv(tokens).reshape(2, 5, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k, v = (fake_quantize(t, grids[0]) for t in (q, k, v))
        p = fake_quantize(((q @ k.mT) * attn.scale).softmax(-1), grids[1])
        by_hand = attn.proj(attn.norm((p @ v).transpose(1, 2).reshape(2, 5, -1)))
    assert torch.allclose(given, by_hand, atol=1e-6)


MASK = torch.rand(6, 6, generator=torch.Generator().manual_seed(2)) > 0.4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": MASK},
        {"attn_mask": MASK.float() * -2},
        {"attn_mask": MASK & (torch.arange(6) != 2)[:, None]},  # a row without any key
        {"attn_mask": torch.zeros(6, 6).index_fill(0, torch.tensor(2), -torch.inf)},
        {"enable_gqa": True},
    ],
    ids=lambda o: ",".join(o) or "plain",
)
def test_attention_is_torchs(options):
    heads = 2 if options.get("enable_gqa") else 4
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, h, 6, 8, generator=generator, requires_grad=True) for h in (4, heads, heads)
    )
    ours = attention(query, key, value, **options, first=QuantProduct(), second=QuantProduct())
    torch.testing.assert_close(
        ours, F.scaled_dot_product_attention(query, key, value, **options), rtol=1e-5, atol=1e-6
    )
    ours.square().sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (query, key, value))


def test_attention_refuses_a_mask_beside_causality():
    q = torch.randn(1, 1, 6, 4)
    with pytest.raises(ModelError, match="both a mask and is_causal"):
        attention(q, q, q, MASK, 0.0, True)


class Latent(nn.Module):
    """Attention whose query is a parameter: only the product with the values counts."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.kv = nn.Parameter(torch.ones(1, 3, 8)), nn.Linear(8, 8)

    def forward(self, x):
        kv = self.kv(x)
        return F.scaled_dot_product_attention(self.query.expand(len(x), -1, -1), kv, kv)


def test_a_query_that_is_a_parameter_leaves_one_product():
    module, x = Latent().eval(), torch.randn(2, 5, 8)
    assert [layer.name for layer in analyze(module, x[:1]).layers if layer.op == "matmul"] == ["matmul0"]
    product = wrap_products(module, ["matmul0"])["matmul0"]
    seen = []
    product.register_forward_pre_hook(lambda _, args: seen.append([tuple(a.shape) for a in args]))
    module(x)
    assert seen == [[(2, 3, 5), (2, 5, 8)]]


def test_layers_and_products_are_wrapped_in_any_order():
    module, x, layers = make("vit fused")
    linear = "blocks.0.attn.qkv"
    outputs = []
    for first, second in ((wrap, wrap_products), (wrap_products, wrap)):
        copied = copy.deepcopy(module)
        for function in (first, second):
            function(copied, [linear] if function is wrap else layers)
        with torch.no_grad():
            outputs.append(copied(x))
        assert isinstance(copied.get_submodule("blocks.0.attn.matmul0"), QuantProduct)
    assert torch.equal(*outputs)


class Failing(nn.Module):
    """Breaks inside a child."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.child, self.error = nn.Identity(), error
        self.child.register_forward_hook(self._fail)

    def _fail(self, *_):
        raise self.error("on purpose")

    def forward(self, x):
        return self.child(x) @ x


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_no_mode_and_no_hooks(error):
    module = Failing(error)
    wrap_products(module, ["matmul0"])
    with pytest.raises(error, match="on purpose"):
        module(torch.eye(3))
    assert torch.overrides._len_torch_function_stack() == 0
    assert (len(module.child._forward_hooks), len(module.child._forward_pre_hooks)) == (1, 0)


def test_coroutines_in_one_module_do_not_meet():
    coroutines = pytest.importorskip("greenlet")
    module, x, layers = make("explicit")
    with torch.no_grad():
        before = [module(x), module(2 * x)]
    products = wrap_products(module, layers)
    counts = dict.fromkeys(products, 0)
    for unit, product in products.items():
        product.register_forward_pre_hook(lambda *_, unit=unit: counts.update({unit: counts[unit] + 1}))
    main = coroutines.getcurrent()
    inner = module.k.forward
    module.k.forward = lambda t: main.switch() or inner(t)
    runners = [coroutines.greenlet(module.forward) for _ in range(2)]
    with torch.no_grad():
        for runner, given in zip(runners, (x, 2 * x), strict=True):
            runner.switch(given)
            assert torch.overrides._len_torch_function_stack() == 0
        after = [runner.switch() for runner in runners]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(after, before, strict=True))
    assert set(counts.values()) == {2}


def test_names_that_are_no_products_are_refused():
    module, _, layers = make("vit")
    assert product_names(module, ["blocks.0.attn.qkv", *layers]) == list(layers)
    for name in ("blocks.0.attn.qkv", "blocks.9.attn.matmul0", "matmul"):
        with pytest.raises(UnknownNameError, match="No product is called"):
            wrap_products(module, [name])
    wrap_products(module, ["blocks.0.attn.matmul0"])
    with pytest.raises(ModelError, match="has a member 'matmul0' already"):
        wrap_products(module, ["blocks.0.attn.matmul0"])
    with pytest.raises(ModelError, match=r"nn\.MultiheadAttention run in one call"):
        attn = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        wrap_products(attn, ["matmul0"])
        attn(*[torch.randn(1, 4, 8)] * 3)
