"""Text encoders as modules of one tensor in, one tensor out, which is what tracing, calibration,
reconstruction and export take.

Nothing of transformers is imported: any module serves that is called as Hugging Face's encoders are.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextModel(nn.Module):
    """An encoder, a pooling, and perhaps a head, on stacked tokens.

    The mask is handed to the encoder as what is added to the attention scores, `N x 1 x 1 x T`, 0 or the
    least float: in this form transformers takes it as it is. From the plain mask it would make `N x 1 x T x
    T`, or none where a batch has no padding, so that chunks of one calibration set would take different ways.

    Args:
        encoder: Called with `input_ids`, `attention_mask` and, if the tokens have three rows,
            `token_type_ids`; gives `last_hidden_state`, `N x T x D`.
        head: From what the pooling gives to the output; None for the pooled states themselves, normalised: an
            embedding.
        pooling: `mean` of the states of the tokens that count, `N x D`; `first` state, `N x D`; or `none`, `N
            x T x D`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module | None = None,
        pooling: Literal["mean", "first", "none"] = "mean",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.pooling = pooling

    def forward(self, tokens: Tensor) -> Tensor:
        """`N x F x T` int64 (ids, mask, perhaps types) -> `N x D` of length 1, or what the head gives."""
        types = {"token_type_ids": tokens[:, 2]} if tokens.shape[1] == 3 else {}
        states = self.encoder(
            input_ids=tokens[:, 0], attention_mask=added_mask(tokens[:, 1]), **types
        ).last_hidden_state
        pooled = self._pool(states, tokens[:, 1])
        result: Tensor = F.normalize(pooled, dim=-1) if self.head is None else self.head(pooled)
        return result

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "mean":
            counted = mask.unsqueeze(-1).to(states.dtype)
            return (states * counted).sum(1) / counted.sum(1)
        return states[:, 0] if self.pooling == "first" else states


class SpanHead(nn.Module):
    """Where an answer starts and ends: two logits for each token. The one linear layer is a unit as any
    other.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scores = nn.Linear(width, 2)

    def forward(self, states: Tensor) -> Tensor:
        """`N x T x D` -> `N x 2 x T`."""
        return self.scores(states).transpose(1, 2)  # type: ignore[no-any-return]


def added_mask(mask: Tensor) -> Tensor:
    """`N x T`, 1 where a token counts -> `N x 1 x 1 x T` float32: 0 there and the least float elsewhere."""
    return (1.0 - mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
