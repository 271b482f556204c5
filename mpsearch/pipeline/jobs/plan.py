"""`plan_of`: what a run would do, without doing it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mpsearch.accelerator import exact_float32, find_device
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress, Silent
from mpsearch.pipeline.steps.clock import Clock
from mpsearch.pipeline.steps.costs import limited
from mpsearch.pipeline.steps.latency import require_tables
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.plan import Plan, planned
from mpsearch.units import format_quantity


@exact_float32()
def plan_of(config: RunConfig, study: Study, progress: Progress) -> tuple[Plan, list[str]]:
    """Read the model and the images, time a forward pass, and plan; nothing is kept.

    Args:
        config: Settings.
        study: The folder that a run would take.
        progress: Where it is told how far it is.
    Returns: The plan, and what is known of the model and the budgets, a line each.

    Raises:
        InfeasibleError: No assignment keeps the budgets, by their sizes.
        UserError: As of a run.
    """
    find_device(config.device)
    require_tables(config, written=False)
    study.require_usable(config)
    subject = load_subject(config, progress)
    problem, budgets = limited(subject, config)
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(config.limit_s)
        subject, _, plan = planned(subject, problem, config, Study(Path(folder)), Silent(), clock)
    sets = (len(subject.splits.calibration), len(subject.splits.search), len(subject.splits.evaluation))
    choices = sum(map(len, problem.candidates))
    return plan, [
        f"{len(problem.layers)} layers with {choices} candidates in all.",
        f"{sets[0]} images calibrate, {sets[1]} judge bit-widths, {sets[2]} are for what is reported.",
        *(f"Budget {b.text}: {format_quantity(b.limit, b.resource)}." for b in budgets),
    ]
