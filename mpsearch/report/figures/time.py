"""Where the time of the choice goes: its layers, the conversions between them, and the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from mpsearch.report.figures._style import ACCENT, INK, LIMIT, short, styled
from mpsearch.report.points import Point
from mpsearch.report.saved import Saved

MOST_ROWS = 20


def time(saved: Saved, points: Sequence[Point]) -> go.Figure | None:
    """Predicted milliseconds, the longest first; None where there is no latency table."""
    problem = saved.problem
    if "latency_us" not in problem.costs:
        return None
    chosen = next(p for p in points if p.kind == "chosen")
    rows = [
        (row[i], layer.name, str(c[i]))
        for row, layer, c, i in zip(
            problem.costs["latency_us"], problem.layers, problem.candidates, chosen.indices, strict=True
        )
    ]
    rows.sort(key=lambda row: -row[0])
    _, changes, beside = parts(saved, chosen)
    bars = [(us, f"{short(name)} {kernel}", ACCENT) for us, name, kernel in rows[:MOST_ROWS]]
    if rest := rows[MOST_ROWS:]:
        bars.append((math.fsum(us for us, *_ in rest), f"{len(rest)} further layers", ACCENT))
    bars.append((changes, "conversions between layers", LIMIT))
    bars.append((beside, "what is no layer", INK))
    total = math.fsum(us for us, *_ in bars)
    figure = go.Figure()
    figure.add_bar(
        x=[us / 1e3 for us, *_ in bars],
        y=list(range(len(bars))),
        orientation="h",
        marker={"color": [colour for *_, colour in bars]},
        text=[f"{us / total:.0%}" if total > 0 else "" for us, *_ in bars],
        hovertext=[f"{name}<br>{us / 1e3:.4f} ms" for us, name, _ in bars],
        hoverinfo="text",
    )
    estimated = " (ESTIMATED)" if saved.latencies else ""
    title = f"predicted ms{escape(estimated)}"
    styled(figure, title, "", height=max(260, 21 * len(bars) + 80), legend=False)
    figure.update_yaxes(
        tickvals=list(range(len(bars))),
        ticktext=[name for _, name, _ in bars],
        tickfont={"size": 10},
        range=[len(bars) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    return figure


def parts(saved: Saved, point: Point) -> tuple[float, float, float]:
    """Predicted microseconds of layers, of conversions between them, and of what is no layer."""
    problem, indices = saved.problem, point.indices
    rows = math.fsum(row[i] for row, i in zip(problem.costs["latency_us"], indices, strict=True))
    changes = math.fsum(term.value(indices) for term in problem.conversions.get("latency_us", ()))
    return rows, changes, problem.constants.get("latency_us", 0.0)
