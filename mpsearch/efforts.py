"""Named efforts: how much a run does where nothing else is said."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mpsearch.errors import OptionError, UnknownNameError

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(s|sec|min|m|h)")
_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
SHORTEST = 10.0
"""Seconds: a shorter limit is a slip."""


@dataclass(frozen=True)
class Effort:
    """How much a run does.

    Args:
        calibration: Calibration images.
        search: Search images.
        trials: Assignments whose loss the study measures.
        polish: Exchanges around the best of them.
        rivals: Of the study, those that are finished beside the proxy's optimum and the uniform assignment.
        ties: Whether those are finished too that the search did not see clearly below the optimum.
        shown: Whether further uniform assignments are measured for the table.
    """

    calibration: int
    search: int
    trials: int
    polish: int
    rivals: int
    ties: bool = False
    shown: bool = True


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(128, 128, 0, 0, 0, shown=False),
    "balanced": Effort(512, 256, 8, 2, 1),
    "thorough": Effort(1024, 1024, 64, 16, 4, ties=True),
}
"""Quick is the closed form alone: the exact optimum of the proxy beside the uniform assignment."""


def effort_of(name: str) -> Effort:
    """An effort by its name. Raises UnknownNameError."""
    if name not in EFFORTS:
        raise UnknownNameError("effort", name, EFFORTS)
    return EFFORTS[name]


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `10min` or `1.5h`. Raises OptionError where it is none, or too short for any run."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise OptionError(f"{text!r} is not a time. Write a number and a unit, such as 90s, 10min or 1h.")
    seconds = float(match.group(1)) * _SECONDS[match.group(2)]
    if not SHORTEST <= seconds < math.inf:
        raise OptionError(f"A time limit of {text} is too short for any model. Give at least 30s.")
    return seconds


def format_duration(seconds: float) -> str:
    """`8 s`, `95 s`, `12 min` or `3.2 h`."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
