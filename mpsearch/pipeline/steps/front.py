"""`front.csv` and `front.json`: the exact size-damage front, and what was measured of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from mpsearch import files
from mpsearch.pipeline.folder import Study
from mpsearch.problem import Problem
from mpsearch.solvers import Front, non_dominated
from mpsearch.study import Trial

MAX_POINTS = 512
"""Points of the exact front whose assignment is written; a longer front is thinned evenly, its ends kept."""


def write_front(
    study: Study, problem: Problem, objective: str, front: Front, trials: Sequence[Trial]
) -> None:
    """Write both files whole.

    `front.csv` has every point of the exact front of the proxy (size, damage). `front.json` has the
    assignments of at most 512 of them, and every measured trial with whether it is on the front of the
    measured loss.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("size_bytes", objective))
    writer.writerows(
        (int(size), repr(float(damage))) for size, damage in zip(front.costs, front.scores, strict=True)
    )
    files.write_text(study.path / "front.csv", text.getvalue())
    step = max(1, -(-(len(front) - 1) // (MAX_POINTS - 1)))
    chosen = sorted({*range(0, len(front), step), len(front) - 1})
    on_front = {
        trials[i].number for i in non_dominated([(float(t.cost.size_bytes or 0.0), t.loss) for t in trials])
    }
    points: list[dict[str, Any]] = []
    for p in chosen:
        indices = front.indices(p)
        points.append(
            {
                "size_bytes": int(front.costs[p]),
                "score": float(front.scores[p]),
                "indices": list(indices),
                "predicted": problem.cost(indices).to_json(),
            }
        )
    measured = [
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
    layers = [
        {"name": layer.name, "candidates": list(map(str, c))}
        for layer, c in zip(problem.layers, problem.candidates, strict=True)
    ]
    data = {
        "schema": 1,
        "objective": objective,
        "exact": front.exact,
        "points_in_all": len(front),
        "layers": layers,
        "points": points,
        "measured": measured,
    }
    files.write_json(study.path / "front.json", data)
