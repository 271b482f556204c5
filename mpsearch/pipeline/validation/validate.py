"""`mpsearch score --validate`: each objective against the true loss, in ranks over many sizes and in the loss
of its exact optimum.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpsearch import files
from mpsearch.accelerator import exact_float32
from mpsearch.errors import InfeasibleError, OptionError
from mpsearch.evaluate import FastEvaluator
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.score import Scored, score_held
from mpsearch.pipeline.progress import Advance, Progress, Silent
from mpsearch.pipeline.steps.costs import resolve_budgets
from mpsearch.pipeline.steps.learned import states_digest
from mpsearch.pipeline.steps.uniforms import Uniform, uniforms
from mpsearch.pipeline.validation.losses import Indices, LossBook
from mpsearch.pipeline.validation.outcome import Found, Outcome
from mpsearch.pipeline.validation.sampling import nudged, spread_assignments
from mpsearch.pipeline.validation.scorecard import markdown
from mpsearch.pipeline.validation.unseen import Unseen
from mpsearch.problem import Budget, Problem
from mpsearch.solvers import solve
from mpsearch.solvers.budgeted.neighbours import best_neighbour
from mpsearch.solvers.constraints import Constraints
from mpsearch.study.losses import LossFile


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Args:
        samples: Assignments spread over the range of sizes.
        budgets: How many levels between the widest and the narrowest bits, both left out, or `7,6,4`: bits a
            weight on average.
        local_steps: Measurements of the local search at each budget.
        unseen_images: Evaluation images at most, on which optima and best known are compared again; those
            that there are if fewer.
    """

    samples: int = 60
    budgets: str = "5"
    local_steps: int = 24
    unseen_images: int = 1000

    def __post_init__(self) -> None:
        if self.samples < 3 or self.local_steps < 0 or self.unseen_images < 2:
            raise OptionError(
                f"There are {self.samples} samples, {self.local_steps} local steps and "
                f"{self.unseen_images} unseen images; "
                "3 or more, 0 or more and 2 or more are needed."
            )

    def levels(self, bits: Sequence[int]) -> list[float]:
        """Bits a weight of each budget, widest first. Raises OptionError where the text is neither a count
        nor a list.
        """
        try:
            if self.budgets.isdecimal() and int(self.budgets) > 0:
                return [float(v) for v in np.linspace(max(bits), min(bits), int(self.budgets) + 2)[1:-1]]
            found = sorted({float(part) for part in self.budgets.split(",")}, reverse=True)
        except ValueError:
            found = []
        if "," not in self.budgets or not found or not all(1 < level <= 32 for level in found):
            raise OptionError(
                f"{self.budgets!r} are no budgets. Write how many, such as 5, or bits a weight, such as "
                "7,6,4."
            )
        return found


@exact_float32()
def validate_objectives(
    config: RunConfig, study: Study, effort: Effort | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Score, sample, measure and compare; write `validation.json` and `validation.md`.

    The true loss is the damage on the search images, with the states that a search would see. At each budget
    the best known is the least loss of all that is measured here and fits: samples, every objective's exact
    optimum, uniform bits, and a short local search that starts from the best of these and follows each
    objective in turn and chance. Being the least of many on these images, it is too good for them: the best
    known, the optima and uniform bits are therefore measured once more on evaluation images, which nothing
    was chosen by, and the regrets there have a standard error. There the optima and uniform bits are also
    finished by the method of the settings, and compared with the best of them. Every loss is kept when it is
    measured, so an interrupted call goes on where it stopped.

    Args:
        config: Model, images, candidates, objectives, seed; its budgets are not used.
        study: Folder.
        effort: How much is tried.
        progress: Where progress goes.
    Returns: What is written to `validation.json`.
    """
    effort, progress = effort or Effort(), progress or Silent()
    levels = effort.levels(config.bits)
    with study.busy():
        scored = score_held(config, study, progress)
        budgets, skipped = _budgets(scored, levels, progress)
        book = _book(scored, study)
        samples = _measured_samples(scored.problem, effort, config.seed, book, progress)
        found = [
            _Search(scored.problem, level, budget, book, progress).run(effort, config.seed)
            for level, budget in budgets
        ]
        unseen = Unseen(scored, study, _key(scored), effort.unseen_images)
        asked = {"samples_asked": effort.samples, "local_steps": effort.local_steps, "unreachable": skipped}
        result = Outcome(scored, samples, found, book, unseen).to_json(progress) | asked
        files.write_json(study.path / "validation.json", result)
        files.write_text(study.path / "validation.md", markdown(result))
    return result


def _budgets(
    scored: Scored, levels: Sequence[float], progress: Progress
) -> tuple[list[tuple[float, Budget]], list[float]]:
    """Absolute limits, and the levels that no assignment can keep."""
    kept, skipped = [], []
    sizes_alone = replace(scored.problem, scores={}, interactions={})
    for level in levels:
        try:
            (budget,) = resolve_budgets(sizes_alone, replace(scored.config, budgets=(f"{level:g}bits",)))
            kept.append((level, budget))
        except InfeasibleError as error:
            progress.say(f"A budget of {level:g} bits a weight is left out: {error}")
            skipped.append(level)
    if not kept:
        raise InfeasibleError(
            f"No assignment keeps any of the budgets of {', '.join(f'{v:g}' for v in levels)} bits a "
            "weight. Raise them with --budgets."
        )
    return kept, skipped


def _key(scored: Scored) -> list[Any]:
    """What a loss depends on but for its images and the assignment."""
    calibration, hashes = scored.calibration, scored.subject.hashes
    key: list[Any] = [
        hashes["weights"],
        hashes["calibration"],
        calibration.weight_grids,
        calibration.input_observer,
        states_digest(calibration),
    ]
    key += [[[str(c) for c in row] for row in scored.problem.candidates], scored.config.seed]
    key += scored.subject.arithmetic
    return key if scored.subject.task_text == "classification" else [*key, scored.subject.task_text]


def _book(scored: Scored, study: Study) -> LossBook:
    """Losses of this model, these images, quantisers and candidates."""
    problem, calibration = scored.problem, scored.calibration
    key = [*_key(scored), scored.subject.hashes["search"]]

    @functools.cache
    def evaluator() -> FastEvaluator:
        return FastEvaluator(
            scored.subject.placed.module,
            calibration,
            scored.subject.placed.search,
            task=scored.subject.task,
        )

    held = LossFile(study.step_path("losses", key, ".jsonl"), key)
    return LossBook(held, lambda indices: evaluator().measure(problem.assignment(indices)))


def _measured_samples(
    problem: Problem, effort: Effort, seed: int, book: LossBook, progress: Progress
) -> list[Indices]:
    found = spread_assignments(problem, effort.samples, seed)
    with progress.task("measure sampled assignments") as advance:
        for done, indices in enumerate(found, start=1):
            book.loss(indices, "sample")
            advance(done, len(found))
    return found


@dataclass(frozen=True)
class _Search:
    """Everything that is measured at one budget."""

    problem: Problem
    level: float
    budget: Budget
    book: LossBook
    progress: Progress

    def run(self, effort: Effort, seed: int) -> Found:
        """Optima of all objectives, uniform bits, and the local search."""
        solved = {text: solve(self.problem, text, [self.budget]) for text in self.problem.scores}
        uniform = self._uniform()
        with self.progress.task(f"measure at {self.level:g} bits a weight") as advance:
            total = len(solved) + 1 + effort.local_steps
            for done, (text, solution) in enumerate(solved.items(), start=1):
                self.book.loss(solution.indices, f"exact optimum of {text}")
                advance(done, total)
            if uniform is not None:
                self.book.loss(uniform.indices, uniform.label)
            self._improve(effort.local_steps, seed, advance, total)
        optima = {text: (s.indices, s.status) for text, s in solved.items()}
        return Found(self.level, self.budget, optima, None if uniform is None else uniform.indices)

    def _uniform(self) -> Uniform | None:
        choices = sorted(
            {c for row in self.problem.candidates for c in row if not c.is_float},
            key=lambda c: (-(c.w_bits or 0), -(c.a_bits or 0)),
        )
        return next((u for u in uniforms(self.problem, choices) if self._fits(u.indices)), None)

    def _fits(self, indices: Indices) -> bool:
        return (self.problem.cost(indices).size_bytes or 0.0) <= self.budget.limit

    def _improve(self, steps: int, seed: int, advance: Advance, total: int) -> None:
        """From the best that fits: the most promising unseen neighbour by each objective's table in turn, and
        between them a random exchange.
        """
        constraints = Constraints.of(self.problem, [self.budget])
        layers, texts = constraints.layers, list(self.problem.scores)
        rows = [layers.merge(self.problem.scores[text]) for text in texts]
        rng = np.random.default_rng([seed, round(self.level * 1000)])
        best = min((i for i in self.book.asked if self._fits(i)), key=lambda i: self.book.asked[i].value)
        for step in range(steps):
            seen = {layers.contract(i) for i in self.book.asked}
            if step % 2:
                found = nudged(self.problem, layers, best, self.budget.limit, rng)
            else:
                choices = best_neighbour(
                    constraints, rows[step // 2 % len(rows)], layers.contract(best), seen
                )
                found = None if choices is None else layers.expand(choices)
            if found is not None and self.book.loss(found, "local search") < self.book.asked[best].value:
                best = found
            advance(total - steps + step + 1, total)
