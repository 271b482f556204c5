"""How long work tells the world how far it is; the command line draws bars, the library is silent."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from mpsearch.efforts import format_duration


class Advance(Protocol):
    """Tells how far a task is."""

    def __call__(self, done: int, total: int | None = None) -> None:
        """`done` of `total` steps; with none done, what came before belongs to none of them."""


class Progress(Protocol):
    """Where progress goes."""

    def task(self, label: str) -> contextlib.AbstractContextManager[Advance]:
        """A long step, from entry to exit."""

    def say(self, text: str) -> None:
        """One line for people."""


class Silent:
    """Says nothing."""

    @contextlib.contextmanager
    def task(self, label: str) -> Iterator[Advance]:
        """A task that nobody watches."""

        def advance(done: int, total: int | None = None) -> None:
            return None

        yield advance

    def say(self, text: str) -> None:
        """Nothing."""


class Lines:
    """Plain lines on stderr: each long step with its time, and every so often how much is left.

    Args:
        every: Seconds between two lines about one step.
    """

    def __init__(self, every: float = 20.0) -> None:
        self.every = every

    @staticmethod
    def of(asked: Progress | bool) -> Progress:
        """Lines for True, silence for False, anything else as it is."""
        return asked if not isinstance(asked, bool) else Lines() if asked else Silent()

    @contextlib.contextmanager
    def task(self, label: str) -> Iterator[Advance]:
        """A step: a line when it ends, and more while it lasts."""
        start = told = begun = time.monotonic()

        def advance(done: int, total: int | None = None) -> None:
            nonlocal told, begun
            now = time.monotonic()
            if not done:
                begun = now
            if total and 0 < done < total and now - told > self.every:
                told = now
                left = format_duration((now - begun) / done * (total - done))
                self.say(f"  {label}: {done} of {total} after {now - start:.0f} s, about {left} left")

        yield advance
        self.say(f"  {label}: {time.monotonic() - start:.1f} s")

    def say(self, text: str) -> None:
        """A line."""
        print(text, file=sys.stderr, flush=True)
