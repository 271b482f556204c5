"""`search`: all seven steps on any `nn.Module`, from a program or a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mpsearch.evaluate import MetricSamples, metric_of
from mpsearch.pipeline.given import Given
from mpsearch.pipeline.progress import Lines, Progress
from mpsearch.pipeline.runner import search as run_search
from mpsearch.report import write_report
from mpsearch.result import Result


def search(
    model: nn.Module,
    calibration: Any,
    *,
    budgets: Sequence[str] = (),
    evaluation: Any = None,
    metric: str | Callable[[nn.Module, MetricSamples], float] | None = None,
    study: str | Path = "studies/search",
    progress: Progress | bool = True,
    **settings: Any,
) -> Result:
    """Search, quantise, write the artifact and the report.

    Args:
        model: Float; not changed. It may read and give any mix of tensors in tuples, lists, dicts and
            dataclasses.
        calibration: A DataLoader, a Dataset, any iterable of samples (inputs, label), an `ImageSet` or a
            `TokenSet`: for ranges, reconstruction and the searched loss (and evaluation, where none is
            given).
        budgets: Limits as on the command line, such as `["15MB"]`; with `max_drop` there may be none.
        evaluation: Samples for what is reported.
        metric: (model, samples) -> number, higher is better, or `file.py:function`: reported beside the
            task's scores, and what `max_drop` limits. See `mpsearch.evaluate.MetricSamples`.
        study: Folder for the results; the artifact is in `artifact/` below it.
        progress: Where progress goes; True for lines on stderr, False for nowhere.
        settings: Further fields of `mpsearch.pipeline.RunConfig`, such as `trials=16` or `target="packed"`.
    Returns: The study, with the choice, the front, and methods to export any point.

    Raises:
        InfeasibleError: No assignment keeps the budgets.
        UserError: A setting, the model or the samples cannot be used; says what to do.
    """
    run_search(
        model,
        calibration,
        budgets=budgets,
        evaluation=evaluation,
        metric=metric,
        study=study,
        progress=Lines.of(progress),
        **settings,
    )
    write_report(Path(study))
    return Result(study, model, Given(model, calibration, evaluation, metric_of(metric)).workshop)
