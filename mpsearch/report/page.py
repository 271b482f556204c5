"""`write_report`: the page of a study, from templates. One file, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mpsearch import files
from mpsearch.problem import Budget
from mpsearch.report import figures
from mpsearch.report.saved import Saved, damaged, read_saved
from mpsearch.units import format_bytes, format_quantity

_DAMAGE = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError),
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
    except _DAMAGE as error:
        raise damaged(study_path, error) from error
    path = study_path / "report.html"
    files.write_text(path, page)
    return path


def _page(saved: Saved) -> str:
    """The templates escape: names of layers, models and files are untrusted."""
    environment = Environment(
        loader=PackageLoader("mpsearch.report"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"basename": lambda path: PurePath(path).name, "bytes": format_bytes, "repr": repr}
    environment.globals |= {"standard_error": _standard_error}
    name = saved.study["config"]["model"] or "resnet34 fitted on scikit-learn's digits"
    whole, *rows = (row["searched"]["metrics"]["images"] for row in saved.rows)
    return environment.get_template("report.html").render(
        saved=saved,
        title=f"{name} {_asked(saved)}",
        plotly=Markup(get_plotlyjs()),
        figures={
            "front": Markup(figures.front_figure(saved)),
            "trials": Markup(figures.trials_figure(saved)),
            "bits": Markup(figures.bits_figure(saved)),
        },
        kept=[_kept(budget, saved.best) for budget in saved.budgets],
        over_limits=lambda predicted, written: _over(saved.budgets, {**predicted, **written}),
        labelled=any(row["searched"]["metrics"]["top1"] is not None for row in saved.rows),
        whole=whole,
        few=min(rows, default=whole),
        undrawn=sum(damage <= 0 for _, damage in saved.points),
        over=sum(not trial["fits"] for trial in saved.front["measured"]),
        gained=[row for row in saved.rows if row.get("gained")],
        largest=sorted(saved.results["not_quantized"].items(), key=lambda item: (-item[1], item[0])),
        settings=json.dumps(saved.study["config"], indent=1),
    )


def _asked(saved: Saved) -> str:
    """The budgets, or what gave bits without one."""
    budgets = " and ".join(b.text for b in saved.budgets)
    return f"within {budgets}" if budgets else f"with bits by {saved.study['config']['assign']}"


def _standard_error(p: float, images: int) -> float:
    """The standard error of a share `p` of `images`: sqrt(p (1 - p) / N)."""
    return math.sqrt(max(0.0, p * (1 - p)) / images)


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


def _over(budgets: tuple[Budget, ...], held: dict[str, Any]) -> list[str] | None:
    """Budgets that are broken; None where none is but one was not measured."""
    spent = [(budget.spent(held), budget) for budget in budgets]
    over = [budget.text for value, budget in spent if value is not None and value > budget.limit]
    return over if over or all(value is not None for value, _ in spent) else None
