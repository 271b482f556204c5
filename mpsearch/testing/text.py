"""A tiny text encoder with seeded weights, called as Hugging Face's are, and texts for it: tests need no
transformers and no download.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsearch.data import TokenSet
from mpsearch.models import TextModel

WIDTH, HEADS, VOCABULARY, LENGTH = 16, 2, 50, 12


class TinyLayer(nn.Module):
    """Attention and an MLP, each with a residual and a norm behind it, as BERT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`N x T x D` and what is added to the scores, `N x 1 x 1 x T` -> `N x T x D`."""
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.proj(mixed))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))  # type: ignore[no-any-return]


class TinyEncoder(nn.Module):
    """Embeddings and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.types = (
            nn.Embedding(VOCABULARY, WIDTH),
            nn.Embedding(LENGTH, WIDTH),
            nn.Embedding(2, WIDTH),
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList([TinyLayer(), TinyLayer()])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> SimpleNamespace:
        """`N x T` each, the mask as what is added to the scores; `last_hidden_state` is `N x T x D`."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.words(input_ids) + self.places(places)
        x = self.norm(x if token_type_ids is None else x + self.types(token_type_ids))
        for layer in self.layers:
            x = layer(x, attention_mask)
        return SimpleNamespace(last_hidden_state=x)


def tiny_text(head: nn.Module | None = None, pooling: str = "mean", seed: int = 0) -> TextModel:
    """The encoder with a pooling and perhaps a head, in eval mode; torch's own generator is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TextModel(TinyEncoder(), head, pooling)  # type: ignore[arg-type]
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)
    return model.eval()


def tiny_tokens(count: int = 48, fields: int = 2, seed: int = 0) -> TokenSet:
    """Random token numbers of random lengths, padded with 0; no labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (count, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).to(ids)
    rows = [ids * mask, mask, (torch.arange(LENGTH) >= lengths // 2).to(ids) * mask]
    return TokenSet(torch.stack(rows[:fields], 1).to(torch.int32), name="random tokens")
