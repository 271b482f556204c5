"""Smoothing: outlier channels in front of linear layers are moved into their weights, in float and without
changing the function.

What is folded is a per-channel scale and, for SQ-b, a shift that centres each channel, so that a symmetric
grid wastes none of its range: with X the output of a normalisation that only linear layers read, x_hat = (X -
b) / s, W' = W diag(s), c' = c + W b.

References: Xiao et al., SmoothQuant, ICML 2023, arXiv:2211.10438, eq. 4; the shift is after Tai and Wu,
MPTQ-ViT, arXiv:2401.14895 (SQ-b), whose formula was not seen: here b is the middle of the channel's range.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from mpsearch.errors import DataError, ModelError, OptionError
from mpsearch.models.record import trace_model
from mpsearch.models.trace import Op, Trace
from mpsearch.models.tree import holders, is_own_weight
from mpsearch.pytrees import Inputs

LEAST = 1e-5
"""Smallest reach of a channel, and of a weight column, that a scale is computed from: as a share of the
greatest.
"""

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


@torch.no_grad()
def smooth(
    module: nn.Module,
    batches: Iterable[Inputs],
    *,
    alpha: float = 0.5,
    bias: bool = True,
    new_parameters: bool = True,
) -> nn.Module:
    """A copy of a float model that computes the same with channels of even reach in front of its linear
    layers.

    Args:
        module: Float model in eval mode; left as found.
        batches: Normalised inputs, B x C x H x W each, for the ranges of the channels.
        alpha: Share of a channel's reach that moves into the weights: s = max|X - b|^alpha / max|W|^(1 -
            alpha), the weight's maximum taken over all layers that read the channel.
        bias: SQ-b, which centres the channels; False is SmoothQuant. A layer without a bias gets one.
        new_parameters: Whether parameters may be added; else channels in front of a layer without a bias are
            not centred, and a normalisation without both its parameters stays as it is.

    Raises:
        OptionError: alpha is not between 0 and 1.
        DataError: No images.
        ModelError: The model has no normalisation that can be folded, or cannot be traced.
    """
    if not 0 <= alpha <= 1:
        raise OptionError(
            f"alpha is {alpha}; it must be from 0 (only the weights count) to 1 (only the activations count)."
        )
    feed = iter(batches)
    first = next(feed, None)
    if first is None:
        raise DataError("Smoothing got no images. Give at least one batch.")
    smoothed = copy.deepcopy(module)
    folds = find_folds(smoothed, first)
    if not new_parameters:
        folds = tuple(fold for fold in folds if all(p is not None for p in _affine(smoothed, fold)))
    if not folds:
        raise ModelError(
            "The model has no LayerNorm or per-channel affine whose output linear layers alone read, so "
            "there is nothing to smooth. Leave it out."
        )
    ranges = _channel_ranges(smoothed, [fold.norm for fold in folds], chain([first], feed))
    for fold in folds:
        biases = (smoothed.get_submodule(name)._parameters["bias"] for name in fold.linears)
        centred = bias and (new_parameters or all(b is not None for b in biases))
        _apply(smoothed, fold, *ranges[fold.norm], alpha, centred)
    return smoothed


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


def _channel_ranges(
    module: nn.Module, norms: Sequence[str], batches: Iterable[Inputs]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Least and greatest value, [C] each, of every channel that each normalisation gives."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> None:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            low, high = output.flatten(0, -2).aminmax(dim=0)
            seen = found.get(name)
            found[name] = (
                (low, high) if seen is None else (torch.minimum(seen[0], low), torch.maximum(seen[1], high))
            )

        handles.append(module.get_submodule(name).register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name in norms:
            watch(name)
        for batch in batches:
            module(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _affine(module: nn.Module, fold: Fold) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Scale and shift of a normalisation."""
    norm = module.get_submodule(fold.norm)
    names = ("weight", "bias") if isinstance(norm, nn.LayerNorm) else ("alpha", "beta")
    return norm._parameters[names[0]], norm._parameters[names[1]]


def _apply(module: nn.Module, fold: Fold, low: Tensor, high: Tensor, alpha: float, bias: bool) -> None:
    """Fold scale and shift into one normalisation and its readers; float64, so that the function stays the
    same to rounding.
    """
    linears = [module.get_submodule(name) for name in fold.linears]
    low, high = low.double(), high.double()
    shift = (low + high) / 2 if bias else torch.zeros_like(low)
    reach = _floored(torch.maximum(high - shift, shift - low))
    columns = _floored(
        torch.stack([linear.get_parameter("weight").double().abs().amax(0) for linear in linears]).amax(0)
    )
    scale = reach**alpha / columns ** (1 - alpha)
    _rescale(module.get_submodule(fold.norm), scale, shift)
    for linear in linears:
        weight = linear.get_parameter("weight")
        if bias:
            held = linear._parameters["bias"]
            moved = weight.double() @ shift + (0 if held is None else held.double())
            linear.register_parameter("bias", nn.Parameter(moved.to(weight.dtype)))
        weight.copy_(weight.double() * scale)


def _floored(reach: Tensor) -> Tensor:
    """No less than `LEAST` of the greatest; 1 where all are zero."""
    most = reach.amax()
    return torch.where(most > 0, reach.clamp(min=LEAST * most), 1.0)


def _rescale(norm: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Give (X - shift) / scale where the normalisation gave X."""
    gain, offset = ("weight", "bias") if isinstance(norm, nn.LayerNorm) else ("alpha", "beta")
    held = norm._parameters[gain], norm._parameters[offset]
    gains = torch.ones_like(scale) if held[0] is None else held[0].double()
    offsets = torch.zeros_like(scale) if held[1] is None else held[1].double()
    like = next((p for p in held if p is not None), None)
    dtype = torch.float32 if like is None else like.dtype
    for name, value, old in (
        (gain, gains / scale.view_as(gains), held[0]),
        (offset, (offsets - shift.view_as(offsets)) / scale.view_as(offsets), held[1]),
    ):
        norm.register_parameter(
            name, nn.Parameter(value.to(dtype), requires_grad=old is None or old.requires_grad)
        )
