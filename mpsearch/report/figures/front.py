"""Every assignment of the study in one picture, whose axes can be switched, and whose points can be
picked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from mpsearch.report.figures._style import ACCENT, CHOSEN, INK, LIMIT, styled
from mpsearch.report.points import Point
from mpsearch.report.saved import Saved


@dataclass(frozen=True)
class Axis:
    """Something that points are compared by.

    Args:
        key: `cost:<resource>`, `damage:<objective>`, or a key of `Point.measured`.
        title: Of the axis.
        scale: Units of what is held in one of what is shown.
        log: Whether the axis is logarithmic.
    """

    key: str
    title: str
    scale: float = 1.0
    log: bool = False

    def of(self, point: Point) -> float | None:
        """What a point has of it, as shown; None where it is not known, or has no place on the axis."""
        kind, _, name = self.key.rpartition(":")
        held = {"cost": point.predicted, "damage": point.damage, "": point.measured}[kind]
        value = held.get(name)
        if value is None or (self.log and value <= 0):
            return None
        return value / self.scale


def across(saved: Saved, points: Sequence[Point]) -> list[Axis]:
    """Horizontal axes: the resources that are known of some point, that of the front first."""
    where = f", {saved.latencies}" if saved.latencies else ""
    known = [
        Axis("cost:size_bytes", f"size of {saved.file} (MB, 10⁶ bytes)", 1e6),
        Axis("cost:latency_us", f"predicted latency (ms){where}", 1e3),
        Axis("latency_us", "measured latency (ms), finished rows alone", 1e3),
        Axis("cost:bops", "bit operations (GBOPs)", 1e9),
        Axis("cost:energy_mj", "predicted energy (mJ)"),
        Axis("cost:memory_bytes", "peak memory of activations (MB)", 1e6),
    ]
    there = _known(known, points)
    return sorted(there, key=lambda axis: axis.key != f"cost:{saved.resource}")


def upward(saved: Saved, points: Sequence[Point]) -> list[Axis]:
    """Vertical axes: predicted damage by each objective, what was measured in the search, and what was
    measured of the finished rows.
    """
    first = saved.front["objective"]
    names = sorted(saved.problem.scores, key=lambda name: name != first)
    known = [
        *(Axis(f"damage:{name}", f"predicted damage: {name}", log=True) for name in names),
        Axis("loss", f"{saved.measure} to float on the search images, measured", log=True),
        Axis("kl", f"{saved.measure} to float on the evaluation images, rows alone", log=True),
        Axis("top1", "top-1 (%) on the evaluation images, rows alone", 0.01),
        *(Axis(name, f"{name} on the evaluation images, rows alone") for name in saved.scores),
    ]
    return _known(known, points)


def _known(axes: Sequence[Axis], points: Sequence[Point]) -> list[Axis]:
    return [axis for axis in axes if any(axis.of(p) is not None for p in points)]


SERIES = (
    ("front", "exact front", "lines+markers", {"color": ACCENT, "size": 5}),
    ("trial", "measured trial", "markers", {"color": "#2a9d8f", "size": 7, "opacity": 0.6}),
    ("uniform", "uniform", "markers", {"color": INK, "size": 11, "symbol": "square"}),
    ("other", "other finalist", "markers", {"color": "#8e6bbf", "size": 11, "symbol": "diamond"}),
    ("float", "float", "markers", {"color": "#e9a03b", "size": 12, "symbol": "triangle-up"}),
    ("chosen", "★ chosen", "markers", {"color": CHOSEN, "size": 15, "symbol": "star"}),
)
"""Kind, name, mode and marker of what is told apart."""
PICKED = "picked"
"""Name of the ring around the point that was picked."""


def front(saved: Saved, points: Sequence[Point]) -> go.Figure:
    """All points by the first of both axes, a ring around the choice; the custom data is a point's place in
    the list.
    """
    x, y = across(saved, points)[0], upward(saved, points)[0]
    figure = go.Figure()
    for kind, name, mode, marker in SERIES:
        places = [i for i, point in enumerate(points) if point.kind == kind]
        if not places:
            continue
        mine = [points[i] for i in places]
        placed = [_place(x, y, p) for p in mine]
        look = dict(marker)
        if kind == "trial":
            look["symbol"] = ["circle" if p.fits else "x" for p in mine]
        if kind == "front" and not saved.front["exact"]:
            name = "front"
        figure.add_scatter(
            x=[at[0] for at in placed],
            y=[at[1] for at in placed],
            mode=mode,
            name=name,
            customdata=places,
            text=[escape(p.label) for p in mine],
            hovertemplate="%{text}<br>%{x:.4f} · %{y:.4g}<extra></extra>",
            marker=look,
            line={"color": ACCENT, "width": 2},
        )
    at = next(p for p in points if p.kind == "chosen")
    ring = _place(x, y, at)
    figure.add_scatter(
        x=[ring[0]],
        y=[ring[1]],
        mode="markers",
        name=PICKED,
        showlegend=False,
        hoverinfo="skip",
        marker={"size": 24, "symbol": "circle-open", "color": CHOSEN, "line": {"width": 2.5}},
    )
    styled(figure, escape(x.title), escape(y.title), log=y.log, height=460)
    for budget in saved.budgets:
        if x.key == f"cost:{budget.resource}":
            _limit(figure, budget.limit / x.scale, budget.text)
    return figure


def _place(x: Axis, y: Axis, point: Point) -> tuple[float | None, float | None]:
    """Nowhere where one of both is not known: else it would widen the other axis."""
    at = (x.of(point), y.of(point))
    return (None, None) if None in at else at


def _limit(figure: go.Figure, at: float, text: str) -> None:
    figure.add_vline(
        x=at,
        line={"color": LIMIT, "width": 1.5, "dash": "dash"},
        annotation_text=f"budget {escape(text)}",
        annotation_font={"color": LIMIT},
    )
