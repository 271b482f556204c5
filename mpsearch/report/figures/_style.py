"""What the figures have in common: colours that are told apart on light and dark ground, axes, names."""

from __future__ import annotations

from html import escape
from typing import Any

import plotly.graph_objects as go

INK, GRID, ACCENT, CHOSEN, LIMIT = "#76808f", "rgba(128,138,150,0.22)", "#3b7dd8", "#e4572e", "#dd4b3e"
FLOAT_BITS = 32
BIT_COLOURS = {
    2: "#b2182b",
    3: "#d6604d",
    4: "#f4a582",
    5: "#d9b44a",
    6: "#92c5de",
    7: "#4393c3",
    8: "#2166ac",
    FLOAT_BITS: "#8a8f98",
}
SERIES = ("#3b7dd8", "#2a9d8f", "#e9a03b", "#8e6bbf", "#d0679d", "#6b8e23", "#5f7d95")
_LONGEST = 28


def short(name: str) -> str:
    """A layer's name for an axis: its end tells it from others, and names are untrusted."""
    return escape(name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :])


def styled(
    figure: go.Figure, x: str, y: str, *, log: bool = False, height: int = 430, legend: bool = True
) -> go.Figure:
    """A figure with axes, legend and fonts as all have them, on no ground of its own.

    Args:
        figure: Is changed.
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        log: Whether the vertical axis is logarithmic.
        height: In pixels.
        legend: Whether there is one.
    """
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": GRID,
        "automargin": True,
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_xaxes(title={"text": x, "standoff": 8})
    figure.update_yaxes(title={"text": y, "standoff": 10})
    if log:
        figure.update_layout(yaxis={"type": "log", "exponentformat": "power", "dtick": "D2"})
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"l": 10, "r": 10, "t": 24, "b": 10},
        height=height,
        showlegend=legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"bgcolor": "#1d2733", "font": {"color": "#ffffff"}},
    )
    return figure
