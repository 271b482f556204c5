"""Batch norms folded into the convolution or linear layer before them, and weights that layers compute put
into their place.

After both, the weight that is quantised is the weight that runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mpsearch.errors import ModelError
from mpsearch.models.attention import MARK, SEPARATE, borrows_weight, is_self_attention, write_out
from mpsearch.models.bake import bake, is_bakeable
from mpsearch.models.trace import Op, Trace
from mpsearch.models.tree import copied, holders, is_own_weight

_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm
_AFTER_NORM = ("drop", "act")  # children of timm's BatchNormAct2d that run after the norm


def find_foldable(trace: Trace, module: nn.Module) -> tuple[tuple[str, str], ...]:
    """(layer, batch norm) for each batch norm that reads what one convolution or linear layer alone gives to
    it alone, and before it (layer, its weight).

    The latter, such as `("stem", "stem.weight")`, is for layers that compute the weight that they multiply
    by: `mpsearch.models.bake`; and `("attn", "attn.in_proj_weight")` for attentions that can be written out,
    `("attn", "attn.qkv_bias_separate")` for those that can be switched to call their projection:
    `mpsearch.models.attention`. A layer or a norm that is called more than once, shares its weight, or is
    registered under two names is left alone, and so is a norm without running statistics or with a forward of
    its own.

    Args:
        trace: Trace of `module`.
        module: Model with its batch norms.
    Returns: Names in order of execution.
    """
    pairs = []
    for op in trace.ops:
        if is_bakeable(trace, op, module):
            pairs.append((op.path, f"{op.path}.weight"))
        elif is_self_attention(trace, op, module):
            pairs.append((op.path, f"{op.path}.{MARK}"))
        elif borrows_weight(trace, op, module):
            pairs.append((op.path, f"{op.path}.{SEPARATE}"))
    pairs = list(dict.fromkeys(pairs))
    for norm in trace.ops:
        layer = trace.producer.get(norm.inputs[0]) if norm.kind == "batch_norm" else None
        if layer is None or len(trace.calls[norm.path]) != 1 or len(trace.calls[layer.path]) != 1:
            continue
        if (
            _feeds_only(trace, layer, norm)
            and _is_layer(trace, layer, module)
            and _is_norm(trace, norm, module)
        ):
            pairs.append((layer.path, norm.path))
    return tuple(pairs)


def fold_batch_norm(module: nn.Module, pairs: Iterable[tuple[str, str]]) -> nn.Module:
    """A copy of the model in eval mode whose named batch norms are folded into their layers, in float64
    arithmetic, and whose named weights are computed.

    A folded norm becomes `Identity`, or the activation that it holds (timm's BatchNormAct2d). Only names and
    shapes are read, so that recorded pairs fold a freshly built model into the form of a checkpoint.

    Args:
        module: Left as it is.
        pairs: (layer, batch norm) or (layer, its weight), as `find_foldable` gives them.
    Raises: ModelError: A name is not in the model, or is of something that cannot be folded.
    """
    folded = copied(module).eval()
    for layer_name, norm_name in pairs:
        layer = _get(folded, layer_name)
        if norm_name == f"{layer_name}.weight" and isinstance(layer, nn.Conv2d | nn.Linear):
            bake(layer)
            continue
        if norm_name == f"{layer_name}.{MARK}" and isinstance(layer, nn.MultiheadAttention):
            write_out(layer)
            continue
        if norm_name == f"{layer_name}.{SEPARATE}" and hasattr(layer, SEPARATE):
            setattr(layer, SEPARATE, True)
            continue
        norm = _get(folded, norm_name)
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not isinstance(norm, _Norm):
            raise ModelError(
                f"{norm_name!r} ({type(norm).__name__}) cannot be folded into {layer_name!r} "
                f"({type(layer).__name__}): "
                "it takes a batch norm and a convolution or linear layer. The pairs belong to another model."
            )
        _fold_one(layer, norm, layer_name, norm_name)
        for parent, attribute in holders(folded, norm):
            setattr(parent, attribute, _rest(norm))
    return folded


def _feeds_only(trace: Trace, layer: Op, norm: Op) -> bool:
    return trace.users.get(layer.id) == (norm,) and layer.id != trace.output


def _is_layer(trace: Trace, op: Op, module: nn.Module) -> bool:
    """Whether the op is a layer that uses its own weight and gives channels on axis 1, where a batch norm has
    them.
    """
    if op.kind not in ("conv2d", "linear") or len(op.shape) != (4 if op.kind == "conv2d" else 2):
        return False
    layer, weight = module.get_submodule(op.path), trace.constant.get(op.operands[1])
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return False
    own = weight is not None and is_own_weight(module, op.path, weight.name)
    return (own or is_bakeable(trace, op, module)) and _is_single(module, layer)


def _is_norm(trace: Trace, op: Op, module: nn.Module) -> bool:
    norm = module.get_submodule(op.path)
    if not isinstance(norm, _Norm) or norm.running_mean is None or not _is_single(module, norm):
        return False
    kept = {f"{op.path}.{child}" for child in _AFTER_NORM}
    own = [o for o in trace.calls[op.path][op.call] if not any(f.path in kept for f in o.stack)]
    return own == [op]


def _is_single(module: nn.Module, layer: nn.Module) -> bool:
    held: list[nn.Module | nn.Parameter] = [layer, *layer.parameters(recurse=False)]
    return all(len(holders(module, one)) == 1 for one in held)


def _fold_one(layer: nn.Conv2d | nn.Linear, norm: _Norm, layer_name: str, norm_name: str) -> None:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or len(mean) != len(layer.weight):
        raise ModelError(
            f"Batch norm {norm_name!r} does not fit the {len(layer.weight)} outputs of {layer_name!r}. "
            "The pairs belong to another model."
        )
    with torch.no_grad():
        weight, bias = layer.weight, layer.bias
        factor = torch.rsqrt(var.double() + norm.eps) * (1.0 if norm.weight is None else norm.weight.double())
        shift = ((0.0 if bias is None else bias.double()) - mean.double()) * factor + (
            0.0 if norm.bias is None else norm.bias.double()
        )
        scaled = weight.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))
        layer.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=weight.requires_grad)
        layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)


def _rest(norm: nn.Module) -> nn.Module:
    """What a batch norm module does after the norm itself."""
    children = [norm._modules.get(name) for name in _AFTER_NORM]
    kept = [m for m in children if m is not None and not isinstance(m, nn.Identity)]
    return nn.Sequential(*kept).eval() if kept else nn.Identity()


def _get(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise ModelError(
            f"The model has no module {name!r} to fold. The pairs belong to another model."
        ) from None
