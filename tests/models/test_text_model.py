"""Text encoders as modules of one tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpsearch.errors import ModelError
from mpsearch.models import SpanHead, TextModel, analyze
from mpsearch.models.text import added_mask
from mpsearch.testing.text import tiny_text, tiny_tokens

KINDS = {
    "embedding": (None, "mean", (6, 16)),
    "class": (nn.Linear(16, 3), "first", (6, 3)),
    "span": (SpanHead(16), "none", (6, 2, 12)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs(kind):
    head, pooling, shape = KINDS[kind]
    with torch.no_grad():
        found = tiny_text(head, pooling)(tiny_tokens(6, fields=3).inputs())
    assert found.shape == shape
    if kind == "embedding":
        torch.testing.assert_close(found.norm(dim=1), torch.ones(6))


def test_what_is_padded_does_not_count():
    model, tokens = tiny_text(), tiny_tokens(6).inputs()
    other = tokens.clone()
    other[:, 0] += (1 - tokens[:, 1]) * 7
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), model(other))
    assert added_mask(torch.tensor([[1, 0]])).flatten().tolist() == [0, torch.finfo(torch.float32).min]


def test_units_products_and_blocks():
    found = analyze(tiny_text(SpanHead(16), "none"), tiny_tokens(2, fields=3).inputs())
    assert [(block.name, len(block.units)) for block in found.blocks] == [
        ("encoder.layers.0", 8),
        ("encoder.layers.1", 8),
        ("head.scores", 1),
    ]
    assert [layer.name for layer in found.layers if layer.op == "matmul"] == [
        f"encoder.layers.{i}.matmul{j}" for i in range(2) for j in range(2)
    ]
    assert {layer.tie for layer in found.layers} == {None, "encoder.layers.0.query", "encoder.layers.1.query"}
    assert found.unused == found.leftovers == ()


def test_tokens_of_another_form_are_refused():
    with pytest.raises(ModelError, match="does not take an input of shape"):
        analyze(tiny_text(), torch.ones(2, 2, 99, dtype=torch.int64))


def test_a_bert_of_transformers():
    """Its own blocks, and the outputs that it has with a plain mask."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    torch.manual_seed(0)
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    model, tokens = TextModel(bert, pooling="first"), tiny_tokens(6, fields=3).inputs()
    with torch.no_grad():
        plain = bert(
            input_ids=tokens[:, 0], attention_mask=tokens[:, 1], token_type_ids=tokens[:, 2]
        ).last_hidden_state[:, 0]
        torch.testing.assert_close(model(tokens), nn.functional.normalize(plain, dim=-1))
    found = analyze(model, tokens)
    assert [(block.name, len(block.units)) for block in found.blocks] == [
        ("encoder.encoder.layer.0", 8),
        ("encoder.encoder.layer.1", 8),
    ]
