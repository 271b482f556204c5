"""What is left of a run's time, and how long its steps took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Of one run.

    Args:
        limit: Seconds that it may take; None for as many as it needs.
        started: `time.monotonic()` when it began.
        took: Step -> seconds, as they are done.
    """

    limit: float | None = None
    started: float = field(default_factory=time.monotonic)
    took: dict[str, float] = field(default_factory=dict)

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    def allows(self, seconds: float) -> bool:
        """Whether there is time for something that takes so long."""
        return self.limit is None or self.spent + seconds <= self.limit

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times a step; one that is taken again adds to it."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.took[name] = self.took.get(name, 0.0) + time.monotonic() - start
