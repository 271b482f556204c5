"""The figures of a report, one file each: `(study, its points) -> Plotly figure`, or None where the study has
nothing to draw.
"""

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from mpsearch.report.figures.agreement import damage, latency
from mpsearch.report.figures.front import front
from mpsearch.report.figures.gains import gains
from mpsearch.report.figures.history import history
from mpsearch.report.figures.layers import layers
from mpsearch.report.figures.sensitivity import sensitivity
from mpsearch.report.figures.time import time
from mpsearch.report.points import Point
from mpsearch.report.saved import Saved

FIGURES: dict[str, Callable[[Saved, Sequence[Point]], go.Figure | None]] = {
    "front": front,
    "bits": layers,
    "sensitivity": sensitivity,
    "time": time,
    "latency": latency,
    "damage": damage,
    "gains": gains,
    "history": history,
}
"""By name, in the order of the page."""

__all__ = ["FIGURES"]
