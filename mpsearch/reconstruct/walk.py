"""A walk of the whole calibration set through a network, side by side, that halts in front of each block.

The set is cut into chunks. Each chunk is a coroutine inside the network's own forward, which halts where a block is called; when all chunks
have come to the same block, it is dealt with, and they go on. No prefix of the network is ever run twice, and memory holds what crosses
the boundaries of two blocks that follow each other, not the intermediate results of the network on the whole set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from mpsearch.errors import ModelError

CHUNK = 64  # images of a forward pass outside the learning steps


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


def walk(network: nn.Module, names: Sequence[str], chunks: Sequence[Tensor], at_block: Callable[[int, list[Halt]], Answer]) -> None:
    """Take the chunks through the network; their results are dropped.

    Args:
        network: In eval mode; its forward must call each block with one tensor, first, that has the images on axis 0.
        names: Module names of the blocks, in order of execution.
        chunks: Inputs.
        at_block: Called with a block's index and what each chunk brings to it; the function it returns is asked for the block's output for
            each chunk, in order.
    Raises: ModelError: The chunks come to different blocks, or the first thing that a block reads is no tensor.
    """
    runners = [greenlet(network.forward) for _ in chunks]
    with _doors(network, names), torch.no_grad():
        try:
            halts = [runner.switch(chunk) for runner, chunk in zip(runners, chunks, strict=True)]
            while any(isinstance(halt, Halt) for halt in halts):
                index = _common(halts, names)
                answer = at_block(index, halts)
                halts = [runner.switch(answer(number)) for number, runner in enumerate(runners)]
                del answer  # and with it what the block was given
        finally:
            for runner in runners:
                if not runner.dead:
                    runner.throw(GreenletExit)


def _common(halts: Sequence[Any], names: Sequence[str]) -> int:
    found = {halt.block if isinstance(halt, Halt) else None for halt in halts}
    if len(found) > 1:
        raise ModelError("The forward of the model takes different ways for different images, so its blocks cannot be reconstructed. Use --method nearest.")
    index: int = found.pop()  # type: ignore[assignment]
    for halt in halts:
        if not isinstance(halt.x, Tensor):
            raise ModelError(f"Block {names[index]!r} does not read one tensor with the images on axis 0 as its first argument. Use --method nearest.")
    return index


@contextmanager
def _doors(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """While it lasts, the call of a block halts its coroutine and gives what the walk answers."""
    modules = [network.get_submodule(name) for name in names]

    def door(index: int) -> Callable[..., Any]:
        def halt(x: Any = None, *args: Any, **kwargs: Any) -> Any:
            walker = getcurrent().parent
            assert walker is not None  # the root alone has no parent, and the walk runs every chunk in a coroutine of its own
            return walker.switch(Halt(index, x, args, kwargs))

        return halt

    try:
        for index, module in enumerate(modules):
            module.__dict__["forward"] = door(index)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def bytes_for_image(network: nn.Module, names: Sequence[str], image: Tensor) -> int:
    """Bytes that a reconstruction keeps for each image: a block's input in both networks and its float output, and the input of the next in both.

    Args:
        network: Float model in eval mode; left as found.
        names: Module names of the blocks.
        image: 1 x C x H x W.
    """
    forwards = [network.get_submodule(name).forward for name in names]
    stored: list[tuple[int, int]] = []

    def at_block(index: int, halts: list[Halt]) -> Answer:
        halt = halts[0]
        output = forwards[index](halt.x, *halt.args, **halt.kwargs)
        stored.append((2 * halt.x.nbytes, output.nbytes))
        return lambda _: output

    walk(network, names, [image], at_block)
    return max((read + given + following for (read, given), (following, _) in zip(stored, [*stored[1:], (0, 0)], strict=True)), default=1)
