"""The answers that stand first in a report, in words that follow from the figures: what accuracy was lost
and how well that is known, whether the files are smaller and faster, and whether one should ship them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpsearch.problem import Budget
from mpsearch.report.saved import Saved
from mpsearch.units import format_quantity

SMALL_LOSS = 1.0
"""Points of accuracy that count as a small loss."""
NORMAL_95 = 1.96
AGREES = 0.99
"""Share of images on which the runtime's file decides as the checkpoint; below it something is to be looked
at.
"""
POOR = 0.3
"""Accuracy of a float model below which its images may have been prepared wrongly."""


@dataclass(frozen=True)
class Loss:
    """What accuracy a quantised model lost, in points, on N images that both models have seen.

    Accuracy differs only where the two decide differently. So the variance of the difference is at most the
    share of such images less the square of the difference, which is far less than that of two accuracies on
    different images.

    Args:
        points: Of the float model less those of the quantised; positive is a loss.
        changed: Share of images on which the decision changed.
        images: N.
    """

    points: float
    changed: float
    images: int

    @property
    def error(self) -> float:
        """Standard error in points, at most. Half an image is added to each of the four outcomes of a pair,
        after Agresti and Min 2005, so that no change in few images is no proof of none in many.
        """
        n = self.images + 2
        changed = (self.changed * self.images + 1) / n
        return 100 * math.sqrt(max(0.0, changed - (self.points / 100) ** 2) / n)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.points - NORMAL_95 * self.error

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.points + NORMAL_95 * self.error

    @property
    def tie(self) -> bool:
        """Whether no loss and no gain can be told from chance."""
        return self.low <= 0 <= self.high

    @property
    def images_needed(self) -> int:
        """Images on which the interval would be half a small loss wide on either side, about."""
        return math.ceil(self.images * (NORMAL_95 * self.error / (SMALL_LOSS / 2)) ** 2 / 100) * 100

    def __str__(self) -> str:
        """`0.40 points lost (95% interval -0.31 to 1.11)`."""
        what = "lost" if self.points >= 0 else "gained"
        interval = f"{signed(self.low)} to {signed(self.high)}"
        return f"{abs(self.points):.2f} points {what} (95% interval of the loss {interval})"


def loss_of(saved: Saved, row: Mapping[str, Any] | None = None) -> Loss | None:
    """The loss of a finished row, the choice without one; None where there are no labels, or the row is not
    finished.
    """
    base = saved.whole["searched"]["metrics"]
    if row is None:
        metrics = saved.best["metrics"]
    elif row.get("reconstructed"):
        metrics = row["reconstructed"]["metrics"]
    else:
        return None
    if metrics["top1"] is None or base["top1"] is None:
        return None
    return Loss(100 * (base["top1"] - metrics["top1"]), 1 - metrics["agreement"], int(metrics["images"]))


@dataclass(frozen=True)
class Verdict:
    """Whether to ship.

    Args:
        level: `yes`, `maybe` or `no`.
        words: The answer, in a sentence.
        because: What it follows from, and what else to know, a sentence each.
    """

    level: str
    words: str
    because: tuple[str, ...]


def verdict_of(saved: Saved) -> Verdict:
    """Judge the choice: a broken budget or a file that is neither smaller nor faster settles it, then
    accuracy.
    """
    held = saved.best["measured"]
    broken = [b.text for b in saved.budgets if not b.kept(held)]
    gains = gains_of(saved)
    level, words = _by_accuracy(saved)
    if broken:
        level, words = "no", f"No: {' and '.join(broken)} is not kept."
    elif gains and not any(gain.better for gain in gains):
        level, words = "no", "No: it is neither smaller nor faster than the float model."
    notes = [*(gain.told() for gain in gains if not gain.better), *_warnings(saved)]
    return Verdict(level, words, tuple(notes))


def _by_accuracy(saved: Saved) -> tuple[str, str]:
    loss = loss_of(saved)
    if loss is None:
        return _without_labels(saved)
    on = f"on {loss.images:,} images"
    if loss.high <= 0:
        return "yes", f"Yes: {on} accuracy did not fall."
    if loss.high <= SMALL_LOSS and loss.tie:
        return "yes", (
            f"Yes: {on} no loss of accuracy can be told from chance; it is at most {loss.high:.2f} points."
        )
    if loss.high <= SMALL_LOSS:
        return "yes", f"Yes: {on} the loss of accuracy is at most {loss.high:.2f} points."
    if loss.low > SMALL_LOSS:
        return "no", f"Only if you can spare {loss.low:.1f} to {loss.high:.1f} points of accuracy."
    if loss.error * NORMAL_95 <= SMALL_LOSS:
        return "maybe", (
            f"If you can spare a little: {on} the loss of accuracy is {max(0.0, loss.low):.1f} to "
            f"{loss.high:.1f} points."
        )
    return "maybe", (
        f"{loss.images:,} images are too few to say: the loss of accuracy may be anything from "
        f"{max(0.0, loss.low):.1f} to {loss.high:.1f} points. About {loss.images_needed:,} would tell it to "
        f"half a point."
    )


def _without_labels(saved: Saved) -> tuple[str, str]:
    metrics, base = saved.best["metrics"], saved.whole["searched"]["metrics"]
    if saved.metric is not None and metrics.get("metric") is not None:
        return "maybe", (
            f"Judge by {saved.metric}: {metrics['metric']:.6g}, where the float model has "
            f"{base['metric']:.6g}. mpsearch knows no error of it."
        )
    if saved.scores:
        return "maybe", (
            "Judge by the scores: mpsearch knows no error of them, so it cannot say whether what was lost is "
            "chance."
        )
    return "maybe", (
        f"Without labels accuracy cannot be told: {metrics['agreement']:.2%} of {metrics['images']:,} "
        "decisions are as the float model's. Give labelled images, or look at those that changed."
    )


@dataclass(frozen=True)
class Gain:
    """One resource of the choice beside the float model.

    Args:
        resource: A field of `Cost`.
        float_value: Of the float model.
        predicted: Of the choice.
        measured: Of the choice; None where it was not measured.
        budget: On it, where there is one.
        source: Where latencies are from, if not from this machine.
        apart: Latency that a process of its own took, where that was measured beside.
    """

    resource: str
    float_value: float
    predicted: float | None
    measured: float | None
    budget: Budget | None = None
    source: str | None = None
    apart: float | None = None

    @property
    def value(self) -> float:
        """As measured, else as predicted."""
        return float(self.predicted or 0.0) if self.measured is None else self.measured

    @property
    def ratio(self) -> float:
        """How many times less than float."""
        return self.float_value / self.value if self.value else math.inf

    @property
    def better(self) -> bool:
        """Whether it is less than float by every measurement."""
        return max(self.value, self.apart or 0.0) < self.float_value

    @property
    def title(self) -> str:
        """`size`, `latency`, `energy` or `memory`."""
        return self.resource.rpartition("_")[0]

    def told(self) -> str:
        """`1.8 times faster than float (5.6 ms to 3.1 ms)`."""
        better, worse = {
            "size_bytes": ("smaller", "larger"),
            "latency_us": ("faster", "slower"),
        }.get(self.resource, (f"less {self.title}", f"more {self.title}"))
        before, after = (brief(v, self.resource) for v in (self.float_value, self.value))
        how = "" if self.measured is not None else ", predicted"
        if abs(self.ratio - 1) < 0.005:
            return f"As much {self.title} as the float model ({before} and {after}{how})."
        times = max(self.ratio, 1 / self.ratio) if self.ratio else math.inf
        word = better if self.ratio > 1 else worse
        told = f"{times:.2f} times {word} than the float model ({before} to {after}{how})."
        if self.apart is None:
            return told
        apart = f"{brief(self.apart, self.resource)}, {self.float_value / self.apart:.2f} times {better}"
        return f"{told} In a process of its own it took {apart}."


def signed(points: float) -> str:
    """`+0.63`, `−0.63` or `0.00`."""
    text = f"{points:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def brief(value: float, resource: str) -> str:
    """A value in one unit: `13.41 MB` where `format_quantity` adds MiB, below 1 MB `114.98 kB`."""
    if resource.endswith("_bytes") and 1e4 <= value < 1e6:
        return f"{value / 1e3:.2f} kB"
    return format_quantity(value, resource).partition(" (")[0]


_NAMES = ("size_bytes", "latency_us", "energy_mj", "memory_bytes")


def gains_of(saved: Saved) -> list[Gain]:
    """What is known of both the float model and the choice."""
    base, found = saved.whole["searched"] | saved.whole["predicted"], saved.best["measured"]
    budgets = {b.resource: b for b in saved.budgets}
    gains = []
    for name in _NAMES:
        predicted, measured = saved.best["predicted"].get(name), found.get(name)
        if base.get(name) is None or (predicted is None and measured is None):
            continue
        source, apart = (saved.latencies, _apart(saved)) if name == "latency_us" else (None, None)
        gains.append(Gain(name, float(base[name]), predicted, measured, budgets.get(name), source, apart))
    return gains


def _apart(saved: Saved) -> float | None:
    """What a process of its own took; nothing where new processes were asked, which are the measurement."""
    artifact = saved.best["artifact"]
    if "latency" in artifact:
        return None
    return next((float(v) for key, v in artifact.items() if key.endswith("_fresh_latency_us")), None)


def _warnings(saved: Saved) -> list[str]:
    """What one should know before shipping, beside accuracy and budgets."""
    found, artifact = [], saved.best["artifact"]
    uniform = saved.best["label"].startswith("uniform")
    reason = str(saved.best.get("reason", ""))
    if uniform and reason.startswith("a tie"):
        found.append("It is a uniform assignment: mixed bits were not better by more than chance.")
    elif uniform and reason.startswith("least"):
        found.append("It is a uniform assignment: no mixed one that was finished had less loss.")
    for key, share in artifact.items():
        if key.endswith("_agreement") and share < AGREES:
            found.append(
                f"The file of the runtime decides as the checkpoint on {share:.2%} of the images alone: "
                "look at those on which they differ before you ship it."
            )
    base = saved.whole["searched"]["metrics"]["top1"]
    if base is not None and base < POOR:
        found.append(
            f"The float model itself is right on {base:.1%} of the images alone: are they prepared as in its "
            "training?"
        )
    if saved.latencies:
        found.append(f"Latencies are {saved.latencies}; none is measured here.")
    elif "latency_us" not in saved.best["measured"]:
        found.append("Its speed was not measured: the target has no runtime that is timed.")
    return found
