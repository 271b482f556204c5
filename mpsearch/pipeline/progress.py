"""How long work tells the world how far it is; the command line draws bars, the library is silent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Advance(Protocol):
    """Tells how far a task is."""

    def __call__(self, done: int, total: int | None = None) -> None:
        """`done` of `total` steps."""


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
