"""An `nn.MultiheadAttention` that is written out computes the same, and its projections are units."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.models import analyze, find_foldable, fold_batch_norm, trace_model


class Attending(nn.Module):
    """Attention of a sequence to itself, or to its first half."""

    def __init__(self, itself: bool = True, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn, self.itself, self.call = nn.MultiheadAttention(8, 2, **options), itself, dict[str, Any]()
        for parameter in self.attn.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        other = x if self.itself else x[:, :4]
        found: Tensor = self.attn(x, other, other, **self.call)[0]
        return found


def masks(rows: int) -> dict[str, dict[str, Any]]:
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    last = torch.tensor([False] * 5 + [True]).expand(rows, 6)
    return {
        "none": {},
        "no weights": {"need_weights": False},
        "causal": {"attn_mask": later, "is_causal": True, "need_weights": False},
        "of heads": {"attn_mask": torch.randn(2 * rows, 6, 6)},
        "padding": {"key_padding_mask": last},
        "both": {
            "attn_mask": torch.zeros(6, 6).masked_fill(later, -torch.inf),
            "key_padding_mask": torch.zeros(rows, 6).masked_fill(last, -torch.inf),
        },
        "each head": {"average_attn_weights": False},
    }


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False, "dropout": 0.5}])
@pytest.mark.parametrize("case", list(masks(2)))
def test_it_computes_the_same(options: dict[str, Any], case: str):
    module, x = Attending(**options).eval(), torch.randn(2, 6, 8)
    if not options.get("batch_first"):
        x = x.transpose(0, 1)
    written = fold_batch_norm(module, [("attn", "attn.in_proj_weight")])
    given = masks(2)[case]
    expected, weights = module.attn(x, x, x, **given)
    found, own = written.attn(x, x, x, **given)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (own is None) == (weights is None)
    if own is not None:
        torch.testing.assert_close(own, weights)


def test_one_sequence_without_a_batch():
    module, x = Attending().eval(), torch.randn(6, 8)
    written = fold_batch_norm(module, [("attn", "attn.in_proj_weight")])
    torch.testing.assert_close(written.attn(x, x, x), module.attn(x, x, x), atol=1e-4, rtol=1e-4)


def test_its_projections_and_products_are_units():
    module, x = Attending(batch_first=True).eval(), torch.randn(1, 6, 8)
    pairs = find_foldable(trace_model(module, x), module)
    assert pairs == (("attn", "attn.in_proj_weight"),)
    found = analyze(fold_batch_norm(module, pairs), x)
    assert [layer.name for layer in found.layers] == [
        "attn.in_proj",
        "attn.matmul0",
        "attn.matmul1",
        "attn.out_proj",
    ] and not found.leftovers
    assert set(fold_batch_norm(module, pairs).state_dict()) == {
        f"attn.{p}_proj.{kind}" for p in ("in", "out") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    "module",
    [Attending(itself=False, batch_first=True), Attending(add_bias_kv=True), Attending(add_zero_attn=True)],
)
def test_what_cannot_be_written_out_stays_float_and_is_named(module: Attending):
    head, x = nn.Sequential(module, nn.Linear(8, 3)).eval(), torch.randn(1, 6, 8)
    assert find_foldable(trace_model(head, x), head) == ()
    assert "0.attn.out_proj.weight" in analyze(head, x).leftovers


def test_another_use_of_a_written_out_attention_is_refused():
    written = fold_batch_norm(Attending().eval(), [("attn", "attn.in_proj_weight")])
    x = torch.randn(6, 2, 8)
    with pytest.raises(ModelError, match="written out for one tensor"):
        written.attn(x, x[:3], x[:3])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("beit_base_patch16_224", {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}),
        ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 2, "embed_dim": 32, "num_heads": 2}),
        (
            "swinv2_tiny_window8_256",
            {
                "img_size": 64,
                "window_size": 2,
                "embed_dim": 16,
                "depths": (1, 1, 1, 1),
                "num_heads": (1, 1, 2, 2),
            },
        ),
    ],
)
def test_attentions_that_borrow_the_weight_of_their_projection_are_switched_to_call_it(
    name: str, arguments: dict[str, Any]
):
    torch.manual_seed(0)
    module = timm.create_model(name, **arguments).eval()
    for part, parameter in module.named_parameters():
        if "bias" in part:
            nn.init.normal_(parameter)
    x = torch.randn(2, 3, arguments["img_size"], arguments["img_size"])
    pairs = find_foldable(trace_model(module, x), module)
    switched = {layer for layer, other in pairs if other == f"{layer}.qkv_bias_separate"}
    assert switched == {n for n, m in module.named_modules() if n.endswith(".attn")}
    folded = fold_batch_norm(module, pairs)
    torch.testing.assert_close(folded(x), module(x), atol=1e-5, rtol=1e-5)
    assert {f"{path}.qkv" for path in switched} <= {layer.name for layer in analyze(folded, x).layers}
    assert not any(m.qkv_bias_separate for n, m in module.named_modules() if n in switched), (
        "the model that was given is left as it was"
    )


class Shared(nn.Module):
    """One attention, called on a sequence itself and on two sequences, in either order."""

    def __init__(self, itself_first: bool, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn, self.itself_first, self.head = (
            nn.MultiheadAttention(8, 2, **options),
            itself_first,
            nn.Linear(8, 5),
        )
        for parameter in self.attn.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        other = x.flip(1) * 0.5
        if self.itself_first:
            found = self.attn(self.attn(x, x, x)[0], other, other)[0]
        else:
            held = self.attn(x, other, other)[0]
            found = self.attn(held, held, held)[0]
        return self.head(found)


@pytest.mark.parametrize("itself_first", [True, False])
@pytest.mark.parametrize("options", [{"batch_first": True}, {"bias": False, "batch_first": True}])
def test_an_attention_that_is_called_as_a_cross_attention_too_is_left_in_float(
    options: dict[str, Any], itself_first: bool
):
    module, x = Shared(itself_first, **options).eval(), torch.randn(4, 6, 8)
    assert find_foldable(trace_model(module, x), module) == ()
    graph = analyze(module, x)
    assert "head" in {layer.name for layer in graph.layers}
    assert {"attn.in_proj_weight", "attn.out_proj.weight"} <= set(graph.leftovers)
    with torch.no_grad():
        torch.testing.assert_close(fold_batch_norm(module, ())(x), module(x))


def test_an_attention_called_twice_on_a_sequence_itself_is_written_out():
    class Twice(Shared):
        def forward(self, x: Tensor) -> Tensor:
            held = self.attn(x, x, x)[0]
            return self.head(self.attn(held, held, held)[0])

    module, x = Twice(True, batch_first=True).eval(), torch.randn(4, 6, 8)
    pairs = find_foldable(trace_model(module, x), module)
    assert pairs == (("attn", "attn.in_proj_weight"),)
    with torch.no_grad():
        torch.testing.assert_close(fold_batch_norm(module, pairs)(x), module(x), atol=1e-5, rtol=1e-5)
