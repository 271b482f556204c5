"""The three figures, as Plotly HTML without the library (the page holds it once)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from mpsearch.report.saved import Saved

MAX_POINTS = 2000
"""Points of the front that are drawn; a longer front is thinned evenly, its ends kept."""
_INK, _GRID, _ACCENT, _CHOSEN, _LIMIT = "#76808f", "rgba(128,138,150,0.22)", "#3b7dd8", "#e4572e", "#dd4b3e"
_FLOAT_BITS = 32
_COLOURS = {
    2: "#b2182b",
    3: "#d6604d",
    4: "#f4a582",
    5: "#d9b44a",
    6: "#92c5de",
    7: "#4393c3",
    8: "#2166ac",
    _FLOAT_BITS: "#8a8f98",
}
_PROPOSERS = ("#3b7dd8", "#2a9d8f", "#e9a03b", "#8e6bbf", "#d0679d", "#6b8e23", "#5f7d95")


def front_figure(saved: Saved) -> str:
    """The exact front of the proxy, with the budget, the uniform assignments and the chosen one."""
    objective = saved.front["objective"]
    drawn = thinned([point for point in saved.points if point[1] > 0])
    figure = go.Figure()
    figure.add_scatter(
        x=[s / _scale(saved) for s, _ in drawn],
        y=[d for _, d in drawn],
        mode="lines",
        name="exact front",
        line={"color": _ACCENT, "width": 2},
    )
    figures = _marked(saved, objective)
    for name, points, colour, symbol in figures:
        figure.add_scatter(
            x=[p[1] / _scale(saved) for p in points],
            y=[p[2] for p in points],
            mode="markers",
            name=name,
            text=[escape(p[0]) for p in points],
            hovertemplate="%{text}<br>%{x:.4f} " + _unit(saved) + "<br>%{y:.4g}<extra></extra>",
            marker={"color": colour, "size": 11, "symbol": symbol},
        )
    _budget_lines(figure, saved)
    return _html(
        figure,
        "front",
        _axis(saved),
        f"predicted damage: {escape(objective)}",
        log=True,
    )


def trials_figure(saved: Saved) -> str:
    """Every measured trial: loss over size, by who proposed it; the measured Pareto set is joined."""
    trials = saved.front["measured"]
    figure = go.Figure()
    joined = sorted((t for t in trials if t["on_front"]), key=lambda t: t["predicted"][saved.resource])
    figure.add_scatter(
        x=[t["predicted"][saved.resource] / _scale(saved) for t in joined],
        y=[t["loss"] for t in joined],
        mode="lines+markers",
        name="Pareto set",
        hoverinfo="skip",
        line={"color": _INK, "width": 1.5, "dash": "dot", "shape": "hv"},
        marker={"size": 17, "symbol": "circle-open", "color": _INK, "line": {"width": 1.5}},
    )
    for place, proposer in enumerate(dict.fromkeys(t["proposed_by"] for t in trials)):
        mine = [t for t in trials if t["proposed_by"] == proposer]
        figure.add_scatter(
            x=[t["predicted"][saved.resource] / _scale(saved) for t in mine],
            y=[t["loss"] for t in mine],
            mode="markers",
            name=escape(proposer),
            text=[
                f"trial {t['number']}, {escape(proposer)}, {'within' if t['fits'] else 'over'} the budget"
                for t in mine
            ],
            hovertemplate="%{text}<br>%{x:.4f} "
            + _unit(saved)
            + "<br>"
            + escape(saved.measure)
            + " %{y:.5g}<extra></extra>",
            marker={
                "color": _PROPOSERS[place % len(_PROPOSERS)],
                "size": 9,
                "symbol": ["circle" if t["fits"] else "x" for t in mine],
            },
        )
    _budget_lines(figure, saved)
    log = all(t["loss"] > 0 for t in trials)
    return _html(
        figure,
        "trials",
        _axis(saved),
        f"measured loss: {saved.measure} to float",
        log=log,
    )


def bits_figure(saved: Saved) -> str:
    """Weight bits of each layer that has a weight, under the chosen assignment."""
    problem, indices = saved.problem, saved.best["indices"]
    picked = [
        (layer, c[i], i, at)
        for at, (layer, c, i) in enumerate(zip(problem.layers, problem.candidates, indices, strict=True))
        if layer.weight_shape
    ]
    names = [escape(layer.name) for layer, *_ in picked]
    bits = [c.w_bits or _FLOAT_BITS for _, c, *_ in picked]
    hover = [
        f"<b>{name}</b><br>{c}<br>{layer.macs:,} MACs<br>{problem.costs['size_bytes'][at][i]:,.0f} bytes"
        f"<br>weight {' × '.join(map(str, layer.weight_shape))}<br>block {escape(layer.block)}"
        for name, (layer, c, i, at) in zip(names, picked, strict=True)
    ]
    figure = go.Figure()
    shown = ["float" if b == _FLOAT_BITS else str(b) for b in bits]
    colours = [_COLOURS[b] for b in bits]
    figure.add_bar(
        x=list(range(len(bits))),
        y=[min(b, 9) for b in bits],
        text=shown,
        hovertext=hover,
        hoverinfo="text",
        marker={"color": colours},
    )
    figure.update_traces(textposition="inside", textangle=0, insidetextanchor="end")
    step = max(1, -(-len(names) // 80))
    ticks = list(range(0, len(names), step))
    figure.update_xaxes(
        tickvals=ticks, ticktext=[names[i] for i in ticks], tickangle=-90, tickfont={"size": 10}
    )
    figure.update_yaxes(range=[0, 9], dtick=1)
    figure.update_layout(showlegend=False)
    return _html(figure, "bits", "", "weight bits", log=False)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS`, evenly by rank, ends kept."""
    if len(points) <= MAX_POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]


def _marked(saved: Saved, objective: str) -> list[tuple[str, list[tuple[str, float, float]], str, str]]:
    chosen, uniform = [], []
    for row in saved.rows:
        if "indices" not in row:
            continue
        point = (
            row["label"],
            row["predicted"][saved.resource],
            saved.problem.score(objective, row["indices"]),
        )
        if row["label"] == saved.best["label"]:
            chosen.append(point)
        elif row["label"].startswith("uniform"):
            uniform.append(point)
    return [("uniform", uniform, _INK, "square"), ("chosen", chosen, _CHOSEN, "star")]


def _scale(saved: Saved) -> float:
    """Of what the front is over: bytes of a megabyte, microseconds of a millisecond."""
    return 1e6 if saved.resource == "size_bytes" else 1e3


def _unit(saved: Saved) -> str:
    return "MB" if saved.resource == "size_bytes" else "ms"


def _axis(saved: Saved) -> str:
    if saved.resource == "size_bytes":
        return f"size of {escape(saved.file)} (MB, 10⁶ bytes)"
    return f"predicted latency (ms), {escape(str(saved.latencies))}"


def _budget_lines(figure: go.Figure, saved: Saved) -> None:
    for budget in saved.budgets:
        if budget.resource == saved.resource:
            figure.add_vline(
                x=budget.limit / _scale(saved),
                line={"color": _LIMIT, "width": 1.5, "dash": "dash"},
                annotation_text=f"budget {escape(budget.text)}",
            )
            figure.update_annotations(font={"color": _LIMIT})


def _html(figure: go.Figure, name: str, x: str, y: str, *, log: bool) -> str:
    axis: dict[str, Any] = {
        "gridcolor": _GRID,
        "zerolinecolor": _GRID,
        "linecolor": _GRID,
        "automargin": True,
    }
    figure.update_xaxes(title=x, **axis)
    figure.update_yaxes(title=y, **axis)
    if log:
        figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": _INK},
        margin={"l": 10, "r": 10, "t": 24, "b": 10},
        height=430,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"bgcolor": "#1d2733", "font": {"color": "#ffffff"}},
    )
    config = {"responsive": True, "displaylogo": False, "displayModeBar": False, "plotlyServerURL": ""}
    return str(
        figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{name}", config=config)
    )
