"""What was predicted against what was measured: the latency of finished rows, and the damage of trials."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from scipy.stats import spearmanr

from mpsearch.report.figures._style import ACCENT, GRID, INK, LIMIT, styled
from mpsearch.report.points import Point
from mpsearch.report.saved import Saved


def latency(saved: Saved, points: Sequence[Point]) -> go.Figure | None:
    """Measured over predicted latency, with the band in which the cost model's error lies and that of
    measuring the same twice; None where nothing was both predicted and measured.
    """
    both = [
        (p.label, p.predicted["latency_us"] / 1e3, p.measured["latency_us"] / 1e3)
        for p in points
        if p.indices and "latency_us" in p.predicted and "latency_us" in p.measured
    ]
    if not both:
        return None
    low = 0.9 * min(min(x, y) for _, x, y in both)
    high = 1.1 * max(max(x, y) for _, x, y in both)
    figure, error = go.Figure(), model_error(saved)
    for name, share, colour in (
        ("error of the cost model", error.get("mape"), "rgba(59,125,216,0.14)"),
        ("the same measured twice (A/A)", error.get("aa_mape"), "rgba(221,75,62,0.22)"),
    ):
        if share is not None:
            figure.add_scatter(
                x=[low, high, high, low],
                y=[low * (1 - share), high * (1 - share), high * (1 + share), low * (1 + share)],
                fill="toself",
                mode="lines",
                line={"width": 0},
                fillcolor=colour,
                name=f"{name}: ±{share:.1%}",
                hoverinfo="skip",
            )
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line={"color": INK, "dash": "dot", "width": 1},
        name="as predicted",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[x for _, x, _ in both],
        y=[y for *_, y in both],
        mode="markers",
        marker={"color": ACCENT, "size": 10},
        name="finished rows",
        text=[escape(label) for label, *_ in both],
        hovertemplate="%{text}<br>predicted %{x:.4f} ms<br>measured %{y:.4f} ms<extra></extra>",
    )
    return styled(figure, "predicted latency (ms)", "measured latency (ms)", height=380)


def model_error(saved: Saved) -> dict[str, Any]:
    """What the cost model says of itself: `mape`, `worst`, `tau`, `aa_mape`, `runs`; empty where it says
    nothing.
    """
    found: dict[str, Any] | None = saved.study.get("hardware", {}).get("error")
    return found or {}


def damage(saved: Saved, points: Sequence[Point]) -> go.Figure | None:
    """Measured loss over predicted damage of the trials; None where fewer than three were measured."""
    objective = saved.front["objective"]
    both = trials_of(points, objective)
    if len(both) < 3:
        return None
    figure = go.Figure()
    figure.add_scatter(
        x=[x for _, x, _ in both],
        y=[y for *_, y in both],
        mode="markers",
        marker={"color": ACCENT, "size": 8, "opacity": 0.65, "line": {"color": GRID, "width": 1}},
        text=[escape(label) for label, *_ in both],
        hovertemplate="%{text}<br>predicted %{x:.4g}<br>measured %{y:.4g}<extra></extra>",
    )
    positive = all(x > 0 and y > 0 for _, x, y in both)
    styled(
        figure,
        f"predicted damage: {escape(objective)}",
        f"{escape(saved.measure)} to float on the search images",
        log=positive,
        height=380,
        legend=False,
    )
    if positive:
        figure.update_xaxes(type="log", exponentformat="power", dtick="D2")
    figure.update_traces(marker_color=[ACCENT if p.fits else LIMIT for p in points if p.kind == "trial"])
    return figure


def trials_of(points: Sequence[Point], objective: str) -> list[tuple[str, float, float]]:
    """Label, predicted damage and measured loss of each trial."""
    return [(p.label, p.damage[objective], p.measured["loss"]) for p in points if p.kind == "trial"]


def rank_correlation(points: Sequence[Point], objective: str) -> float | None:
    """Spearman's, of predicted damage and measured loss over the trials; None where it means nothing."""
    both = trials_of(points, objective)
    xs, ys = {x for _, x, _ in both}, {y for *_, y in both}
    if len(xs) < 3 or len(ys) < 3:
        return None
    return float(spearmanr([x for _, x, _ in both], [y for *_, y in both]).statistic)
