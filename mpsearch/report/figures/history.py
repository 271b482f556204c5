"""How the search went: the loss of each trial in its order, by who proposed it, and the best that keeps the
budgets so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from mpsearch.report.figures._style import CHOSEN, SERIES, styled
from mpsearch.report.points import Point
from mpsearch.report.saved import Saved


def history(saved: Saved, points: Sequence[Point]) -> go.Figure | None:
    """None where nothing was measured."""
    trials = saved.front["measured"]
    if not trials:
        return None
    figure = go.Figure()
    for place, proposer in enumerate(dict.fromkeys(t["proposed_by"] for t in trials)):
        mine = [t for t in trials if t["proposed_by"] == proposer]
        figure.add_scatter(
            x=[t["number"] for t in mine],
            y=[t["loss"] for t in mine],
            mode="markers",
            name=escape(proposer),
            text=[f"trial {t['number']}, {'within' if t['fits'] else 'over'} the budget" for t in mine],
            hovertemplate="%{text}<br>%{y:.5g}<extra></extra>",
            marker={
                "color": SERIES[place % len(SERIES)],
                "size": 8,
                "symbol": ["circle" if t["fits"] else "x" for t in mine],
            },
        )
    numbers, best = best_so_far(saved)
    figure.add_scatter(
        x=numbers,
        y=best,
        mode="lines",
        name="best so far",
        hoverinfo="skip",
        line={"color": CHOSEN, "width": 2, "shape": "hv"},
    )
    log = all(t["loss"] > 0 for t in trials)
    return styled(
        figure, "trial", f"{escape(saved.measure)} to float on the search images", log=log, height=380
    )


def best_so_far(saved: Saved) -> tuple[list[int], list[float]]:
    """Numbers of the trials that keep the budgets, and the least loss of those up to each."""
    numbers, best = list[int](), list[float]()
    for trial in sorted(saved.front["measured"], key=lambda t: t["number"]):
        if trial["fits"]:
            numbers.append(trial["number"])
            best.append(min([trial["loss"], *best[-1:]]))
    return numbers, best
