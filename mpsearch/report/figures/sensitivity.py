"""The table that the search was solved on: predicted damage of each layer at each candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from mpsearch.problem import Candidate
from mpsearch.report.figures._style import short, styled
from mpsearch.report.points import Point
from mpsearch.report.saved import Saved

_ROW, _LEAST, _MOST = 15, 260, 1600


def sensitivity(saved: Saved, points: Sequence[Point]) -> go.Figure | None:
    """A heat map, the layers downwards and the candidates across, a ring on what was chosen; None where no
    layer has a choice.
    """
    problem, objective = saved.problem, saved.front["objective"]
    rows = [i for i, row in enumerate(problem.candidates) if len(row) > 1]
    columns = sorted({c for i in rows for c in problem.candidates[i]}, key=_order)
    if not rows:
        return None
    scores = problem.scores[objective]
    values = [
        [_log(dict(zip(problem.candidates[i], scores[i], strict=True)).get(c)) for c in columns] for i in rows
    ]
    names, ticks = [problem.layers[i].name for i in rows], [str(c) for c in columns]
    figure = go.Figure()
    figure.add_heatmap(
        z=values,
        x=ticks,
        y=list(range(len(rows))),
        colorscale="YlOrRd",
        hovertext=[[f"{escape(name)}<br>{tick}" for tick in ticks] for name in names],
        hovertemplate="%{hovertext}<br>damage 10^%{z:.2f}<extra></extra>",
        colorbar={"title": "log₁₀", "thickness": 10, "len": 0.6, "outlinewidth": 0},
        xgap=1,
        ygap=1,
    )
    chosen = next(p for p in points if p.kind == "chosen")
    figure.add_scatter(
        x=[str(problem.candidates[i][chosen.indices[i]]) for i in rows],
        y=list(range(len(rows))),
        mode="markers",
        hoverinfo="skip",
        marker={"symbol": "circle-open", "size": 8, "color": "#10151c", "line": {"width": 1.5}},
    )
    height = min(_MOST, max(_LEAST, _ROW * len(rows) + 90))
    styled(figure, "candidate", "", height=height, legend=False)
    step = max(1, math.ceil(len(rows) / ((height - 90) / 12)))
    places = list(range(0, len(rows), step))
    figure.update_yaxes(
        tickvals=places,
        ticktext=[short(names[i]) for i in places],
        tickfont={"size": 10},
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=ticks, showgrid=False)
    return figure


def _log(value: float | None) -> float | None:
    """Nothing is drawn where there is no damage, or no such candidate."""
    return None if value is None or value <= 0 else round(math.log10(value), 4)


def _order(candidate: Candidate) -> tuple[int, int, str]:
    return candidate.w_bits or 99, candidate.a_bits or 99, str(candidate)
