"""Random small nets that read and give random nested tensors: what tests of any model are made of."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsearch.models import Form, as_batch, bound, observe_form
from mpsearch.pytrees import Inputs, flatten

WIDTH, SIDE, TOKENS, WORDS = 8, 6, 5, 11
"""Channels between parts of a net, height and width of a map, tokens of a text, and its vocabulary."""


@dataclass
class Pair:
    """A dataclass that torch's pytrees do not know."""

    first: Any
    second: Any = None


class Named(NamedTuple):
    """A named tuple."""

    first: Any
    second: Any


@dataclass
class NestedNet:
    """A net with what a test needs to know of it.

    Args:
        module: As its author wrote it, in eval mode.
        bound: Called with a batch.
        form: What it reads and gives.
        inputs: Samples.
        called: Its convolutions and linear layers that run.
    """

    module: nn.Module
    bound: nn.Module
    form: Form
    inputs: Inputs
    called: set[str] = field(default_factory=set)


class _Net(nn.Module):
    """One part for each input, which gives N x `WIDTH`; their sum is read by the heads."""

    def __init__(self, draw: random.Random, kinds: Sequence[str], heads: Sequence[str]) -> None:
        super().__init__()
        self.kinds, self.heads = list(kinds), list(heads)
        self.parts = nn.ModuleList(_part(draw, kind) for kind in kinds)
        self.spatial = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.ends = nn.ModuleList(_end(draw, head) for head in heads)
        self.idle = nn.Linear(3, 3)  # is never called
        self.register_buffer("anchors", torch.randn(4, 2))
        self.nest: Callable[[list[Any]], Any] = list

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Any nesting of its inputs, in order -> any nesting of its outputs."""
        given, _ = flatten((args, kwargs))
        x: Any = 0
        for kind, part, leaf in zip(self.kinds, self.parts, given, strict=True):
            x = x + _read(kind, part, leaf)
        return self.nest(
            [
                _give(head, end, x, self.get_buffer("anchors"))
                for head, end in zip(self.heads, self.ends, strict=True)
            ]
        )


def nested_net(seed: int, samples: int = 6) -> NestedNet:
    """A random net: one to four inputs (maps, vectors, tokens, masks), one to four outputs (vectors, maps,
    whole numbers, constants, nothing), all nested at random.

    Args:
        seed: The same one gives the same net; torch's own generator is left as found.
        samples: N.
    """
    draw = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kinds = draw.choices(["map", "vector", "tokens", "mask"], k=draw.randint(1, 4))
        heads = [
            "vector",
            *draw.choices(["vector", "map", "whole", "constant", "nothing"], k=draw.randint(0, 3)),
        ]
        if "map" not in kinds and "vector" not in kinds:
            kinds.append("vector")
        draw.shuffle(heads)
        module = _Net(draw, kinds, heads).eval()
        module.nest = _nesting(draw)
        leaves = [_drawn(kind, samples) for kind in kinds]
        args, kwargs = _arguments(draw, leaves)
        found, call = flatten((args, kwargs))
        inputs = as_batch(found, call)
        form = observe_form(module, inputs, call)
    called = {f"parts.{i}.{j}" for i, kind in enumerate(kinds) for j in _weighted(module.parts[i])}
    called |= {f"ends.{i}.{j}" for i, _ in enumerate(heads) for j in _weighted(module.ends[i])}
    return NestedNet(module, bound(module, form), form, inputs, called)


def _weighted(part: nn.Module) -> list[str]:
    return [name for name, m in part.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def _part(draw: random.Random, kind: str) -> nn.Module:
    if kind == "map":
        groups = draw.choice([1, 2])
        convs = [nn.Conv2d(4, WIDTH, draw.choice([1, 3]), padding="same", groups=groups), nn.ReLU()]
        more = [
            nn.Conv2d(WIDTH, WIDTH, 3, stride=draw.choice([1, 2]), padding=1),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
        ]
        return nn.Sequential(*convs, *(more if draw.random() < 0.5 else []))
    if kind == "tokens":
        return nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())
    return nn.Sequential(nn.Linear(TOKENS, WIDTH, bias=draw.random() < 0.7), nn.Tanh())


def _read(kind: str, part: nn.Module, leaf: Tensor) -> Tensor:
    """N x `WIDTH`."""
    found: Tensor = part(leaf.float() if kind == "mask" else leaf)
    return found.mean((2, 3)) if kind == "map" else found.mean(1) if kind == "tokens" else found


def _end(draw: random.Random, head: str) -> nn.Module:
    if head == "map":
        return nn.Sequential(nn.Conv2d(WIDTH, 3, 1))
    return (
        nn.Sequential(nn.Linear(WIDTH, draw.choice([2, 3]))) if head in ("vector", "whole") else nn.Identity()
    )


def _give(head: str, end: nn.Module, x: Tensor, anchors: Tensor) -> Any:
    if head == "map":
        return end(F.relu(x)[:, :, None, None].expand(-1, -1, SIDE, SIDE))
    if head == "whole":
        return end(x).argmax(1)
    return {"vector": end(x), "constant": anchors, "nothing": None}[head]


def _drawn(kind: str, samples: int) -> Tensor:
    if kind == "map":
        return torch.randn(samples, 4, SIDE, SIDE)
    if kind == "tokens":
        return torch.randint(WORDS, (samples, TOKENS))
    return torch.rand(samples, TOKENS) > 0.3 if kind == "mask" else torch.randn(samples, TOKENS)


def _arguments(draw: random.Random, leaves: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Some by position, the others by name, each perhaps within a container."""
    cut = draw.randint(0, len(leaves))
    args = [_within(draw, [leaf]) if draw.random() < 0.3 else leaf for leaf in leaves[:cut]]
    rest = leaves[cut:]
    if len(rest) > 1 and draw.random() < 0.5:
        return tuple(args), {"held": _within(draw, rest)}
    return tuple(args), {f"x{place}": leaf for place, leaf in enumerate(rest)}


def _within(draw: random.Random, leaves: list[Any]) -> Any:
    kind = draw.choice(["list", "tuple", "dict", "nested"])
    if kind == "dict":
        return {f"k{place}": leaf for place, leaf in enumerate(leaves)}
    if kind == "nested":
        return [leaves[0], tuple(leaves[1:])]
    return leaves if kind == "list" else tuple(leaves)


def _nesting(draw: random.Random) -> Callable[[list[Any]], Any]:
    def pair(found: list[Any]) -> Any:
        return Pair(found[0], found[1:])

    def named(found: list[Any]) -> Any:
        return Named({"here": found[0]}, Pair(tuple(found[1:])))

    def by_key(found: list[Any]) -> Any:
        return {f"out{place}": value for place, value in enumerate(found)}

    def single(found: list[Any]) -> Any:
        return found[0] if len(found) == 1 else tuple(found)

    ways: list[Callable[[list[Any]], Any]] = [pair, named, by_key, single, list]
    return draw.choice(ways)
