"""Step 5: the finalists are reconstructed and measured, beside uniform assignments, and one is chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpsearch.evaluate import clearly_lower
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.results import MEASURED, Choice, Proxy, Row
from mpsearch.pipeline.steps.rung import label_of, worth_finishing, worth_learning
from mpsearch.pipeline.steps.scoring import Floor
from mpsearch.pipeline.steps.search import Found, Indices, keeps
from mpsearch.pipeline.steps.states import States
from mpsearch.pipeline.steps.uniforms import even_uniforms, run_uniforms
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import FLOAT, Budget, Problem, mean_bits, told
from mpsearch.reconstruct import Calibration

TIE = 0.5
"""Standard errors of the paired difference on the search images up to which the uniform assignment, being the
simpler one, wins. No more of them: on images that nothing has seen the exact optimum was better than the
uniform assignment in 41 of 43 cases, and as good in two (benchmarks/results/few_bits.md).
"""
ALIKE = 1.01
"""Of two that keep a drop, the ratio of what they take up to which the one of less loss is taken."""


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


OnFirst = Callable[[Choice, States], None]
"""Called with the first finalist that is finished, if it keeps the budgets."""


def choose(
    problem: Problem,
    budgets: tuple[Budget, ...],
    found: Found,
    searched: Calibration,
    workshop: Workshop,
    hardware: Mapping[str, Any],
    last: bool = False,
    on_first: OnFirst | None = None,
    floor: Floor | None = None,
) -> Chosen:
    """Measure the rows of the results table, reconstruct the finalists, and choose one.

    Args:
        problem: Predicts costs.
        budgets: That count when it is measured.
        found: By the search.
        searched: The states that the search saw.
        workshop: Reconstructs and measures; its clock says for how many finalists there is time.
        hardware: What step 2 told of the float model.
        last: Whether a finalist that keeps the budgets is preferred to a better one that does not.
        on_first: Called with the first of them.
        floor: The least score on the search images; the cheapest that keeps it is chosen. Where none does,
            that of the highest score, whose `drop` says so.
    """
    labels = {**_shown(problem, found, workshop.config), **found.finalists}
    rows, learned = dict[str, Row](), dict[Indices, States]()
    finished = worth_finishing(problem, _order(found), found, searched, workshop)
    order, took = worth_learning(problem, labels, finished, found, workshop), 0.0
    for done, indices in enumerate(order):
        if done and not _in_time(workshop, took, len(order) - done):
            break
        label, start = label_of(labels, indices), time.monotonic()
        states = workshop.reconstructed(problem.assignment(indices), label)
        row = _finished(label, problem, indices, budgets, searched, states, workshop)
        rows[label], learned[indices], took = row, states, time.monotonic() - start
        if not done and on_first is not None:
            first = _choice(row, "the first that was finished", problem, budgets, found)
            first = _judged(first, floor, states, workshop)
            if first.kept:
                on_first(first, states)
    for label, indices in labels.items():
        if label not in rows and (indices in learned or indices not in order):
            made = _row(label, problem, indices, budgets, searched, workshop)
            twin = next((row for row in rows.values() if row.indices == indices), made)
            rows[label] = replace(made, reconstructed=twin.reconstructed, gained=twin.gained)
    kept = [rows[label] for label in labels if label in rows]
    done_rows = [row for row in kept if row.reconstructed is not None]
    keeping = [row for row in done_rows if all(b.kept(row.reconstructed or {}) for b in budgets)]
    among = keeping if last and keeping else done_rows
    if found.asked_for is not None:
        row, reason = rows[next(iter(found.rivals))], f"asked for by {found.asked_for}"
    elif floor is not None:
        row, reason = _least_of(among, floor, learned, workshop)
    else:
        row, reason = _best_of(among, found.uniform, learned, workshop)
    best = _judged(_choice(row, reason, problem, budgets, found), floor, learned[row.indices], workshop)
    return Chosen((_float_row(problem, budgets, workshop, hardware), *kept), best, learned[row.indices])


def _shown(problem: Problem, found: Found, config: RunConfig) -> dict[str, Indices]:
    """The uniform assignments of the table, by label."""
    wide = (8, 6, 4) if config.effort_settings.shown and config.time_limit is None else ()
    even = even_uniforms(problem, config)
    shown = {
        u.label: u.indices
        for u in run_uniforms(problem, config)
        if u.indices == found.uniform or (u in even and u.candidate.w_bits in wide)
    }
    return shown | (_units_alone(problem, shown) if config.deployment.tensors else {})


def _units_alone(problem: Problem, shown: Mapping[str, Indices]) -> dict[str, Indices]:
    """The same with residual operands and pool inputs in float: Q/DQ at the inputs of units alone."""
    found = {}
    for label, indices in shown.items():
        pairs = zip(problem.layers, problem.candidates, indices, strict=True)
        alone = tuple(
            i if layer.weight_shape or FLOAT not in row else row.index(FLOAT) for layer, row, i in pairs
        )
        found[f"{label} at unit inputs alone"] = alone
    return found


def _order(found: Found) -> list[Indices]:
    """Finalists as they are finished, each once: what was asked for, the optimum, the uniform one, others."""
    asked = [] if found.asked_for is None else list(found.rivals.values())
    optimum, *others = found.finalists.values()
    uniform = [] if found.uniform is None else [found.uniform]
    return list(dict.fromkeys([*asked, optimum, *uniform, *others]))


def _in_time(workshop: Workshop, took: float, left: int) -> bool:
    """Whether there is time for one more finalist, as long as the one before, and the artifact."""
    if workshop.clock.allows(took + (workshop.plan.artifact if workshop.plan else 0.0)):
        return True
    workshop.progress.say(f"The time limit leaves no room for {left} further finalists.")
    return False


def _finished(
    label: str,
    problem: Problem,
    indices: Indices,
    budgets: Sequence[Budget],
    searched: Calibration,
    states: States,
    workshop: Workshop,
) -> Row:
    """The row of a finalist."""
    row = _row(label, problem, indices, budgets, searched, workshop)
    gained = tuple(workshop.reconstruction.gained(problem.assignment(indices)))
    return replace(row, reconstructed=workshop.measured(states, whole=True), gained=gained)


def _choice(row: Row, reason: str, problem: Problem, budgets: tuple[Budget, ...], found: Found) -> Choice:
    """A finalist as what is shipped, its files not written yet."""
    readings = row.reconstructed or {}
    return Choice(
        row.label,
        reason,
        problem.assignment(row.indices),
        row.indices,
        budgets,
        problem.cost(row.indices),
        {k: v for k, v in readings.items() if k in MEASURED},
        readings["metrics"],
        Proxy(found.proxy, found.optimum.status, found.optimum.found_by),
        {},
    )


def _judged(choice: Choice, floor: Floor | None, states: States, workshop: Workshop) -> Choice:
    """The choice with what is known of its drop."""
    if floor is None:
        return choice
    score = workshop.scoring.of(states, "search")
    return replace(choice, drop=floor.to_json(score, len(workshop.subject.splits.search)))


def _least_of(
    done: Sequence[Row], floor: Floor, learned: Mapping[Indices, States], workshop: Workshop
) -> tuple[Row, str]:
    """Of the finalists that keep the floor on the search images the one that takes least; of those that take
    about as little, that of least loss. Where none keeps it, the one of the highest score.
    """
    scores = {row.label: workshop.scoring.of(learned[row.indices], "search") for row in done}
    kept = [row for row in done if floor.kept(scores[row.label])]
    if not kept:
        best = max(done, key=lambda row: scores[row.label])
        return best, f"the highest {floor.name} on the search images, and below what is allowed"
    resource = workshop.minimized
    least = min(_takes(row, resource) for row in kept)
    near = [row for row in kept if _takes(row, resource) <= ALIKE * least]
    best = min(near, key=lambda row: (row.reconstructed or {})["search_kl"])
    said = (
        f"{told(floor.name, scores[best.label])} on the search images, where {floor.least:.4g} is the least"
    )
    return (
        best,
        f"the least {resource.rpartition('_')[0]} of {len(kept)} finalists that keep the drop: {said}",
    )


def _takes(row: Row, resource: str) -> float:
    """What a finalist takes as measured, else as predicted."""
    predicted = getattr(row.predicted, resource)
    return float((row.reconstructed or {}).get(resource) or predicted or 0.0)


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
            f"least loss on the search images, by more than {TIE:g} standard errors below {plain.label}",
        )
    return (
        plain,
        f"a tie with {best.label}, which is better on the search images by less than {TIE:g} standard errors",
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


def _float_row(
    problem: Problem, budgets: Sequence[Budget], workshop: Workshop, hardware: Mapping[str, Any]
) -> Row:
    """The model in which nothing is quantised: on a target that is timed elsewhere an engine, with what it is
    predicted to take.
    """
    images, logits = workshop.subject.splits.evaluation, workshop.evaluation.reference()["evaluation"]
    metrics = workshop.with_metric(workshop.task.compare(logits, logits, images.labels).to_json(), None)
    measured: dict[str, Any] = {"metrics": metrics, **workshop.measurement.float_sizes()}
    target, indices = workshop.config.deployment, problem.uniform(FLOAT)
    if target.elsewhere and indices is not None:
        cost, plain = problem.cost(indices), problem.assignment(indices)
        fits = keeps(problem, indices, budgets)
        return Row(target.float_label, 32.0, measured, fits, indices, plain, cost)
    took = {name: hardware.get(f"float_{name}") for name in ("latency_us", "energy_mj")}
    return Row(
        target.float_label,
        32.0,
        measured | {name: value for name, value in took.items() if value is not None},
    )
