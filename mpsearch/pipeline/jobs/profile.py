"""`mpsearch profile`: the latency table of a device, for a model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mpsearch.errors import OptionError
from mpsearch.hardware import LatencyTable
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.costs import sized_problem
from mpsearch.pipeline.steps.latency import MIXED_RUNS, latency_table, require_tables
from mpsearch.pipeline.steps.latency_model import add_latency
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.workshop import Workshop


def profile_model(
    config: RunConfig, progress: Progress, at_most: int | None = None, models: int = 0
) -> tuple[LatencyTable, Path]:
    """Measure the rows that this device's table lacks for a model, or the most informative of them, and whole
    mixed models.

    Args:
        config: Model, images, target, tables and threads.
        progress: Where progress goes.
        at_most: So many rows; None for all.
        models: So many whole models, the uniform ones among them, to which the cost model of a latency budget
            is fitted; 0 for none. They are those that a run measures, which finds them in the table.
    Returns: The table and its file.

    Raises: OptionError: Whole models of a part of the rows.
    """
    if models and at_most is not None:
        raise OptionError(
            "Whole models are put together from every row, so --models and --at-most do not go together. "
            "Leave one of them out."
        )
    require_tables(config)
    subject = load_subject(config, progress, labelled=False)
    problem = sized_problem(subject, config)
    table, where = latency_table(problem, config, progress, at_most)
    if models:
        with tempfile.TemporaryDirectory() as folder:  # nothing but the table is kept
            workshop = Workshop(
                subject, calibrate_subject(subject, config, progress), config, Study(Path(folder)), progress
            )
            _, about = add_latency(
                problem, config, table, where, workshop.deployment.architecture(problem), progress, models
            )
        _tell_error(about, progress)
    return table, where


def _tell_error(about: dict[str, Any], progress: Progress) -> None:
    error = about["error"]
    if error is None:
        progress.say(
            f"{about['runs']} whole models are too few to tell how well the latency of others is "
            f"predicted; a latency budget measures {MIXED_RUNS}."
        )
        return
    verdict = (
        "well enough for a latency budget"
        if error["trusted"]
        else "too badly for a latency budget without --allow-estimate"
    )
    progress.say(
        f"Latency of mixed assignments is predicted {verdict}: {error['mape']:.1%} off on average, "
        f"{error['worst']:.1%} at worst, {error['runs']} runs."
    )
