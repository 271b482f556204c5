"""The plan of a run: what each step will take on this machine, told before the first, and how much of it a
time limit leaves room for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from mpsearch.efforts import format_duration
from mpsearch.errors import OptionError
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.artifact import REREAD
from mpsearch.pipeline.steps.clock import Clock
from mpsearch.pipeline.steps.evaluation import FEW
from mpsearch.pipeline.steps.latency import has_backend, lacking_seconds
from mpsearch.pipeline.steps.pace import Pace, measure_pace
from mpsearch.pipeline.steps.subject import Subject, with_images
from mpsearch.problem import Problem
from mpsearch.reconstruct import METHODS

ROOM = 0.8
"""Share of a time limit that is planned for."""
FEWEST = (32, 32, 64)
"""Calibration, search and evaluation images that a time limit leaves at least, where there are as many."""
SHRINK = 0.8


@dataclass(frozen=True)
class Step:
    """A step of a plan.

    Args:
        name: For people.
        passes: Images that go through the network.
        seconds: What it is expected to take.
    """

    name: str
    passes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a run is going to do.

    Args:
        steps: In their order.
        finish: Seconds of one finalist, measured and all.
        trial: Seconds of one trial.
        artifact: Seconds of writing and checking the artifact.
    """

    steps: tuple[Step, ...]
    finish: float
    trial: float
    artifact: float

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        steps = [{"step": s.name, "passes": s.passes, "seconds": round(s.seconds, 2)} for s in self.steps]
        return {"steps": steps, "seconds": round(self.seconds, 2)}

    def told(self) -> str:
        """For people, a line for each step."""
        rows = [("step", "image passes", "about")]
        rows += [
            (s.name, f"{s.passes:,}" if s.passes else "", format_duration(s.seconds)) for s in self.steps
        ]
        rows.append(("in all", f"{sum(s.passes for s in self.steps):,}", format_duration(self.seconds)))
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"  {a:<{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}" for a, b, c in rows]
        return "\n".join(["Plan, by the time of a forward pass on this machine:", *lines])


def make_plan(
    pace: Pace,
    config: RunConfig,
    images: tuple[int, int, int],
    *,
    finalists: int | None = None,
    table: float = 0.0,
) -> Plan:
    """What the steps take. The factors are those of five networks (benchmarks/plan.py).

    Args:
        pace: This machine with this model.
        config: Settings.
        images: Calibration, search and evaluation images.
        finalists: How many; None for as many as the effort says.
        table: Seconds to measure what the latency table lacks.
    """
    calibration, search, evaluation = images
    image, touched = pace.forward, pace.values * pace.copy
    effort, widths = config.effort_settings, len(config.bits)
    one = pace.multiply * (pace.rounding + 3 * pace.factoring) + COLUMN * pace.columns
    finish = calibration * (5 * image + 20 * touched) + one + 2 * MADE * pace.units
    finish += OBSERVE * pace.weights * pace.copy
    learning = LEARNED * steps_of(config) * min(32, calibration)
    judge = (search + evaluation) * image * QUANTISED + search * image * QUANTISED
    trial = search * image * QUANTISED
    ranges = calibration * (image + 2 * touched) + math.ceil(calibration / 32) * MADE * pace.units
    codes = calibration * (image + 3 * touched) + COLUMN * pace.columns + 2 * MADE * pace.units
    codes += widths * (OBSERVE * pace.weights * pace.copy + pace.multiply * pace.rounding)
    codes += 3 * pace.multiply * pace.factoring
    trials, finalists = config.trial_count + config.polish_count, finalists or 2 + effort.rivals
    if config.time_limit is None and not effort.ties:
        finalists = min(finalists, SURE)
    learners = finalists if config.time_limit is not None else min(finalists, LEARNERS)
    shown = 3 if effort.shown and config.time_limit is None else 0
    few = search + min(evaluation, FEW)
    reads = min(evaluation, REREAD) + has_backend(config) * evaluation
    artifact = reads * pace.deployed * QUANTISED + FILE * (1 + has_backend(config))
    walks = config.max_drop is not None and not config.budgets
    steps = [
        Step("ranges of inputs", calibration, ranges),
        Step("codes of every unit at every width", calibration, codes),
        Step("scores", 9 * search, search * (5 * image + 4 * touched)),
        Step("float model", search + evaluation, (search + evaluation) * image),
        Step(f"{trials} trials", trials * search, trials * trial),
        Step("uniform rows", shown * few, shown * few * image * QUANTISED),
        *([] if config.greedy is None else [_walk(pace, config, search)]),
        *([Step("walk of the front", HALVINGS * search, HALVINGS * trial)] if walks else []),
        Step(
            f"{finalists} finalists",
            finalists * (8 * calibration + few) + learners * learning,
            finalists * (finish + judge) + learners * learning * image,
        ),
        Step("artifact", reads, artifact),
    ]
    steps.insert(1, Step("what the latency table lacks", 0, table))
    kept = [step for step in steps if step.seconds > 0]
    return Plan(tuple(kept), finish + learning * image + judge, trial, artifact)


def steps_of(config: RunConfig) -> int:
    """Steps in which each block learns, over all phases of the method; 0 where it is closed."""
    return config.steps * sum(not phase.closed for phase in METHODS.create(config.method).phases())


def _walk(pace: Pace, config: RunConfig, search: int) -> Step:
    """Greedy MP: each notch of each unit is measured about once."""
    notches = pace.units * (len(config.bits) + len(config.a_bits) - 2)
    return Step("Greedy MP", notches * search, notches * search * pace.forward * QUANTISED)


LEARNED = 10
"""Float passes that a step of learning is worth for each of its images, over all blocks."""
SURE = 2
"""Finalists that are mostly finished where the study's best must be clearly better than the optimum."""
LEARNERS = 2
"""Finalists that learn by gradients, of those that were rounded in closed form: one to all of them."""
FEWEST_STEPS = 20
"""Steps that a time limit leaves a block at least."""
COLUMN = 1e-4
"""Seconds that a column costs whatever its length: some twenty calls of torch."""
MADE = 5e-3
"""Seconds to draw what is kept of a unit's inputs and outputs in a batch."""
OBSERVE = 120.0
"""Numbers that are written for the grid of one weight at one width."""
HALVINGS = 16
"""Assignments that a walk for --max-drop measures, about."""
QUANTISED = 1.2
"""A quantised pass to a float one."""
FILE = 4.0
"""Seconds of writing and loading a file of a target."""


def planned(
    subject: Subject, problem: Problem, config: RunConfig, study: Study, progress: Progress, clock: Clock
) -> tuple[Subject, RunConfig, Plan]:
    """Measure the pace, tell the plan, and with a time limit keep to it: the subject with as many images as
    there is time for, and the settings with all that is decided now.

    A study that goes on keeps what was decided when it began.

    Args:
        subject: Model and all images.
        problem: Its candidates.
        config: Settings as given.
        study: Where the decision is kept.
        progress: Where the plan is told.
        clock: The run's.
    Raises: OptionError: There is not time for the least of everything.
    """
    splits = subject.splits
    there = (len(splits.calibration), len(splits.search), len(splits.evaluation))
    here = subject.placed
    apart = None if subject.device.type == "cpu" else (subject.module, splits.calibration)
    pace = measure_pace(here.module, subject.graph, here.calibration, apart)

    table = lacking_seconds(problem, config)

    def decide() -> dict[str, Any]:
        left = None if clock.limit is None else ROOM * clock.limit - clock.spent
        return decided(pace, config, there, left, table)

    held = study.cached("plan", [subject.hashes, config.to_json()], decide)
    settled = replace(
        config,
        trials=held["trials"],
        polish=held["polish"],
        iterations=held["iterations"],
        kept_images=tuple(held["kept_images"]),
    )
    plan = make_plan(pace, settled, tuple(held["kept_images"]), finalists=held["finalists"], table=table)
    progress.say(plan.told())
    return with_images(subject, settled), settled, plan


def decided(
    pace: Pace, config: RunConfig, there: tuple[int, int, int], left: float | None, table: float = 0.0
) -> dict[str, Any]:
    """Trials, polish, finalists and images that fit into so many seconds; all that is asked for where there
    is no limit.

    Raises: OptionError: Not even the least fits.
    """
    images, trials, polish = there, config.trial_count, config.polish_count
    finalists, iterations = 2 + config.effort_settings.rivals, config.iterations
    while left is not None:
        tried = replace(config, trials=trials, polish=polish, iterations=iterations)
        plan = make_plan(pace, tried, images, finalists=finalists, table=table)
        if plan.seconds <= left:
            break
        least = tuple(min(few, most) for few, most in zip(FEWEST, there, strict=True))
        smaller = tuple(max(few, int(n * SHRINK)) for few, n in zip(least, images, strict=True))
        fewer = int(trials * SHRINK), int(polish * SHRINK)
        fewest = make_plan(pace, tried, (*images[:2], least[2]), finalists=finalists, table=table)
        judging = plan.seconds - fewest.seconds
        if judging > left / 3:  # what is reported must not starve what is searched
            smaller, fewer = (*images[:2], smaller[2]), (trials, polish)
        if steps_of(tried) and tried.steps > FEWEST_STEPS:
            iterations = max(FEWEST_STEPS, int(tried.steps * SHRINK))
        elif (smaller, *fewer) == (images, trials, polish):
            if finalists > 1:
                finalists -= 1
                continue
            need = format_duration(plan.seconds)
            raise OptionError(
                f"With the least of everything the steps of a run take about {need} here, and "
                f"--time-limit {config.time_limit} leaves {format_duration(max(left, 0.0))} for them. Allow "
                "more time, or give fewer bit-widths with --bits."
            )
        images, (trials, polish) = (smaller[0], smaller[1], smaller[2]), fewer
    decided_on = {"trials": trials, "polish": polish, "finalists": finalists, "iterations": iterations}
    return {"kept_images": list(images), **decided_on}
