"""torch's fused attention written out, so that the operands of its two products can be quantised."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError

Operands = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Quantises both operands of a product."""
Scores = Callable[[Tensor], Tensor]
"""Quantises what the softmax reads."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    first: Operands | None = None,
    second: Operands | None = None,
    scores: Scores | None = None,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` step by step, with quantised operands.

    The left operand of the first product is the query as it is given; the scale is applied to the scores.

    Args:
        query: ... x H x L x E.
        key: ... x H x S x E.
        value: ... x H x S x V.
        attn_mask: Broadcast to ... x H x L x S; boolean (True takes part) or added to the scores.
        dropout_p: Share of the probabilities that is dropped.
        is_causal: Whether a query sees no later key; not together with a mask.
        scale: Scale of the scores; 1 / sqrt(E) where None.
        enable_gqa: Whether fewer heads of keys and values are shared by the heads of queries.
        first: Quantisers of query and key.
        second: Quantisers of probabilities and value.
        scores: Quantiser of the scaled scores, before any mask.
    Raises: ModelError: Both a mask and `is_causal` are given.
    """
    if is_causal and attn_mask is not None:
        raise ModelError(
            "Attention got both a mask and is_causal, of which torch takes one. Pass the mask alone."
        )
    q, k = (query, key) if first is None else first(query, key)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        k = k.repeat_interleave(groups, -3)
    read = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    read = read if scores is None else scores(read)
    if is_causal:
        attn_mask = torch.ones(read.shape[-2:], dtype=torch.bool, device=read.device).tril()
    if attn_mask is not None:
        read = read.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else read + attn_mask
    probabilities = nn.functional.dropout(_softmax(read, masked=attn_mask is not None), dropout_p)
    p, v = (probabilities, value) if second is None else second(probabilities, value)
    return p @ (v.repeat_interleave(groups, -3) if enable_gqa else v)


def _softmax(scores: Tensor, masked: bool) -> Tensor:
    """Over the last axis; a row whose every score is masked gives zeros, as in torch's attention."""
    if not masked:
        return scores.softmax(-1)
    empty = scores.isneginf().all(-1, keepdim=True)
    return scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
