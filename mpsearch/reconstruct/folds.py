"""Which normalisations can be folded into the linear layers behind them, tried on one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsearch.models.record import trace_model
from mpsearch.models.trace import Op, Trace
from mpsearch.models.tree import holders, is_own_weight
from mpsearch.pytrees import Inputs

_MOVES = {
    *(
        "view",
        "reshape",
        "_unsafe_view",
        "permute",
        "transpose",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "expand",
        "select",
        "slice",
        "split",
    ),
    *("chunk", "unbind", "getitem", "index_select", "roll", "pad", "constant_pad_nd", "mean"),
}
"""Operations that give what they read at another place, or averages of it. Whether the channels are still the
last axis is tried, not read off.
"""


@dataclass(frozen=True)
class Fold:
    """A normalisation and the linear layers that alone read it.

    Args:
        norm: Name of a LayerNorm, or of a module whose forward is alpha * x + beta on the last axis.
        linears: Names of the readers, in order of execution.
    """

    norm: str
    linears: tuple[str, ...]


def find_folds(module: nn.Module, example: Inputs) -> tuple[Fold, ...]:
    """The normalisations whose scale and shift can be folded into the linear layers behind them, in order of
    execution.

    One forward pass is traced for who reads what; a second one, in which each normalisation gives its
    channels' numbers, shows whether each reader meets channel j, and nothing else, at place j of its last
    axis: a token-mixing layer reads the transposed tensor, a padded window holds zeros, and neither can be
    folded.

    Args:
        module: Float model in eval mode; left as found.
        example: N x C x H x W; the first image is used.
    """
    trace = trace_model(module, example)
    found = [
        Fold(name, linears)
        for name in trace.calls
        if _is_affine(module, name) and (linears := _readers(trace, module, name))
    ]
    aligned = _aligned(module, found, example[:1].detach())
    return tuple(fold for fold in found if aligned.issuperset(fold.linears))


def _is_affine(module: nn.Module, name: str) -> bool:
    """Whether a module normalises or scales and shifts the last axis with parameters of its own."""
    norm = module.get_submodule(name)
    if not _is_alone(module, norm):
        return False
    if isinstance(norm, nn.LayerNorm):
        return len(norm.normalized_shape) == 1
    gain, offset = norm._parameters.get("alpha"), norm._parameters.get("beta")
    if len(norm._parameters) != 2 or gain is None or offset is None or gain.numel() != offset.numel():
        return False
    probe = torch.linspace(-1, 1, 3 * gain.numel(), device="cpu").to(gain).view(1, 3, -1)
    try:
        given = norm(probe)
    except (RuntimeError, TypeError):  # alpha and beta of something else
        return False
    wanted = (probe * gain.flatten() + offset.flatten()).detach()
    return isinstance(given, Tensor) and torch.allclose(
        given, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().amax())
    )


def _is_alone(module: nn.Module, part: nn.Module) -> bool:
    """Whether a module and its parameters are each held in one place of the model."""
    return len(holders(module, part)) == 1 and all(
        len(holders(module, parameter)) == 1 for parameter in part.parameters()
    )


def _readers(trace: Trace, module: nn.Module, norm: str) -> tuple[str, ...]:
    """The linear layers that read what a normalisation gives, if all of it goes there and nothing else goes
    there; else none.
    """
    given = {op.id for ops in trace.calls[norm].values() for op in ops}
    inside = {op.id for ops in trace.calls[norm].values() for op in ops}
    todo, carriers, found = list(given), set(given), dict[str, None]()
    while todo:
        tensor = todo.pop()
        if tensor == trace.output:
            return ()
        for op in trace.users.get(tensor, ()):
            if op.id in inside:
                continue
            if _is_reader(trace, module, op, tensor):
                found[op.path] = None
            elif op.kind not in _MOVES:
                return ()
            elif op.id not in carriers:
                carriers.add(op.id)
                todo.append(op.id)
    only = all(
        op.operands[0] in carriers
        for name in found
        for ops in trace.calls[name].values()
        for op in ops
        if op.kind == "linear"
    )
    order = list(trace.calls)
    return tuple(sorted(found, key=order.index)) if only else ()


def _is_reader(trace: Trace, module: nn.Module, op: Op, tensor: int) -> bool:
    """Whether an operation is an `nn.Linear` on the tensor, with a weight and a bias that no other module
    holds.
    """
    layer = module.get_submodule(op.path)
    if op.kind != "linear" or not isinstance(layer, nn.Linear) or op.operands[0] != tensor:
        return False
    weight = trace.constant.get(op.operands[1])
    own = weight is not None and is_own_weight(module, op.path, weight.name)
    return own and _is_alone(module, layer)


def _aligned(module: nn.Module, folds: Sequence[Fold], image: Inputs) -> set[str]:
    """The linear layers that meet the number j + 1 at place j of the last axis, in every row, when each
    normalisation gives that.
    """
    seen: dict[str, bool] = {}

    def mark(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _numbers(output).expand_as(output).contiguous()

    def look(name: str) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = seen.get(name, True) and torch.allclose(
                args[0], _numbers(args[0]).expand_as(args[0]), rtol=1e-5
            )

        handles.append(module.get_submodule(name).register_forward_pre_hook(hook))

    handles = [module.get_submodule(fold.norm).register_forward_hook(mark) for fold in folds]
    try:
        for fold in folds:
            for name in fold.linears:
                look(name)
        module(image)
    finally:
        for handle in handles:
            handle.remove()
    return {name for name, fits in seen.items() if fits}


def _numbers(x: Tensor) -> Tensor:
    return torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
