"""`run`: a study from its settings; `search`: the same on any nn.Module. `flow` has the steps."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from mpsearch import files
from mpsearch.accelerator import exact_float32, find_device
from mpsearch.errors import OptionError
from mpsearch.evaluate import MetricSamples, metric_of
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.flow import seven_steps
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.given import Given
from mpsearch.pipeline.progress import Progress, Silent
from mpsearch.pipeline.steps.clock import Clock
from mpsearch.pipeline.steps.latency import require_tables
from mpsearch.pipeline.steps.loading import load_subject, require_same_weights
from mpsearch.pipeline.workers.crew import Crew
from mpsearch.problem import Budget

_GIVEN = {
    *("model", "model_args", "weights", "pretrained", "data", "calibration_data", "class_map"),
    *("input_size", "mean", "std", "interpolation"),
}
"""Settings that say where a model and images come from."""


@exact_float32()
def run(
    config: RunConfig,
    study: Study,
    progress: Progress | None = None,
    crew: Crew | None = None,
    *,
    started: float | None = None,
    beside: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Do, or finish, a study.

    Args:
        config: Settings.
        study: Its folder; what is there already is used.
        progress: Where progress goes.
        crew: Who measures the trials; None: this process.
        started: `time.monotonic()` from when on a time limit counts; None for now.
        beside: Text files that are written into the folder once it is taken, by name.
    Returns: What was written to `results.json`: rows of the results table, the chosen assignment, predicted
        and measured.

    Raises:
        InfeasibleError: No assignment keeps the budgets.
        UserError: Anything in the settings cannot be used, alone or with this crew.
        StudyError: Another process runs this study, in this folder or in the storage.
    """
    progress, crew = progress or Silent(), crew or Crew()
    if config.sampler != "mpsearch" and (crew.workers != 1 or crew.storage is not None):
        raise OptionError(
            f"--sampler {config.sampler} measures in the run's own process. Leave out "
            "--workers and --storage."
        )
    find_device(config.device)
    require_tables(config)
    clock = Clock(config.limit_s) if started is None else Clock(config.limit_s, started)
    with study.busy(), crew.held(study, config):
        _claim(study, config, progress)
        for name, text in (beside or {}).items():
            files.write_text(study.path / name, text)
        if crew.workers != 1:
            require_same_weights(config)
        subject = load_subject(config, progress, metric=metric_of(config.metric))
        return seven_steps(subject, config, study, progress, clock, crew).to_json()


@exact_float32()
def search(
    model: nn.Module,
    calibration: Any,
    *,
    budgets: Sequence[str] = (),
    evaluation: Any = None,
    metric: str | Callable[[nn.Module, MetricSamples], float] | None = None,
    study: str | Path = "studies/search",
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The same on any module; `mpsearch.search` says what the arguments mean, and writes the report too.

    Returns: As `run`.
    """
    _require_settings(settings)
    for text in budgets:
        Budget.parse(text)  # a slip is told at once
    progress, folder = progress or Silent(), Study(Path(study))
    own = metric_of(metric)
    given = Given(model, calibration, evaluation, own)
    name, data = given.names
    config = RunConfig(
        budgets=tuple(budgets),
        model=name,
        data=data,
        metric=None if own is None else own.text,
        **settings,
    )
    find_device(config.device)
    require_tables(config)
    clock = Clock(config.limit_s)
    with folder.busy():
        _claim(folder, config, progress)
        subject = given.subject(config, progress)
        return seven_steps(subject, config, folder, progress, clock).to_json()


def _claim(study: Study, config: RunConfig, progress: Progress) -> None:
    """Take the folder, and say where it was computed on another kind of device so far."""
    before, now = study.claim(config), find_device(config.device).type
    if before != now:
        progress.say(
            f"What {study.path} holds was computed on {before}. Now {now} computes, which adds in another "
            "order: what depends on that is computed again, and kept beside it."
        )


def _require_settings(settings: Mapping[str, Any]) -> None:
    """Raises OptionError where a name is none of a setting, or of one that says where a model or images come
    from, which are given.
    """
    known = {f.name for f in fields(RunConfig)} - _GIVEN - {"budgets", "metric"}
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            why = (
                "is about a model or images that are named, and here they are given"
                if name in _GIVEN
                else "is no setting of search"
            )
            raise OptionError(f"{name!r} {why}.{meant} Settings: {', '.join(sorted(known))}.")
