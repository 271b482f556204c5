"""What the page's script is given: the figures, and of every point its bits, costs and command."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from mpsearch.problem import Candidate, Problem
from mpsearch.report.figures._style import BIT_COLOURS
from mpsearch.report.figures.front import Axis, across, upward
from mpsearch.report.figures.layers import HIGHEST
from mpsearch.report.points import Point, bits_of, export_command, materialize_command
from mpsearch.report.saved import Saved

_FIRST = 48  # the character 0: choices are written as one character each


def page_data(saved: Saved, points: Sequence[Point], figures: Mapping[str, go.Figure]) -> dict[str, Any]:
    """Plain data, with no number that is not finite.

    Args:
        saved: The study.
        points: Of it; the script names them by their place.
        figures: By name.
    """
    placeholder = "NAME-OF-POINT"
    return {
        "figures": {name: json.loads(figure.to_json(engine="json")) for name, figure in figures.items()},
        **_tables(saved.problem),
        "points": [_point(saved, point) for point in points],
        "across": [_axis(axis, saved) for axis in across(saved, points)],
        "upward": [_axis(axis, saved) for axis in upward(saved, points)],
        "objective": saved.front["objective"],
        "measure": saved.measure,
        "chosen": next(i for i, p in enumerate(points) if p.kind == "chosen"),
        "command": export_command(saved, placeholder),
        "placeholder": placeholder,
        "materialize": materialize_command(saved),
        "colours": BIT_COLOURS,
        "highest": HIGHEST,
    }


def _tables(problem: Problem) -> dict[str, Any]:
    kinds = list(dict.fromkeys(c for row in problem.candidates for c in row))
    return {
        "layers": [
            [layer.name, layer.op, "×".join(map(str, layer.weight_shape)), layer.macs, layer.block]
            for layer in problem.layers
        ],
        "kinds": [[str(c), *_bits(c)] for c in kinds],
        "candidates": [[kinds.index(c) for c in row] for row in problem.candidates],
        "costs": {
            name: [[_short(v) for v in row] for row in problem.costs[name]]
            for name in ("size_bytes", "latency_us")
            if name in problem.costs
        },
    }


def _bits(candidate: Candidate) -> list[int]:
    """Weight and input bits; 0 for the weight of a unit that has none."""
    return [bits or 0 for bits in bits_of(candidate)]


def _point(saved: Saved, point: Point) -> dict[str, Any]:
    damage = {name: _short(value) for name, value in point.damage.items()}
    return {
        "kind": point.kind,
        "label": point.label,
        "indices": "".join(chr(_FIRST + i) for i in point.indices),
        "predicted": {name: _short(value) for name, value in point.predicted.items()},
        "damage": damage,
        "measured": {name: _short(value) for name, value in point.measured.items()},
        "fits": point.fits,
        "name": point.name,
    }


def _axis(axis: Axis, saved: Saved) -> dict[str, Any]:
    kind, _, name = axis.key.rpartition(":")
    budgets = [[b.limit / axis.scale, b.text] for b in saved.budgets if kind == "cost" and b.resource == name]
    return {
        "kind": kind,
        "name": name,
        "title": axis.title,
        "scale": axis.scale,
        "log": axis.log,
        "budgets": budgets,
    }


def _short(value: float) -> float:
    """Whole numbers as they are, others to seven significant digits: fewer characters, and no difference
    that could be seen.
    """
    if value == int(value):
        return int(value)
    rounded = round(value, 6 - math.floor(math.log10(abs(value))))
    return int(rounded) if rounded == int(rounded) else rounded
