"""`Point`: every assignment of a study that a person may look at, with all that is known of it and the
command that makes files of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpsearch.problem import Candidate, Problem
from mpsearch.report.saved import Saved

KINDS = ("front", "trial", "uniform", "other", "float", "chosen")
"""Points of the exact front; measured trials; the rows of the results table: uniform ones, other finalists,
the float model and the choice.
"""
Indices = tuple[int, ...]


@dataclass(frozen=True)
class Point:
    """An assignment.

    Args:
        kind: One of `KINDS`.
        label: For people.
        indices: L choices; none for the float model of a target that has no float candidates.
        predicted: Resource -> predicted cost; of the float model what was measured.
        damage: Objective -> predicted damage.
        measured: What was measured: `size_bytes`, `latency_us` and others, `loss` on the search images, and
            `kl`, `top1` and the task's scores on the evaluation images.
        fits: Whether it is predicted to keep the budgets.
        name: As `mpsearch export --point` takes it; None where it has no name there.
    """

    kind: str
    label: str
    indices: Indices
    predicted: Mapping[str, float]
    damage: Mapping[str, float]
    measured: Mapping[str, float] = field(default_factory=dict)
    fits: bool = True
    name: str | None = None


def points_of(saved: Saved) -> list[Point]:
    """All of them: the front first, then the trials, then the rows, so that rows are drawn above."""
    front = [
        _point(saved, "front", f"point {i} of the front", entry, f"front:{i}")
        for i, entry in enumerate(held(saved))
    ]
    trials = [
        _point(saved, "trial", f"trial {t['number']}, {t['proposed_by']}", t, str(t["number"]))
        for t in saved.front["measured"]
    ]
    names = _Names(saved)
    return [*front, *trials, *(_row(saved, names, row) for row in saved.rows)]


def held(saved: Saved) -> list[dict[str, Any]]:
    """The points of the front whose assignment was written."""
    found: list[dict[str, Any]] = saved.front["points"]
    return found


def export_command(saved: Saved, name: str) -> str:
    """The command that makes the files of a point, to be run from where the study was run."""
    words = ["mpsearch", "export", saved.folder, "--point", name, "--target", saved.target]
    return shlex.join(words)


def materialize_command(saved: Saved, file: str = "assignment.json") -> str:
    """The command that makes the files of an assignment in a file."""
    return shlex.join(["mpsearch", "materialize", file, "--study", saved.folder, "--target", saved.target])


class _Names:
    """How `mpsearch export --point` knows an assignment: the choice, a uniform one, a trial, or a point of
    the front.
    """

    def __init__(self, saved: Saved) -> None:
        self._problem = saved.problem
        self._known: dict[Indices, str] = {}
        for i, entry in enumerate(held(saved)):
            self._known.setdefault(tuple(entry["indices"]), f"front:{i}")
        for trial in saved.front["measured"]:
            self._known[tuple(trial["indices"])] = str(trial["number"])
        self._known[tuple(saved.best["indices"])] = "best"

    def of(self, indices: Indices) -> str | None:
        """None where it is none of these."""
        known = self._known.get(indices)
        return known if known == "best" else uniform_name(self._problem, indices) or known


def uniform_name(problem: Problem, indices: Sequence[int]) -> str | None:
    """`W4A8` where every layer with a weight has that, and every other its input bits or nothing but float;
    so that `export --point W4A8` gives the same assignment.
    """
    rows = list(zip(problem.layers, problem.candidates, indices, strict=True))
    weighted = {row[i] for layer, row, i in rows if layer.weight_shape}
    if len(weighted) != 1:
        return None
    (candidate,) = weighted
    if candidate.is_float or candidate.w_bits is None or candidate.number_format != "int":
        return None
    others = ((row, row[i]) for layer, row, i in rows if not layer.weight_shape)
    even = all(c == candidate.of_inputs or (c.is_float and len(row) == 1) for row, c in others)
    return str(candidate) if even else None


def _point(saved: Saved, kind: str, label: str, entry: Mapping[str, Any], name: str) -> Point:
    indices = tuple(entry["indices"])
    fits = entry["fits"] if "fits" in entry else _keeps(saved, entry["predicted"])
    loss = {"loss": entry["loss"]} if "loss" in entry else {}
    return Point(kind, label, indices, entry["predicted"], _damage(saved.problem, indices), loss, fits, name)


def _row(saved: Saved, names: _Names, row: Mapping[str, Any]) -> Point:
    label, indices = str(row["label"]), tuple(row.get("indices", ()))
    kind = (
        "float"
        if row is saved.whole
        else "chosen"
        if label == saved.best["label"]
        else "uniform"
        if label.startswith("uniform")
        else "other"
    )
    written = row.get("reconstructed") or row["searched"]
    metrics = written["metrics"]
    measured = {k: v for k, v in written.items() if isinstance(v, int | float)}
    measured |= {"kl": metrics["kl"], **metrics.get("scores", {})}
    measured |= {} if metrics["top1"] is None else {"top1": metrics["top1"]}
    if "search_kl" in written:
        measured["loss"] = written["search_kl"]
    predicted = row["predicted"] or {
        k: v for k, v in measured.items() if k in ("size_bytes", "latency_us", "energy_mj", "memory_bytes")
    }
    damage = _damage(saved.problem, indices) if indices else dict.fromkeys(saved.problem.scores, 0.0)
    name = "float" if kind == "float" else names.of(indices)
    return Point(kind, label, indices, predicted, damage, measured, bool(row["fits"]), name)


def _damage(problem: Problem, indices: Indices) -> dict[str, float]:
    return {name: problem.score(name, indices) for name in problem.scores}


def _keeps(saved: Saved, predicted: Mapping[str, float]) -> bool:
    return all(predicted.get(b.resource, 0.0) <= b.limit for b in saved.budgets)


def bits_of(candidate: Candidate) -> tuple[int | None, int | None]:
    """Weight and input bits, 32 where they stay float; None for the weight of a unit that has none."""
    if candidate.is_float:
        return 32, 32
    return candidate.w_bits, 32 if candidate.weight_only else candidate.a_bits
