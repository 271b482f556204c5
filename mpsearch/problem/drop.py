"""`Drop`: how far a score may fall below the float model's, read from what a user typed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpsearch.errors import BudgetError

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%|points?|)")
POINT = 0.01
"""A point of a score that is a share, such as top-1."""


@dataclass(frozen=True)
class Drop:
    """A drop that is allowed.

    Args:
        text: As typed.
        amount: A share of the float model's score, or points of it.
        relative: Whether it is a share.
    """

    text: str
    amount: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Drop:
        """Read `1%`, a share of the float model's score, or `0.5` (or `0.5 points`), so many points.

        Raises: BudgetError: It is neither, or not above 0, or a share above 100 %.
        """
        match = _NUMBER.fullmatch(text.strip())
        amount = float(match[1]) if match else 0.0
        relative = match is not None and match[2] == "%"
        if not 0 < amount < math.inf or (relative and amount > 100):
            raise BudgetError(
                f"{text!r} is no drop. Write 1% (of the float model's score), or 0.5 (points: of top-1 "
                "and other shares hundredths, of a metric of your own its unit); above 0."
            )
        return cls(text.strip(), amount / 100 if relative else amount, relative)

    def floor(self, score: float, point: float) -> float:
        """The least score that keeps it.

        Args:
            score: Of the float model.
            point: What a point is: `POINT` of a share, 1 of a metric in a unit of its own.
        """
        return score - (self.amount * abs(score) if self.relative else self.amount * point)


_SHARES = ("top1", "agreement")
"""Scores that are printed in percent."""


def told(name: str, score: float) -> str:
    """A score for people."""
    if not math.isfinite(score):
        return f"{name} not finite"
    return f"{name} {score:.2%}" if name in _SHARES else f"{name} {score:.4g}"


def below(name: str, floats: float, score: float) -> str:
    """A score, and how far it is below the float model's: in points, and as a share of it."""
    if not math.isfinite(score):
        return told(name, score)
    drop = floats - score
    points = f"{100 * drop:.2f} points" if name in _SHARES else f"{drop:.4g}"
    share = f", {drop / abs(floats):.2%}" if floats else ""
    return f"{told(name, score)} ({points}{share} below float)"


def told_of(held: Mapping[str, Any]) -> str:
    """What `best.json` holds of a drop, for people."""
    score = math.nan if held["search"] is None else float(held["search"])
    kept = "kept" if held["kept"] else "NOT kept"
    return (
        f"--max-drop {held['text']} {kept} on the {held['images']:,} search images: "
        f"{below(held['score'], held['float'], score)}; {told(held['score'], held['least'])} is the least."
    )
