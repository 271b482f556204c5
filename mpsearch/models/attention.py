"""Attentions with their projections as layers of their own, which they hand to one function as bare weights
otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mpsearch.errors import ModelError
from mpsearch.models.trace import Op, Trace
from mpsearch.models.tree import holders

MARK = "in_proj_weight"
SEPARATE = "qkv_bias_separate"
"""timm's own switch on the attentions of BEiT, EVA and Swin V2: the projection is called as a layer, and its
bias, which is put together from parts, added.
"""


def is_self_attention(trace: Trace, op: Op, module: nn.Module) -> bool:
    """Whether an operation is the joint projection of queries, keys and values in an `nn.MultiheadAttention`
    that can be written out.

    That takes one tensor as all three at every call: an attention that is called as a cross-attention too is
    left as it is, in float.
    """
    if op.kind != "linear" or not op.path:
        return False
    attention, weight = module.get_submodule(op.path), trace.constant.get(op.operands[1])
    if type(attention) is not nn.MultiheadAttention or weight is None or weight.name != f"{op.path}.{MARK}":
        return False
    plain = attention.bias_k is None and not attention.add_zero_attn
    return (
        plain
        and _at_every_call(trace, op)
        and len(holders(module, attention)) == 1
        and all(len(holders(module, p)) == 1 for p in attention.parameters())
    )


def borrows_weight(trace: Trace, op: Op, module: nn.Module) -> bool:
    """Whether an operation is the projection of an attention that multiplies by the weight of its `qkv`
    without calling it, and can be switched to call it.
    """
    if op.kind != "linear" or not op.path:
        return False
    attention, weight = module.get_submodule(op.path), trace.constant.get(op.operands[1])
    layer, switch = attention._modules.get("qkv"), getattr(attention, SEPARATE, None)
    borrowed = weight is not None and weight.name == f"{op.path}.qkv.weight"
    return switch is False and isinstance(layer, nn.Linear) and borrowed and _at_every_call(trace, op)


def _at_every_call(trace: Trace, op: Op) -> bool:
    """Whether each call of the operation's module multiplies by the same constant, once."""
    calls = trace.calls[op.path].values()
    return all(
        sum(o.kind == "linear" and o.path == op.path and o.operands[1] == op.operands[1] for o in ops) == 1
        for ops in calls
    )


def write_out(attention: nn.MultiheadAttention) -> None:
    """Give an attention, in place, a child `in_proj` for its joint projection, and a forward that calls this
    and `out_proj`.
    """
    weight, bias = attention._parameters.pop(MARK), attention._parameters.pop("in_proj_bias")
    if weight is None:
        raise ModelError(
            "The attention has no joint projection of queries, keys and values. The pairs belong to "
            "another model."
        )
    projection = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    projection.weight, projection.bias = weight, bias  # type: ignore[assignment]
    attention.__class__ = SelfAttention
    attention.in_proj = projection
    attention.eval()


class SelfAttention(nn.MultiheadAttention):
    """What an `nn.MultiheadAttention` becomes; it takes one tensor as query, key and value, without dropout,
    and computes the same.
    """

    in_proj: nn.Linear

    @property
    def in_proj_weight(self) -> Any:  # type: ignore[override]
        """The input projection's weight; `nn.TransformerEncoderLayer` asks for it."""
        return self.in_proj.weight

    @property
    def in_proj_bias(self) -> Any:  # type: ignore[override]
        """The input projection's bias, for the same reason."""
        return self.in_proj.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`; `is_causal` is a hint about the mask there, and is not needed here.

        Raises: ModelError: Query, key and value are not one tensor, or the model is in training mode.
        """
        if key is not query or value is not query or (self.training and self.dropout > 0):
            raise ModelError(
                "This attention was written out for one tensor as query, key and value, without dropout. "
                "Call it as when it was analysed."
            )
        x = query.unsqueeze(0) if query.ndim == 2 else query if self.batch_first else query.transpose(0, 1)
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.in_proj(x).chunk(3, -1)
        )
        mask = self._mask(attn_mask, key_padding_mask, x)
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            probabilities = (scores if mask is None else scores + mask).softmax(-1)
            mixed = probabilities @ v
            weights = probabilities.mean(1) if average_attn_weights else probabilities
        else:
            mixed = scaled_dot_product_attention(q, k, v, mask)
        y = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if query.ndim == 2:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, x: Tensor) -> Tensor | None:
        """The sum of both masks, broadcast to N x heads x L x S."""
        masks = []
        if attn_mask is not None:
            masks.append(
                _added(attn_mask, x)
                if attn_mask.ndim == 2
                else _added(attn_mask, x).view(-1, self.num_heads, *attn_mask.shape[1:])
            )
        if key_padding_mask is not None:
            masks.append(_added(key_padding_mask, x).reshape(len(x), 1, 1, -1))
        return None if not masks else masks[0] if len(masks) == 1 else masks[0] + masks[1]


def _added(mask: Tensor, x: Tensor) -> Tensor:
    """A mask as numbers to be added to scores; True of a boolean one hides, as in `nn.MultiheadAttention`."""
    return (
        torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill(mask, -torch.inf)
        if mask.dtype == torch.bool
        else mask.to(x.dtype)
    )
