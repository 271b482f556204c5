"""`write_report`: the page of a study, from templates. One file, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mpsearch import files
from mpsearch.efforts import format_duration
from mpsearch.problem import Budget, told_of
from mpsearch.report.deploying import snippets_of
from mpsearch.report.figures import FIGURES
from mpsearch.report.figures.agreement import model_error, rank_correlation
from mpsearch.report.figures.time import parts
from mpsearch.report.points import Point, export_command, points_of
from mpsearch.report.reads import reads_of
from mpsearch.report.saved import Saved, damaged, read_saved
from mpsearch.report.script import page_data
from mpsearch.report.verdict import brief, gains_of, loss_of, signed, verdict_of
from mpsearch.units import format_bytes, format_quantity

DAMAGE = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError, StopIteration),
    UndefinedError,
)
"""What results of another shape than a study's raise."""


def write_report(study_path: Path) -> Path:
    """Write `report.html` from a study's saved results. Nothing is computed anew, and no model is loaded.

    Args:
        study_path: Folder of a finished study.
    Returns: The file: self-contained, a few megabytes, most of them Plotly.
    Raises: StudyError: The study is missing, unfinished or damaged.
    """
    study_path = Path(study_path)
    saved = read_saved(study_path)
    try:
        page = _page(saved)
    except DAMAGE as error:
        raise damaged(study_path, error) from error
    path = study_path / "report.html"
    files.write_text(path, page)
    return path


def _environment(saved: Saved) -> Environment:
    """What the templates may use. They escape: names of layers, models and files are untrusted."""
    environment = Environment(
        loader=PackageLoader("mpsearch.report"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "basename": lambda path: PurePath(path).name,
        "bytes": format_bytes,
        "duration": format_duration,
        "quantity": format_quantity,
        "brief": brief,
    }
    environment.globals |= {
        "standard_error": _standard_error,
        "over_limits": _over_limits(saved),
        "signed": signed,
    }
    return environment


def _page(saved: Saved) -> str:
    points = points_of(saved)
    figures = {name: make(saved, points) for name, make in FIGURES.items()}
    shown = {name: made for name, made in figures.items() if made is not None}
    whole, *rows = (row["searched"]["metrics"]["images"] for row in saved.rows)
    trials = saved.front["measured"]
    template = _environment(saved).get_template("report.html")
    return template.render(
        saved=saved,
        title=f"{saved.model} {_asked(saved)}",
        plotly=Markup(get_plotlyjs()),
        data=Markup(embedded(page_data(saved, points, shown))),  # in which no tag can stand
        figures=figures,
        verdict=verdict_of(saved),
        loss=loss_of(saved),
        losses=[(row, loss_of(saved, row)) for row in saved.rows[1:]],
        gains=gains_of(saved),
        kept=[_kept(budget, saved.best) + _call(budget, saved) for budget in saved.budgets]
        + ([told_of(saved.best["drop"])] if saved.best.get("drop") else []),
        labelled=any(row["searched"]["metrics"]["top1"] is not None for row in saved.rows),
        whole=whole,
        few=min(rows, default=whole),
        above=_above_front(saved, points),
        over=sum(not trial["fits"] for trial in trials),
        time=_time(saved, points),
        rank=rank_correlation(points, saved.front["objective"]),
        error=model_error(saved),
        reads=reads_of(saved),
        snippets=snippets_of(saved),
        command=export_command(saved, "best"),
        gained=[row for row in saved.rows if row.get("gained")],
        largest=sorted(saved.results["not_quantized"].items(), key=lambda item: (-item[1], item[0])),
        settings=json.dumps(saved.study["config"], indent=1),
    )


def embedded(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _asked(saved: Saved) -> str:
    """The budgets, or what gave bits without one."""
    drop = saved.study["config"].get("max_drop")
    asked = " and ".join([*(b.text for b in saved.budgets), *([f"a drop of {drop}"] if drop else [])])
    return f"within {asked}" if asked else f"with bits by {saved.study['config']['assign']}"


def _standard_error(p: float, images: int) -> float:
    """The standard error of a share `p` of `images`: sqrt(p (1 - p) / N)."""
    return math.sqrt(max(0.0, p * (1 - p)) / images)


def _time(saved: Saved, points: Sequence[Point]) -> dict[str, float]:
    """Where the predicted time of the choice goes, as shares; empty where there is no latency table."""
    if "latency_us" not in saved.problem.costs:
        return {}
    held = parts(saved, next(p for p in points if p.kind == "chosen"))
    total = math.fsum(held) or 1.0
    return dict(zip(("layers", "conversions", "rest"), (us / total for us in held), strict=True))


def _above_front(saved: Saved, points: Sequence[Point]) -> bool:
    """Whether some point of the front is predicted to cost no more than the choice and to be less damaged."""
    chosen, objective = next(p for p in points if p.kind == "chosen"), saved.front["objective"]
    limit = chosen.predicted.get(saved.resource, math.inf)
    return any(
        p.damage[objective] < chosen.damage[objective]
        for p in points
        if p.kind == "front" and p.predicted.get(saved.resource, math.inf) <= limit
    )


def _kept(budget: Budget, best: dict[str, Any]) -> str:
    """Whether a budget is kept, by how much, and how that is known."""
    spent = budget.spent(best["measured"])
    value, how = (best["predicted"][budget.resource], "predicted") if spent is None else (spent, "measured")
    timing = best["artifact"].get("latency")
    if timing is not None and budget.resource == "latency_us":
        median, count = (
            format_quantity(timing["latency_us"], budget.resource),
            len(timing["latency_readings_us"]),
        )
        how = (
            f"measured {median} in {count} new processes, {timing['latency_high_share']:.0%} of "
            "further ones below"
        )
    left = budget.limit - value
    state, side = ("kept", "under") if left >= 0 else ("BROKEN", "over")
    exact, room = (
        f"{v:,.0f} bytes" if budget.resource.endswith("_bytes") else format_quantity(v, budget.resource)
        for v in (value, abs(left))
    )
    return (
        f"Budget {budget.text} {state}: {how} {exact}, {room} ({abs(left) / budget.limit:.2%}) {side} "
        "the limit"
    )


def _call(budget: Budget, saved: Saved) -> str:
    """Of how many images a call is that a budget limits, where they are several."""
    timed = budget.resource in ("latency_us", "energy_mj")
    return f", for a call{saved.call}" if timed and saved.call else ""


def _over_limits(saved: Saved) -> Any:
    """What tells of costs which budgets are broken; None where none is but one was not measured."""

    def over(predicted: dict[str, Any], written: dict[str, Any]) -> list[str] | None:
        held = {**predicted, **written}
        spent = [(budget.spent(held), budget) for budget in saved.budgets]
        broken = [budget.text for value, budget in spent if value is not None and value > budget.limit]
        return broken if broken or all(value is not None for value, _ in spent) else None

    return over
