"""A walk of the whole calibration set through a network, side by side, that halts in front of each block.

The set is cut into chunks. Each chunk is a coroutine inside the network's own forward, which halts where a
block is called; when all chunks have come to the same block, it is dealt with, and they go on. No prefix of
the network is ever run twice, and memory holds what crosses the boundaries of two blocks that follow each
other, not the intermediate results of the network on the whole set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.pytrees import Inputs


@dataclass
class Halt:
    """A chunk in front of a block.

    Args:
        block: Index of the block.
        x: What the block is to read.
        args: Its further arguments.
        kwargs: Its keyword arguments.
    """

    block: int
    x: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Answer = Callable[[int], Tensor]
"""From the number of a chunk to the output of the block for it."""


Arrived = Callable[[int, Halt], None]
"""From the number of a chunk and what it brings to a block."""


def walk(
    network: nn.Module,
    names: Sequence[str],
    chunks: Iterable[Inputs],
    at_block: Callable[[int, list[Halt]], Answer],
    arrived: Arrived = lambda number, halt: None,
) -> None:
    """Take the chunks through the network; their results are dropped.

    Args:
        network: In eval mode; its forward must call each block with one tensor, first, that has the images on
            axis 0.
        names: Module names of the blocks, in order of execution.
        chunks: Inputs; each is asked for when those before it have come to the first block.
        at_block: Called with a block's index and what each chunk brings to it; the function it returns is
            asked for the block's output for each chunk, in order.
        arrived: Called as soon as a chunk has come to a block.
    Raises: ModelError: The chunks come to different blocks, or the first thing that a block reads is no
        tensor.
    """
    runners: list[greenlet] = []
    with _doors(network, names), torch.no_grad():
        try:
            halts: list[Any] = []
            for chunk in chunks:
                runners.append(greenlet(network.forward))
                _come(halts, runners[-1].switch(chunk), names, arrived)
                del chunk
            while any(isinstance(halt, Halt) for halt in halts):
                answer, halts = at_block(halts[0].block, halts), []
                for number, runner in enumerate(runners):
                    _come(halts, runner.switch(answer(number)), names, arrived)
                del answer  # and with it what the block was given
        finally:
            for runner in runners:
                if not runner.dead:
                    runner.throw(GreenletExit)


def _come(halts: list[Any], halt: Any, names: Sequence[str], arrived: Arrived) -> None:
    """One more chunk has come to a block, or to the end."""
    halts.append(halt)
    if len({found.block if isinstance(found, Halt) else None for found in (halts[0], halt)}) > 1:
        raise ModelError(
            "The forward of the model takes different ways for different images, so its blocks cannot be "
            "reconstructed. Use --method nearest."
        )
    if isinstance(halt, Halt):
        if not isinstance(halt.x, Tensor):
            raise ModelError(
                f"Block {names[halt.block]!r} does not read one tensor with the images on axis 0 as its "
                "first argument. Use --method nearest."
            )
        arrived(len(halts) - 1, halt)


@contextmanager
def _doors(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """While it lasts, the call of a block halts its coroutine and gives what the walk answers."""
    modules = [network.get_submodule(name) for name in names]

    def door(index: int) -> Callable[..., Any]:
        def halt(x: Any = None, *args: Any, **kwargs: Any) -> Any:
            walker = getcurrent().parent
            assert (
                walker is not None
            )  # the root alone has no parent, and the walk runs every chunk in a coroutine of its own
            return walker.switch(Halt(index, x, args, kwargs))

        return halt

    try:
        for index, module in enumerate(modules):
            module.__dict__["forward"] = door(index)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
