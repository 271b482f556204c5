"""Outputs of modules that assignments with the same beginning share: a forward pass that starts behind them.

A cut is a module whose output is all that the rest of the network depends on. Where the outputs of a cut are
kept for the choices that were made up to it, the pass does not run what lies before: modules there give
zeros, and the cut gives what was kept. That the rest really depends on nothing else is tried, not assumed:
with everything before a cut replaced by NaN, and by noise, the logits must be the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.pytrees import Inputs

MOST_CUTS = 8
"""Cuts whose outputs are kept, spread over the network."""
# modules of one part of the network that are tried, from its end, until one is a cut; a block has fewer
_TRIES = 12
MOST_PROBES = 2 + 2 * MOST_CUTS * _TRIES
"""Passes of the example, at most, that finding the cuts takes; all but two of them start behind a cut."""


@dataclass(frozen=True)
class Cut:
    """A module behind which a pass may start.

    Args:
        place: Its number among the watched modules.
        units: Those that ran before its end, in order.
        bytes_for_image: Bytes of its output.
        overwritten: Whether a later operation writes into its output, so that a copy must be kept.
    """

    place: int
    units: tuple[str, ...]
    bytes_for_image: int
    overwritten: bool


class PrefixRunner:
    """Runs a module from its input or from behind any of its cuts.

    Args:
        module: In eval mode; its forwards are replaced for as long as it lives.
        units: Names of the modules whose state changes from pass to pass.
        example: B x ... input, B small.
        bytes_for_images: Most that the outputs of all cuts together may take.
        images: Images for which they are kept.
    """

    def __init__(
        self, module: nn.Module, units: Sequence[str], example: Inputs, bytes_for_images: int, images: int
    ) -> None:
        self._module, self._batch = module, len(example)
        self._watched = _around(module, units)
        self._given: dict[int, Tensor | Callable[[Tensor], Tensor]] = {}
        self._takes: Callable[[int, Tensor], None] | None = None
        self._nothing = torch.zeros(0, device=example.device)
        self._ended: list[int] = []
        self._started: list[str] = []
        self._originals = [m.forward for _, m in self._watched]
        for index, (name, watched) in enumerate(self._watched):
            watched.__dict__["forward"] = self._door(index, name, set(units))
        self.cuts = _within(self._find(example), bytes_for_images, images)

    def run(
        self,
        inputs: Inputs,
        start: Cut | None,
        kept: Tensor | None,
        take: Callable[[Cut, Tensor], None] | None = None,
    ) -> Tensor:
        """Logits of a batch.

        Args:
            inputs: B x ...
            start: Where the pass starts; None for the input.
            kept: Output of that cut for these inputs.
            take: Called with each later cut and its output, which may be kept and must not be written to.
        """
        by_place = {cut.place: cut for cut in self.cuts}
        after = -1 if start is None else self._order.index(start.place)
        given = {} if start is None or kept is None else self._before(start.place, kept, len(inputs))

        def taken(place: int, output: Tensor) -> None:
            if take is not None and place in by_place and self._order.index(place) > after:
                take(by_place[place], output.clone() if by_place[place].overwritten else output)

        return self._pass(inputs, given, taken)

    def _pass(
        self, inputs: Inputs, given: dict[int, Tensor], taken: Callable[[int, Tensor], None] | None
    ) -> Tensor:
        self._given, self._takes, self._ended, self._started = dict(given), taken, [], []
        try:
            with torch.no_grad():
                logits: Tensor = self._module(inputs)
                return logits.float()
        finally:
            self._given, self._takes = {}, None

    def _door(self, index: int, name: str, units: set[str]) -> Callable[..., Any]:
        original = self._originals[index]

        def forward(*args: Any, **kwargs: Any) -> Any:
            if index in self._given:
                return self._given[index]
            if name in units:
                self._started.append(name)
            output = original(*args, **kwargs)
            self._ended.append(index)
            if self._takes is not None:
                self._takes(index, output)
            return output

        return forward

    def _before(
        self, place: int, kept: Tensor, batch: int, fill: Callable[[torch.Size], Tensor] | None = None
    ) -> dict[int, Tensor]:
        """What modules give in a pass from behind `place`: an own copy where later operations write into
        it.
        """
        fill = fill or self._blank
        given = {
            i: fill(torch.Size((self._shapes[i][0] * batch // self._batch, *self._shapes[i][1:])))
            for i in self._order[: self._order.index(place)]
        }
        return {**given, place: kept.clone() if place in self._overwritten else kept}

    def _blank(self, shape: torch.Size) -> Tensor:
        """A tensor that nobody looks at; all are views of one piece of memory, for filling new ones takes as
        long as a layer.
        """
        if self._nothing.numel() < shape.numel():
            self._nothing = torch.zeros(shape.numel(), device=self._nothing.device)
        return self._nothing[: shape.numel()].view(shape)

    def _find(self, example: Inputs) -> list[Cut]:
        """At most `MOST_CUTS`, in order, each the last of its part of the network; its end is none."""
        outputs: dict[int, Tensor] = {}
        versions: dict[int, int] = {}
        began: dict[int, tuple[str, ...]] = {}

        def note(index: int, output: Any) -> None:
            outputs[index] = output
            versions[index] = output._version if isinstance(output, Tensor) else 0
            began[index] = tuple(dict.fromkeys(self._started))

        logits = self._pass(example, {}, note)
        once = self._ended
        if not all(
            isinstance(outputs[i], Tensor) and len(outputs[i]) % len(example) == 0 and once.count(i) == 1
            for i in once
        ):
            return []  # a module that gives no single tensor, or runs twice, cannot be passed by
        self._order, self._shapes = once, {i: outputs[i].shape for i in once}
        self._overwritten = {i for i in once if outputs[i]._version != versions[i]}
        clean: dict[int, Tensor] = {}
        self._pass(example, {}, lambda i, output: clean.update({i: output.clone()}))
        inner = [
            i for i in once if began[i] and began[i] != began[once[-1]]
        ]  # behind the first unit, before the last
        last = {began[i]: i for i in inner}  # of those behind the same units the last
        ends = [*last.values()]
        found = []
        for part in np.array_split(np.array(ends, dtype=int), min(MOST_CUTS, max(len(ends), 1))):
            place = next(
                (i for i in part[::-1][:_TRIES].tolist() if self._cuts(example, logits, i, clean[i])), None
            )
            if place is not None:
                found.append(
                    Cut(place, began[place], clean[place].nbytes // len(example), place in self._overwritten)
                )
        return found

    def _cuts(self, example: Inputs, logits: Tensor, place: int, output: Tensor) -> bool:
        fillings: list[Callable[[torch.Size], Tensor]] = [
            lambda shape: torch.full(shape, float("nan"), device=output.device),
            lambda shape: torch.full(shape, 37.0, device=output.device),
        ]
        try:
            return all(
                torch.equal(
                    logits, self._pass(example, self._before(place, output, len(example), fill), None)
                )
                for fill in fillings
            )
        except (
            RuntimeError,
            ValueError,
            IndexError,
        ):  # what lies before is used in a way that other values do not allow
            return False


def _within(cuts: list[Cut], most_bytes: int, images: int) -> list[Cut]:
    """Those whose outputs fit together; the largest are left out first."""
    few = list(cuts)
    while few and sum(cut.bytes_for_image for cut in few) * images > most_bytes:
        few.remove(max(few, key=lambda cut: cut.bytes_for_image))
    return few


def _around(module: nn.Module, units: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The units, and the modules that hold one, but the root and containers without a forward."""
    names = {".".join(unit.split(".")[:i]) for unit in units for i in range(1, len(unit.split(".")) + 1)}
    found = [
        (name, m)
        for name, m in module.named_modules()
        if name in names and not isinstance(m, nn.ModuleList | nn.ModuleDict)
    ]
    return found


def prefix_key(cut: Cut, choices: dict[str, Hashable]) -> tuple[Hashable, ...]:
    """What the output of a cut depends on."""
    return (cut.place, *(choices[unit] for unit in cut.units))
