"""`mpsearch run`."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mpsearch import __version__
from mpsearch.cli import _options as common
from mpsearch.cli import _run_options as options
from mpsearch.cli._app import command
from mpsearch.cli._config_file import NAME as CONFIG
from mpsearch.cli._config_file import config_text
from mpsearch.cli._given import began, expand, is_given
from mpsearch.cli._reading import config_of, study_folder, study_name
from mpsearch.cli._run_print import print_result, tell_result
from mpsearch.cli._show import Format, ProgressBars, say, say_more
from mpsearch.errors import OptionError
from mpsearch.named import require_study
from mpsearch.pipeline.settings import DEFAULT_OBJECTIVES
from mpsearch.presets import preset_of
from mpsearch.problem import Budget

if TYPE_CHECKING:
    from mpsearch.pipeline import RunConfig
    from mpsearch.pipeline.folder import Study
    from mpsearch.pipeline.workers.crew import Crew

ASSIGNED_BITS = (3, 4, 5, 6)
"""What --assign divides the layers among where --bits does not say: a group at 2 bits ruins most networks."""

_WITH_RESUME = {
    *("resume", "budget", "max_drop", "metric", "allow_estimate", "device", "storage", "workers", "output"),
    *("dry_run", "quiet", "verbose"),
}


@command(
    "mpsearch run --budget 15MB",
    "mpsearch run --budget 5bits --model resnet18 --data images/val",
    "mpsearch run --preset qdrop --budget 4bits --model net.py:build --data val.npz",
    "mpsearch run settings.toml --budget 4bits",
    "mpsearch run --resume studies/default-15MB --budget 12MB",
)
def run(
    context: typer.Context,
    config: options.ConfigFile = None,
    preset: options.PresetName = None,
    budget: options.Budgets = None,
    max_drop: options.MaxDrop = None,
    model: common.Model = None,
    weights: common.Weights = None,
    data: common.Data = None,
    target: options.Target = "ort-cpu",
    effort: options.EffortName = "balanced",
    time_limit: options.TimeLimit = None,
    name: common.Name = None,
    resume: options.Resume = None,
    dry_run: options.DryRun = False,
    output: common.Output = Format.table,
    model_arg: common.ModelArguments = None,
    random_weights: common.RandomWeights = False,
    calibration_data: common.CalibrationData = None,
    class_map: common.ClassMap = None,
    metric: common.Metric = None,
    tokenizer: common.Tokenizer = None,
    text_length: common.TextLength = None,
    input_size: common.InputSize = None,
    mean: common.Mean = None,
    std: common.Std = None,
    interpolation: common.Interpolation = None,
    calibration_images: common.CalibrationImages = None,
    search_images: common.SearchImages = None,
    evaluation_images: common.EvaluationImages = None,
    bits: common.Bits = None,
    fix: common.Fix = None,
    a_bits: common.InputBits = "8",
    quantize: common.Quantize = "linear",
    smooth: common.Smooth = "none",
    input_observer: common.InputObserver = "mse",
    softmax: common.Softmax = "uniform",
    objective: options.RunObjectives = None,
    assign: options.Assign = None,
    trials: options.Trials = None,
    sampler: options.Sampler = "mpsearch",
    polish: options.Polish = None,
    first_last_bits: common.FirstLastBits = None,
    method: options.Method = "gptq",
    reconstruction_memory: options.ReconstructionMemory = "8GiB",
    iterations: options.Iterations = None,
    search_states: options.SearchStates = "gptq",
    bias_correction: options.BiasCorrection = True,
    tables: common.Tables = "latency_tables",
    table: options.Table = None,
    allow_estimate: options.AllowEstimate = False,
    threads: common.Threads = 1,
    batch: common.CallBatch = 1,
    device: common.Device = "auto",
    seed: common.Seed = 0,
    task: common.TaskName = "auto",
    batch_axis: common.BatchAxis = 0,
    storage: common.Storage = None,
    workers: options.Workers = 1,
) -> None:
    """Search, quantise, write the artifact, and report: all seven steps."""
    for text in budget or ():
        Budget.parse(text)  # before torch is imported: a slip is told at once
    if preset is not None:
        expand(context, preset, preset_of(preset))
    settings, study = _started(context) if resume is None else _resumed(context, resume)
    if dry_run:
        _print_plan(settings, study, output)
        return
    from mpsearch.pipeline.workers.crew import Crew

    text = config_text(settings, study.name, storage, workers)
    say_more(f"mpsearch {__version__}, Python {platform.python_version()}, {study.path}; settings:\n{text}")
    _finish(settings, study, Crew(storage, workers), output, text)


def _started(context: typer.Context) -> tuple[RunConfig, Study]:
    """Settings and folder of a new study."""
    given = context.params
    place = None if given["name"] is None else study_folder(given["name"])
    if given["assign"] is not None:
        _require_no_search(context)
    said = any("=" not in text for text in given["bits"] or ())
    narrow = {"bits": ASSIGNED_BITS} if given["assign"] is not None and not said else {}
    config = config_of(
        context,
        **narrow,
        budgets=tuple(given["budget"] or ()),
        objectives=tuple(given["objective"] or DEFAULT_OBJECTIVES),
    )
    about = config.asked if config.assign is None else (config.assign,)
    from mpsearch.pipeline.folder import Study

    return config, Study(place or study_folder(study_name(config.model, about)))


def _require_no_search(context: typer.Context) -> None:
    """Raises OptionError where an option of the search is given beside --assign, which makes none."""
    for name in ("trials", "sampler", "polish", "storage", "workers"):
        if is_given(context, name):
            raise OptionError(f"--assign makes no search, and --{name} is given. Leave one of them out.")


def _resumed(context: typer.Context, folder: Path) -> tuple[RunConfig, Study]:
    """Settings and folder of a study that goes on, with another budget where one is given."""
    require_study(folder)
    _require_unchanged(context)
    from mpsearch.pipeline.folder import Study

    study = Study(folder)
    config = study.config()
    if is_given(context, "device"):
        config = replace(config, device=context.params["device"])
    if context.params["allow_estimate"]:
        config = replace(config, allow_estimate=True)
    if context.params["metric"] is not None:
        config = replace(config, metric=context.params["metric"])
    asked = tuple(context.params["budget"] or ()), context.params["max_drop"]
    if asked != ((), None):  # what is asked for now is all that is asked for
        config = replace(config, budgets=asked[0], max_drop=asked[1])
    return config, study


def _print_plan(config: RunConfig, study: Study, output: Format) -> None:
    """What a run with these settings would do, and about how long each step would take here."""
    from mpsearch.pipeline.jobs.plan import plan_of

    plan, about = plan_of(config, study, ProgressBars())
    for line in about:
        say(line)
    print(plan.told() if output is Format.table else json.dumps(plan.to_json(), indent=1))


def _finish(config: RunConfig, study: Study, crew: Crew, output: Format, text: str) -> None:
    """All steps, and what is told of them."""
    from mpsearch.pipeline import run as run_study
    from mpsearch.report import write_report

    if study.holds(config):
        say(f"Continuing the study in {study.path}: what it holds already is used.")
    try:
        result = run_study(config, study, ProgressBars(), crew, started=began(), beside={CONFIG: text})
    except KeyboardInterrupt:
        say(f"\nInterrupted. Finish it with: mpsearch run --resume {study.path}")
        raise
    report = write_report(study.path)
    print_result(result, output)
    tell_result(result, report)


def _require_unchanged(context: typer.Context) -> None:
    """Raises OptionError where a setting is given that a study which goes on would pass over."""
    given = [name for name in context.params if is_given(context, name) and name not in _WITH_RESUME]
    if given:
        flags = ", ".join("CONFIG" if name == "config" else f"--{name.replace('_', '-')}" for name in given)
        raise OptionError(
            f"--resume goes on with the study's own settings, and {flags} would change them. Leave it "
            "out, or start another study with --name."
        )
