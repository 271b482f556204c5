"""How modules are really called: what a trace does not say, seen in two float passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mpsearch.errors import ModelError
from mpsearch.foreign import first_line
from mpsearch.models.tree import prepared
from mpsearch.pytrees import Inputs, joined, shapes

_Sizes = list[tuple[int, int] | None]
"""Rows of the input and of the output of each call; None where one of them is no tensor with rows."""


@dataclass(frozen=True)
class Calls:
    """What two passes saw.

    Args:
        one_tensor: Modules whose every call was given a tensor as its first positional argument, and gave
            one.
        by_image: Those of them whose two tensors have the images on axis 0: as many rows in as out, and twice
            as many for two images.
        given: Module -> most tensors that a call of it was given, read or not, in whatever sequences.
    """

    one_tensor: frozenset[str]
    by_image: frozenset[str]
    given: Mapping[str, int]


def observe_calls(module: nn.Module, image: Inputs, names: Iterable[str]) -> Calls:
    """Run the model on one image and on two, and see how the named modules are called.

    Args:
        module: Left as found.
        image: 1 x C x H x W, or 1 x ... of what else the model reads.
        names: Modules to watch.
    Raises: ModelError: The model takes no two images at once.
    """
    watched = {name: module.get_submodule(name) for name in dict.fromkeys(names)}
    given: Counter[str] = Counter()
    one, two = (_pass(module, images, watched, given) for images in (image, joined([image, image])))
    tensors = {name for name in watched if one[name] and two[name] and None not in one[name] + two[name]}
    return Calls(
        frozenset(tensors), frozenset(name for name in tensors if _doubles(one[name], two[name])), given
    )


def _pass(
    module: nn.Module, images: Inputs, watched: dict[str, nn.Module], given: Counter[str]
) -> dict[str, _Sizes]:
    found: dict[str, _Sizes] = {name: [] for name in watched}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given[name] = max(
                given[name], sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs)))
            )
            rows = [len(t) for t in (*args[:1], output) if isinstance(t, Tensor) and t.ndim > 1]
            found[name].append((rows[0], rows[1]) if len(rows) == 2 else None)

        return hook

    handles = [m.register_forward_hook(watch(name), with_kwargs=True) for name, m in watched.items()]
    try:
        with prepared(module), torch.no_grad():
            module(images)
    except Exception as error:  # a model may raise anything on a batch that it does not take
        raise ModelError(
            f"The model does not take {len(images)} images at once, shape {shapes(images)}: "
            f"{first_line(error)} Let its forward take any number."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found


def _doubles(one: _Sizes, two: _Sizes) -> bool:
    """Whether every call has as many rows out as in, and twice as many for two images as for one."""
    pairs = zip(one, two, strict=False)
    return len(one) == len(two) and all(
        a is not None and b is not None and a[0] == a[1] and b[0] == b[1] == 2 * a[0] for a, b in pairs
    )
