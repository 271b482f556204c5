"""Bits of each layer as rectangles: as wide as there are numbers and as high as each has bits, so the area is
bytes; weights above, inputs below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mpsearch.problem import Layer
from mpsearch.report.figures._style import BIT_COLOURS, FLOAT_BITS, INK, styled
from mpsearch.report.points import Point, bits_of
from mpsearch.report.saved import Saved

HIGHEST = 9
"""Height at which float is drawn: 32 would press all others to the ground."""


def layers(saved: Saved, points: Sequence[Point]) -> go.Figure:
    """Of the choice."""
    chosen = next(p for p in points if p.kind == "chosen")
    figure = make_subplots(
        rows=2,
        cols=1,
        vertical_spacing=0.16,
        subplot_titles=("weights, layer after layer", "values in the inputs of layers"),
    )
    for row, places in enumerate(drawn(saved.problem.layers), start=1):
        counts = numbers(saved.problem.layers, row == 1)
        bits = []
        for at in places:
            candidate = saved.problem.candidates[at][chosen.indices[at]]
            bits.append(bits_of(candidate)[row - 1] or 0)
        widths = [counts[at] for at in places]
        figure.add_bar(
            x=centres(widths),
            y=[min(b, HIGHEST) for b in bits],
            width=widths,
            text=["float" if b == FLOAT_BITS else str(b) for b in bits],
            hovertext=[escape(saved.problem.layers[at].name) for at in places],
            hoverinfo="text",
            customdata=places,
            marker={"color": [BIT_COLOURS[b] for b in bits], "line": {"width": 0.5, "color": "#ffffff"}},
            textposition="inside",
            textangle=0,
            insidetextanchor="end",
            insidetextfont={"color": "#10151c"},
            row=row,
            col=1,
        )
    styled(figure, "", "bits", height=460, legend=False)
    figure.update_yaxes(range=[0, HIGHEST], dtick=2)
    figure.update_annotations(font={"color": INK})
    figure.update_layout(bargap=0)
    return figure


def drawn(held: Sequence[Layer]) -> tuple[list[int], list[int]]:
    """Places of the layers that have a weight, and of those that read something."""
    return (
        [i for i, layer in enumerate(held) if layer.weight_shape],
        [i for i, layer in enumerate(held) if layer.input_shapes],
    )


def numbers(held: Sequence[Layer], weights: bool) -> list[int]:
    """How many weights, or values of inputs for one sample, each of L layers has."""
    if weights:
        return [layer.weight_numel for layer in held]
    return [sum(math.prod(shape) for shape in layer.input_shapes) for layer in held]


def centres(widths: Sequence[float]) -> list[float]:
    """Where rectangles of these widths stand side by side."""
    found, at = [], 0.0
    for width in widths:
        found.append(at + width / 2)
        at += width
    return found
