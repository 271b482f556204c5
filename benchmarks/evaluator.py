"""What a true evaluation costs: against a float forward pass over the same images, and against quantising the
model anew for each trial.

Run: python benchmarks/evaluator.py resnet20 mobilenet vit. Needs the assets folder (MPSEARCH_ASSETS, else
../shared/assets). All times of a network come from one process with one thread, in processor time and in
turns, so that what else the machine does touches all alike; medians are compared.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from validate_objectives import MODELS, settings

from mpsearch.evaluate import FastEvaluator, predict
from mpsearch.hardware import identity
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.costs import sized_problem
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import Assignment, Problem
from mpsearch.quant import install
from mpsearch.reconstruct import Calibration, calibrate

ROOT = Path(__file__).resolve().parent.parent
HEADER = (
    (
        "| network | images | float pass, s | nothing shared | one unit changed | ranges anew | calibrated "
        "anew | kept, MB |\n"
    )
    + "|---" * 8
    + "|\n"
)
TEXT = """
Ratios to the float pass over the same images, in batches of 64. `nothing shared`: random assignments, each weight quantised before, no prefix shared.
`one unit changed`: a random unit of a measured assignment takes another candidate, as neighbours and polish do. `ranges anew`: the samples of inputs
are kept, but every trial looks for the ranges and rounds again, on a fresh copy of the model. `calibrated anew`: a trial also runs the calibration
images (as many as the search images) through the float model, as `prepare`-and-`convert` tools do.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "evaluator.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name in arguments.models:
        lines.append(row(name, arguments.images, arguments.turns))
        versions = ", ".join(
            f"{package} {importlib.metadata.version(package)}" for package in ("torch", "timm", "numpy")
        )
        method = f"one thread, processor time, seed 0, medians of {arguments.turns} turns"
        about = (
            f"`python benchmarks/evaluator.py {' '.join(sys.argv[1:])}`, {method}, {versions}. {identity()}."
        )
        arguments.output.write_text(f"# The fast evaluator\n\n{about}\n{TEXT}\n{HEADER}{''.join(lines)}")
        print(lines[-1], end="", flush=True)


def row(name: str, images: int, turns: int) -> str:
    """One network."""
    config = replace(settings(name, ("weight_mse",)), search_images=images, calibration_images=images)
    subject = load_subject(config, Silent())
    calibration, problem = calibrate_subject(subject, config, Silent()), sized_problem(subject, config)
    fast = FastEvaluator(subject.module, calibration, subject.splits.search)
    draw = random.Random(0)
    for width in range(len(problem.candidates[0])):  # every weight is quantised once
        fast.measure(problem.assignment([min(width, len(c) - 1) for c in problem.candidates]))
    works = _works(subject, calibration, problem, fast, draw)
    times: dict[str, list[float]] = {what: [] for what in works}
    for _ in range(turns):
        for what, work in works.items():
            begin = work[0]()
            start = time.process_time()
            work[1](begin)
            times[what].append(time.process_time() - start)
    median = {what: statistics.median(values) for what, values in times.items()}
    ratios = [f"{median[what] / median['float']:.2f}" for what in works if what != "float"]
    cells = [name, str(images), format(median["float"], ".3f"), *ratios, format(fast.kept_bytes / 1e6, ".0f")]
    return f"| {' | '.join(cells)} |\n"


Work = tuple[Callable[[], Assignment], Callable[[Assignment], object]]


def _works(
    subject: Subject, calibration: Calibration, problem: Problem, fast: FastEvaluator, draw: random.Random
) -> dict[str, Work]:
    search = subject.splits.search
    base = problem.assignment(_random(problem, draw))
    fast.measure(base)

    def anew(assignment: Assignment) -> object:
        fresh = replace(calibration, _weight_params={}, _input_params={})
        return predict(install(subject.module, fresh.states(assignment)), search)

    def whole(assignment: Assignment) -> object:
        fresh = calibrate(
            subject.module, subject.units, (inputs for inputs, _ in subject.splits.calibration.batches(64))
        )
        return predict(install(subject.module, fresh.states(assignment)), search)

    def random_assignment() -> Assignment:
        return problem.assignment(_random(problem, draw))

    def neighbour() -> Assignment:
        indices = list(problem.indices(base))
        free = [i for i, c in enumerate(problem.candidates) if len(c) > 1]
        changed = draw.choice(free)
        indices[changed] = draw.choice(
            [c for c in range(len(problem.candidates[changed])) if c != indices[changed]]
        )
        return problem.assignment(indices)

    return {
        "float": (random_assignment, lambda _: predict(subject.module, search)),
        "fast": (random_assignment, fast.measure),
        "neighbour": (neighbour, fast.measure),
        "anew": (random_assignment, anew),
        "whole": (random_assignment, whole),
    }


def _random(problem: Problem, draw: random.Random) -> Sequence[int]:
    return [draw.randrange(len(c)) for c in problem.candidates]


if __name__ == "__main__":
    main()
