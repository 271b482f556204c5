"""`front.csv` and `front.json`: the exact front of damage over size, or over the latency of engines, and what
was measured of it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mpsearch import files
from mpsearch.pipeline.folder import Study
from mpsearch.problem import FLOAT, Candidate, Problem
from mpsearch.solvers import non_dominated, problem_front, swept_front
from mpsearch.study import Trial

MAX_POINTS = 512
"""Points of the exact front whose assignment is written; a longer front is thinned evenly, its ends kept."""
Points = list[tuple[float, float, Callable[[], Sequence[int]]]]
"""Cost, damage, and the choices when they are asked for."""


def write_front(
    study: Study, problem: Problem, objective: str, resource: str, trials: Sequence[Trial]
) -> None:
    """Write both files whole.

    `front.csv` has every point of the exact front of the proxy (size, damage). `front.json` has the
    assignments of at most 512 of them, and every measured trial with whether it is on the front of the
    measured loss.

    Args:
        study: Its folder.
        problem: Tables.
        objective: Name of the score table.
        resource: `size_bytes`, or another whose conversions may reach too far for the exact front: then
            limits over its range are solved one by one.
        trials: Measured.
    """
    front, exact = _front(problem, objective, resource)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((resource, objective))
    writer.writerows((cost, repr(score)) for cost, score, _ in front)
    files.write_text(study.path / "front.csv", text.getvalue())
    layers = [
        {"name": layer.name, "candidates": list(map(str, c))}
        for layer, c in zip(problem.layers, problem.candidates, strict=True)
    ]
    data = {
        "schema": 1,
        "objective": objective,
        "resource": resource,
        "exact": exact,
        "points_in_all": len(front),
        "layers": layers,
        "points": _thinned(front, problem, resource),
        "measured": _measured(trials, resource),
    }
    files.write_json(study.path / "front.json", data)


def _thinned(front: Points, problem: Problem, resource: str) -> list[dict[str, Any]]:
    """At most `MAX_POINTS` of the front, with their assignments and what these are predicted to cost."""
    step = max(1, -(-(len(front) - 1) // (MAX_POINTS - 1)))
    found = list[dict[str, Any]]()
    for p in sorted({*range(0, len(front), step), len(front) - 1}):
        cost, score, find = front[p]
        indices = find()
        predicted = problem.cost(indices).to_json()
        found.append({resource: cost, "score": score, "indices": list(indices), "predicted": predicted})
    return found


def _measured(trials: Sequence[Trial], resource: str) -> list[dict[str, Any]]:
    """Every trial, and whether it is on the front of the measured loss."""
    on_front = {
        trials[i].number
        for i in non_dominated([(float(getattr(t.cost, resource) or 0.0), t.loss) for t in trials])
    }
    return [
        {
            "number": t.number,
            "indices": list(t.indices),
            "loss": t.loss,
            "predicted": t.cost.to_json(),
            "fits": t.feasible,
            "proposed_by": t.proposed_by,
            "on_front": t.number in on_front,
        }
        for t in trials
    ]


def _front(problem: Problem, objective: str, resource: str) -> tuple[Points, bool]:
    """The front, and whether it is proven to be all of it."""
    if resource == "size_bytes":
        found = problem_front(problem, objective)
        pairs = enumerate(zip(found.costs, found.scores, strict=True))
        return [(int(c), float(s), partial(found.indices, p)) for p, (c, s) in pairs], found.exact
    even = [Candidate(8, 8), FLOAT]
    also = [indices for candidate in even if (indices := problem.uniform(candidate)) is not None]
    swept = swept_front(problem, objective, resource, also=also)
    return [(round(c, 3), s, partial(tuple, i)) for c, s, i in swept], False
