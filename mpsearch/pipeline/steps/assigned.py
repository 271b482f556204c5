"""`--assign`: bits without a budget and without a search, after Attention Round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mpsearch.evaluate import FastEvaluator
from mpsearch.objectives.coding_length import CodingLength, cluster_bits
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.search import Found, Indices, best_uniform
from mpsearch.pipeline.steps.tightening import proxy_of
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Budget, Candidate, Problem, mean_bits
from mpsearch.reconstruct import Calibration
from mpsearch.solvers import solve
from mpsearch.study import Trial

LABEL = "coding length"


def assigned(problem: Problem, calibration: Calibration, workshop: Workshop) -> Found:
    """The clustered assignment, which is delivered whatever stands beside it: the proxy's optimum and the
    best uniform assignment of no more bytes.

    Args:
        problem: With the tables of the objectives.
        calibration: The states that are compared on the search images.
        workshop: Model, images, settings.
    """
    config = workshop.config
    indices = clustered(problem, calibration, coding_length_of(config))
    _tell(problem, indices, workshop.progress)
    size = problem.cost(indices).size_bytes or 0.0
    same, proxy = (Budget("size_bytes", size, "its own bytes"),), proxy_of(config)
    optimum = solve(problem, proxy, same)
    uniform = best_uniform(problem, config, proxy, same)
    shown = {LABEL: indices, "exact front": optimum.indices} | (
        {} if uniform is None else {"uniform": uniform}
    )
    here, trials = workshop.subject.placed, list[Trial]()
    evaluator = FastEvaluator(here.module, calibration, here.search, task=workshop.task)
    with workshop.progress.task("measure on the search images") as advance:
        for number, (name, each) in enumerate(shown.items()):
            loss = evaluator.measure(problem.assignment(each))
            trials.append(Trial(number, each, loss, problem.cost(each), True, name))
            advance(number + 1, len(shown))
    return Found(proxy, optimum, uniform, {LABEL: indices}, trials, "", asked_for=f"--assign {config.assign}")


def clustered(problem: Problem, calibration: Calibration, reading: CodingLength) -> Indices:
    """L choices: coding lengths are clustered into as many groups as there are weight widths; a tie counts as
    one unit, with the mean of its weights, and a unit without a choice is left out.

    Where a unit has not the width of its group, it takes the nearest that it has, of two the wider; inputs
    have the most bits there are.
    """
    found = [_widest(row) for row in problem.candidates]
    free = [
        group
        for group in problem.ties
        if problem.layers[group[0]].weight_shape and len(_widths(problem.candidates[group[0]])) > 1
    ]
    bits = sorted({w for group in free for w in _widths(problem.candidates[group[0]])})
    if not free:
        return tuple(found)
    scores = [_level(problem, calibration, reading, group) for group in free]
    for group, given in zip(free, cluster_bits(scores, bits), strict=True):
        for i in group:
            row = problem.candidates[i]
            nearest = min(_widths(row), key=lambda w: (abs(w - given), -w))
            found[i] = _widest(row, nearest)
    return tuple(found)


def coding_length_of(config: RunConfig) -> CodingLength:
    """The reading that the settings ask for."""
    made = config.assigner
    if made is None:
        raise ValueError("The settings ask for a search.")
    return made


def _level(problem: Problem, calibration: Calibration, reading: CodingLength, group: Sequence[int]) -> float:
    sizes = [problem.layers[i].weight_numel for i in group]
    levels = [reading.level(calibration, problem.layers[i].name) for i in group]
    return sum(n * level for n, level in zip(sizes, levels, strict=True)) / sum(sizes)


def _widths(candidates: Sequence[Candidate]) -> list[int]:
    return sorted({c.w_bits for c in candidates if c.w_bits is not None})


def _widest(candidates: Sequence[Candidate], w_bits: int | None = None) -> int:
    """The choice of most input bits, among those of a weight width or, without one, of the widest."""
    width = w_bits or max(_widths(candidates), default=None)
    places = [i for i, c in enumerate(candidates) if c.w_bits == width]
    return max(places, key=lambda i: (candidates[i].a_bits or 0, -i))


def _tell(problem: Problem, indices: Indices, progress: Progress) -> None:
    assignment = problem.assignment(indices)
    held = Counter(c.w_bits for c in assignment.values() if c.w_bits is not None)
    groups = ", ".join(f"{count} at {bits}" for bits, count in sorted(held.items(), reverse=True))
    mean = mean_bits(problem.layers, assignment)
    progress.say(f"Coding length gives {mean:.2f} bits a weight on average; units by bits: {groups}.")
