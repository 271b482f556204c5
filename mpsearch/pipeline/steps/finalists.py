"""Step 5: the finalists are reconstructed and measured, beside uniform assignments, and one is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpsearch.evaluate import clearly_lower
from mpsearch.pipeline.results import MEASURED, Choice, Proxy, Row
from mpsearch.pipeline.steps.search import Found, Indices, keeps
from mpsearch.pipeline.steps.states import States
from mpsearch.pipeline.steps.uniforms import run_uniforms
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Budget, Problem, mean_bits
from mpsearch.reconstruct import Calibration

TIE = 1.0
"""Standard errors of the paired difference on the search images up to which the uniform assignment, being the
simpler one, wins.
"""


@dataclass(frozen=True)
class Chosen:
    """The finalists and the one among them.

    Args:
        rows: Of the results table.
        best: The choice, whose files are not written yet.
        states: Learned, of the choice.
    """

    rows: tuple[Row, ...]
    best: Choice
    states: States


def choose(
    problem: Problem,
    budgets: tuple[Budget, ...],
    found: Found,
    searched: Calibration,
    workshop: Workshop,
    hardware: Mapping[str, Any],
    last: bool = False,
) -> Chosen:
    """Measure the rows of the results table, reconstruct the finalists, and choose one.

    Args:
        problem: Predicts costs.
        budgets: That count when it is measured.
        found: By the search.
        searched: The states that the search saw.
        workshop: Reconstructs and measures.
        hardware: What step 2 told of the float model.
        last: Whether a finalist that keeps the budgets is preferred to a better one that does not.
    """
    shown = {
        u.label: u.indices
        for u in run_uniforms(problem, workshop.config)
        if u.candidate.w_bits in (8, 6, 4) or u.indices == found.uniform
    }
    rows, learned = [], dict[Indices, States]()
    for label, indices in {**shown, **found.finalists}.items():
        row = _row(label, problem, indices, budgets, searched, workshop)
        if label in found.finalists or indices == found.uniform:
            assignment = problem.assignment(indices)
            if indices not in learned:
                learned[indices] = workshop.reconstructed(assignment, label)
            measured = workshop.measured(learned[indices], whole=True)
            row = replace(
                row, reconstructed=measured, gained=tuple(workshop.reconstruction.gained(assignment))
            )
        rows.append(row)
    done = [row for row in rows if row.reconstructed is not None]
    keeping = [row for row in done if all(b.kept(row.reconstructed or {}) for b in budgets)]
    row, reason = _best_of(keeping if last and keeping else done, found.uniform, learned, workshop)
    proxy = Proxy(found.proxy, found.optimum.status, found.optimum.found_by)
    readings = row.reconstructed or {}
    best = Choice(
        row.label,
        reason,
        problem.assignment(row.indices),
        row.indices,
        budgets,
        problem.cost(row.indices),
        {k: v for k, v in readings.items() if k in MEASURED},
        readings["metrics"],
        proxy,
        {},
    )
    return Chosen((_float_row(workshop, hardware), *rows), best, learned[row.indices])


def _best_of(
    done: Sequence[Row], uniform: Indices | None, learned: Mapping[Indices, States], workshop: Workshop
) -> tuple[Row, str]:
    """The finalist of least loss on the search images; but the uniform one where that is better by no more
    than chance.
    """
    best = min(done, key=lambda row: (row.reconstructed or {})["search_kl"])
    plain = next((row for row in done if row.indices == uniform), None)
    if plain is None or plain is best:
        return best, "least loss on the search images"
    ours, theirs = (workshop.evaluation.search_losses(learned[row.indices]) for row in (best, plain))
    if clearly_lower(ours, theirs, TIE):
        return (
            best,
            f"least loss on the search images, by more than {TIE:g} standard error below {plain.label}",
        )
    return (
        plain,
        f"a tie with {best.label}, which is better on the search images by less than {TIE:g} standard error",
    )


def _row(
    label: str,
    problem: Problem,
    indices: Indices,
    budgets: Sequence[Budget],
    searched: Calibration,
    workshop: Workshop,
) -> Row:
    assignment = problem.assignment(indices)
    with workshop.progress.task(f"measure {label}") as advance:
        before = workshop.measured(searched.states(assignment))
        advance(1, 1)
    fits = keeps(problem, indices, budgets)
    return Row(
        label,
        mean_bits(problem.layers, assignment),
        before,
        fits,
        tuple(indices),
        assignment,
        problem.cost(indices),
    )


def _float_row(workshop: Workshop, hardware: Mapping[str, Any]) -> Row:
    images, logits = workshop.subject.splits.evaluation, workshop.evaluation.reference()["evaluation"]
    metrics = workshop.task.compare(logits, logits, images.labels).to_json()
    measured: dict[str, Any] = {"metrics": metrics, **workshop.measurement.float_sizes()}
    took = {name: hardware.get(f"float_{name}") for name in ("latency_us", "energy_mj")}
    return Row("float", 32.0, measured | {name: value for name, value in took.items() if value is not None})
