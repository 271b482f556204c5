"""Whether a model is a function of its input: what is random, keeps a state or mixes the images of a batch
cannot be quantised.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.models.record import try_forward
from mpsearch.models.tree import prepared
from mpsearch.pytrees import Batch, Inputs, joined, leaves_of, like

_SAME, _BESIDE = 1e-4, 1e-2
"""Relative distance of two passes, and of a pass with another sample beside: sums in another order differ by
less, and what is computed in half precision; what is random by far more."""
_Passes = dict[tuple[str, int], tuple[Tensor | None, Tensor | None]]
"""(module, call) -> its input and output."""


def require_function(module: nn.Module, example: Inputs) -> Tensor:
    """Two passes must agree, and what a sample gives must not depend on the others of its batch.

    Args:
        module: Model of one batch in, one tensor out; in eval mode during the check, its modes as found
            afterwards.
        example: N x ..., of which the first sample is used, and an altered copy of it beside it.

    Returns: Output of the first sample, 1 x ...

    Raises: ModelError: They differ; names the innermost module that gave two outputs for one input.
    """
    one = example[:1].detach()
    two = joined([one, like(one, map(_altered, leaves_of(one)))])
    with prepared(module), torch.no_grad(), torch.random.fork_rng(devices=[]):
        output = try_forward(module, one)
        if not _same(output, module(one), _SAME):
            raise ModelError(
                f"The model gives two outputs for one input: {_first_odd(module, one, one, _SAME)} is "
                "random or keeps a state in "
                "eval mode. Switch that off there, as F.dropout(x, p, training=self.training) does."
            )
        try:
            beside = module(two)
        except Exception:  # a model that takes one sample alone is told so by what needs batches
            return output
        if len(beside) == 2 and not _same(output, beside[:1], _BESIDE):
            raise ModelError(
                "What the model gives for an image depends on the others of its batch: "
                f"{_first_odd(module, one, two, _BESIDE)} "
                "mixes them, as a batch norm without running statistics does. Give it statistics "
                "(track_running_stats=True)."
            )
    return output


def _altered(x: Tensor) -> Tensor:
    return 1 - 2 * x.flip(-1) if x.is_floating_point() else x.flip(-1)


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    distance = (one.double() - other.double()).norm()
    return bool(distance <= tolerance * one.double().norm()) or not bool(
        torch.isfinite(distance)
    )  # NaN is told elsewhere


def _first_odd(module: nn.Module, one: Inputs, other: Inputs, tolerance: float) -> str:
    """The first module to finish whose output for the first sample differs though its input does not."""
    first, second = _pass(module, one), _pass(module, other)
    for (path, call), (given, output) in first.items():
        given_again, again = second.get((path, call), (None, None))
        if given is None or given_again is None or output is None or again is None:
            continue
        if _same(given, given_again[: len(given)], tolerance) and not _same(
            output, again[: len(output)], tolerance
        ):
            kind = type(module.get_submodule(path)).__name__
            return f"{path} ({kind})" if path else kind
    return type(module).__name__


def _pass(module: nn.Module, inputs: Inputs) -> _Passes:
    """What every module read and gave, in the order in which they finished."""
    found: _Passes = {}
    read: dict[str, list[Tensor | None]] = {}

    def enter(path: str, _: nn.Module, given: tuple[object, ...]) -> None:
        read.setdefault(path, []).append(_copy(given))

    def leave(path: str, _: nn.Module, given: tuple[object, ...], output: object) -> None:
        found[path, len(read[path])] = read[path][-1], _copy((output,))

    with ExitStack() as stack:
        for path, m in module.named_modules():
            for handle in (
                m.register_forward_pre_hook(partial(enter, path)),
                m.register_forward_hook(partial(leave, path)),
            ):
                stack.callback(handle.remove)
        module(inputs)
    return found


def _copy(values: tuple[object, ...]) -> Tensor | None:
    """Of the first tensor; before a module changes it in place."""
    leaves = (leaf for value in values for leaf in (value.leaves if isinstance(value, Batch) else (value,)))
    return next((leaf.clone() for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), None)
