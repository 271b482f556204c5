"""How often the processes of a study look at it, and what kind of storage it lies in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from optuna.exceptions import StorageInternalError

from mpsearch.errors import OptionError, StudyError

_KINDS = ("postgresql", "sqlite")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pace:
    """How often processes look at a shared study, and when one that has gone silent counts as dead.

    A process that is only paused for longer than the grace loses its trial to another; what it then finds is
    dropped.

    Args:
        poll_s: Seconds between two looks of a process with nothing to do.
        beat_s: Seconds between two signs of life of a process that measures.
        grace_s: Seconds without a sign of life after which a trial is tried again. A process that died on
            this machine is noticed at once.
        patience_s: Seconds for which a storage that cannot be reached is tried again.
    """

    poll_s: float = 0.25
    beat_s: int = 10
    grace_s: int = 120
    patience_s: float = 600.0

    def __post_init__(self) -> None:
        if not (self.poll_s > 0 and 1 <= self.beat_s < self.grace_s and self.patience_s >= 0):
            raise OptionError(
                f"Invalid timing {self}: all seconds must be positive, and grace_s must exceed beat_s."
            )

    def patiently(self, action: Callable[[], _T], say: Callable[[str], None] = lambda _: None) -> _T:
        """`action`, tried again while its storage cannot be reached; it must read what is there before it
        writes.

        Raises:
            StudyError: The storage could not be reached for `patience_s`.
        """
        since = None
        while True:
            try:
                found = action()
            except StorageInternalError as error:
                now, reason = time.monotonic(), str(error.__cause__ or error).splitlines()[0]
                if since is None:
                    since = now
                    say(f"The storage of the study cannot be reached ({reason}); trying again.")
                if now - since > self.patience_s:
                    raise StudyError(
                        f"The storage of the study could not be reached for {self.patience_s:.0f} s "
                        f"({reason}). Start it, and go on."
                    ) from error
                time.sleep(max(self.poll_s, 0.1))
            else:
                if since is not None:
                    say("The storage of the study is there again.")
                return found


def storage_kind(url: str) -> str:
    """`journal`, `postgresql` or `sqlite`. Raises OptionError for any other scheme."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+]*):/", url)
    if scheme is None:
        return "journal"
    kind = scheme[1].partition("+")[0].lower()
    if kind not in _KINDS:
        raise OptionError(
            f"{scheme[0]}... is not a storage that mpsearch knows. Give postgresql://USER@HOST/DATABASE, "
            "sqlite:///FILE, or none for a journal file."
        )
    return kind
