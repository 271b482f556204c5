"""What finishing each block gained: the error of its output afterwards, as a share of that before."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from mpsearch.report.figures._style import ACCENT, INK, short, styled
from mpsearch.report.points import Point
from mpsearch.report.saved import Saved


def gains(saved: Saved, points: Sequence[Point]) -> go.Figure | None:
    """A bar for each block and phase of the choice, grey where what it learned was thrown away; None where
    nothing was learned.
    """
    rows = [gain for gain in saved.chosen.get("gained", ()) if gain["start_mse"] > 0]
    if not rows:
        return None
    shares = [gain["learned_mse"] / gain["start_mse"] for gain in rows]
    phases = len({gain["phase"] for gain in rows}) > 1
    names = [short(gain["block"]) + (f" (phase {gain['phase'] + 1})" if phases else "") for gain in rows]
    figure = go.Figure()
    figure.add_bar(
        x=[100 * share for share in shares],
        y=list(range(len(rows))),
        orientation="h",
        marker={"color": [ACCENT if gain["kept"] else INK for gain in rows]},
        text=[
            f"{share:.0%}" if gain["kept"] else f"{share:.0%}, not kept"
            for share, gain in zip(shares, rows, strict=True)
        ],
        hovertext=[
            f"{escape(gain['block'])}<br>before {gain['start_mse']:.3g}<br>after {gain['learned_mse']:.3g}"
            for gain in rows
        ],
        hoverinfo="text",
    )
    figure.add_vline(x=100, line={"color": INK, "width": 1, "dash": "dot"})
    styled(
        figure, "error after, % of before", "", height=min(1400, max(240, 19 * len(rows) + 80)), legend=False
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=names,
        tickfont={"size": 10},
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    return figure
