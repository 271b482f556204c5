"""`run`: the seven steps in order, every one resumable; `search`: the same on any nn.Module."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from mpsearch import files
from mpsearch.accelerator import describe_device, exact_float32, find_device
from mpsearch.errors import InfeasibleError, OptionError
from mpsearch.evaluate import MetricSamples, metric_of
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.given import Given
from mpsearch.pipeline.progress import Progress, Silent
from mpsearch.pipeline.results import Choice, Results
from mpsearch.pipeline.steps.assigned import assigned
from mpsearch.pipeline.steps.clock import Clock
from mpsearch.pipeline.steps.costs import limited
from mpsearch.pipeline.steps.dry import try_export
from mpsearch.pipeline.steps.engines import add_engines, say_of
from mpsearch.pipeline.steps.finalists import Chosen, choose
from mpsearch.pipeline.steps.front import write_front
from mpsearch.pipeline.steps.inputs import chosen_names
from mpsearch.pipeline.steps.latency import (
    add_latency,
    backend_of,
    has_backend,
    latency_table,
    require_tables,
)
from mpsearch.pipeline.steps.learned import searched_calibration
from mpsearch.pipeline.steps.memory import add_memory, limits_memory, memory_kernels
from mpsearch.pipeline.steps.plan import planned
from mpsearch.pipeline.steps.scores import add_scores
from mpsearch.pipeline.steps.scoring import Floor
from mpsearch.pipeline.steps.search import Found, additive, search_assignments
from mpsearch.pipeline.steps.smallest import floor_of, unreachable, within_drop
from mpsearch.pipeline.steps.states import States
from mpsearch.pipeline.steps.subject import (
    Subject,
    calibrate_subject,
    load_subject,
    require_same_weights,
)
from mpsearch.pipeline.steps.tightening import REPAIRS, broken, lowered, scouted, told
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.pipeline.workers.crew import Crew
from mpsearch.problem import Budget, Problem
from mpsearch.reconstruct import Calibration
from mpsearch.solvers import reachable

_PACKAGES = (
    "mpsearch",
    "torch",
    "timm",
    "optuna",
    "onnx",
    "onnxruntime",
    "openvino",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
)
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
        return _run(subject, config, study, progress, clock, crew).to_json()


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
    """The same on any module.

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
        progress: Where progress goes.
        settings: Further fields of `RunConfig`, such as `task="embedding"`.
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
        return _run(subject, config, folder, progress, clock).to_json()


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


def _run(
    subject: Subject,
    given: RunConfig,
    study: Study,
    progress: Progress,
    clock: Clock,
    crew: Crew | None = None,
) -> Results:
    """The seven steps, from a model and its images on; `crew` where other processes can load the model from
    the settings.
    """
    problem, budgets = limited(subject, given)
    try_export(subject, problem, given, study, progress)
    subject, config, plan = planned(subject, problem, given, study, progress, clock)
    with clock.step("ranges of inputs"):
        calibration = calibrate_subject(subject, config, progress, study)
    workshop = Workshop(subject, calibration, config, study, progress, plan, clock)
    with clock.step("latency table"):
        problem, hardware = _priced(problem, budgets, workshop)
    with clock.step("codes of every unit at every width"):
        searched = searched_calibration(problem, workshop)
    with clock.step("scores"):
        problem, objectives = add_scores(problem, subject, searched, config, study, progress)
    files.write_json(study.path / "problem.json", problem.to_json())
    about = {"versions": _versions(), "hashes": subject.hashes, "splits": subject.splits.to_json()}
    about["device"] = describe_device(subject.device)
    study.describe(given, {**about, **hardware, "objectives": objectives, "settled": config.to_json()})
    with clock.step("float model"):
        workshop.evaluation.reference()
        if subject.metric is not None:  # on all its images, before anything is searched by it
            workshop.scoring.of_float("evaluation")
        floor = floor_of(workshop)
    crew = crew or Crew()
    told = hardware.get("hardware", {})
    if config.assigner is not None:
        chosen, found, limits = _without_budgets(problem, searched, workshop, told)
    elif floor is not None and not budgets:
        chosen, found, limits = within_drop(problem, floor, searched, workshop, crew, told)
        with workshop.clock.step("artifact"):
            chosen = replace(chosen, best=_shipped(chosen.best, chosen.states, workshop))
    else:
        chosen, found, limits = _within_budgets(problem, budgets, searched, workshop, crew, told, floor)
    results = _written(problem, chosen, found, limits, workshop)
    with contextlib.closing(crew.studies(study)) as studies:
        studies.finish()
    return results


def _priced(
    problem: Problem, budgets: tuple[Budget, ...], workshop: Workshop
) -> tuple[Problem, dict[str, Any]]:
    """Step 2: the problem with what its candidates take on the target, and how that came about."""
    config, progress, about = workshop.config, workshop.progress, dict[str, Any]()
    deployment = workshop.deployment
    engines = deployment.engines
    if engines is not None:
        problem, about["hardware"] = add_engines(problem, budgets, config, engines, progress)
    elif has_backend(config):
        table, where = latency_table(problem, config, progress)
        architecture = deployment.architecture(problem)
        problem, about["hardware"] = add_latency(problem, config, table, where, architecture, progress)
    if limits_memory(config):
        backend = backend_of(config)
        peaks = deployment.uniform_peaks(memory_kernels(problem, backend))
        problem, about["memory"] = add_memory(problem, backend, workshop.subject.graphs.at(), peaks, progress)
    return problem, about


def _within_budgets(
    problem: Problem,
    budgets: tuple[Budget, ...],
    searched: Calibration,
    workshop: Workshop,
    crew: Crew,
    hardware: Mapping[str, Any],
    floor: Floor | None = None,
) -> tuple[Chosen, Found, tuple[Budget, ...]]:
    """Steps 4 to 6, again with tightened limits as long as what was chosen breaks a budget when it is
    measured, and no more than `REPAIRS` times.

    In the last round, or where nothing lower is predicted, a finalist that keeps the budgets when measured is
    preferred to a better one that does not. What is measured last is the artifact itself.

    Returns: The choice as shipped, what it was found among, and the limits that the solver was given.
    """
    least = {resource: low for resource, (low, _) in reachable(problem).items()}
    limits, repairs = scouted(problem, budgets, least, workshop)
    shipped: dict[tuple[int, ...], Choice] = {}

    def ship(choice: Choice, states: States) -> None:
        if choice.indices not in shipped:
            shipped.clear()  # its files are replaced
            shipped[choice.indices] = _shipped(choice, states, workshop)

    for turn in range(REPAIRS):
        with workshop.clock.step("trials"):
            found = search_assignments(problem, limits, searched, workshop, crew)
        last = turn == REPAIRS - 1 or any(limit.limit <= least.get(limit.resource, 0.0) for limit in limits)
        with workshop.clock.step("finalists"):
            early = None if workshop.clock.limit is None else ship
            chosen = choose(problem, budgets, found, searched, workshop, hardware, last, early, floor)
        if floor is not None and not (chosen.best.drop or {}).get("kept"):
            raise unreachable(chosen.best, floor, "Raise the budget, or allow more.")
        if chosen.best.kept:
            with workshop.clock.step("artifact"):
                ship(chosen.best, chosen.states)
            written = replace(
                shipped[chosen.best.indices], label=chosen.best.label, reason=chosen.best.reason
            )
            chosen = replace(chosen, best=written)
            if chosen.best.kept:
                return replace(chosen, best=replace(chosen.best, repairs=tuple(repairs))), found, limits
            shutil.rmtree(workshop.study.artifact)  # what breaks a budget is not to be shipped
            shipped.clear()
        best = chosen.best
        for repair in broken(budgets, best.predicted, best.measured):
            repairs.append(repair)
            workshop.progress.say(
                f"{best.label}: {told(repair)}: tightened by that ratio, and searched again."
            )
        limits = lowered(budgets, limits, best.predicted, best.measured, least)
    raise InfeasibleError(
        (
            f"After {REPAIRS} rounds no exported model keeps {', '.join(map(str, budgets))} when it is "
            "measured. Raise the budget."
        ),
        {b.resource: b.spent(best.measured) or 0.0 for b in budgets},
    )


def _without_budgets(
    problem: Problem, searched: Calibration, workshop: Workshop, hardware: Mapping[str, Any]
) -> tuple[Chosen, Found, tuple[Budget, ...]]:
    """Steps 4 to 6 of `--assign`. Returns: As `_within_budgets`."""
    found = assigned(problem, searched, workshop)
    chosen = choose(problem, (), found, searched, workshop, hardware)
    return replace(chosen, best=_shipped(chosen.best, chosen.states, workshop)), found, ()


def _shipped(choice: Choice, states: States, workshop: Workshop) -> Choice:
    """Step 6: the choice with its files."""
    earlier = workshop.study.set_aside(workshop.config.asked)
    if earlier is not None:
        workshop.progress.say(f"The artifact and the report of earlier budgets are in {earlier} now.")
    told = ("assignment", "budgets", "predicted", "measured", "metrics")
    description = {name: value for name, value in choice.to_json().items() if name in told}
    return choice.shipped(workshop.artifact.write(states, description))


def _written(
    problem: Problem, chosen: Chosen, found: Found, limits: tuple[Budget, ...], workshop: Workshop
) -> Results:
    """What step 7 reads: `front.*`, `best.json` and `results.json`."""
    study, subject, best = workshop.study, workshop.subject, chosen.best
    base, alone = additive(problem, best.proxy.objective)[0], replace(problem, interactions={})
    write_front(study, alone, base, workshop.front_over, found.trials)
    model = {
        "not_quantized": subject.layout.leftover_bytes(),
        "header_bytes": subject.layout.header_bytes,
        "unused": list(subject.graph.unused),
        "float_in_graph": [layer.name for layer in problem.layers if layer.name not in subject.layout.units],
        "input_grids": chosen_names(workshop.calibration, chosen.states),
        "rounded_to_nearest": subject.unlearned,
        "blocks": [[name, list(units)] for name, units in subject.blocks],
        "plan": _told(workshop),
        "latencies": say_of(problem, workshop.deployment.engines),
        "metric": None if subject.metric is None else subject.metric.to_json(),
        "batch": workshop.config.batch,
    }
    results = Results(chosen.rows, best, found.journal, str(study.path), workshop.task.measure, limits, model)
    files.write_json(study.path / "best.json", best.to_json())
    files.write_json(study.path / "results.json", results.to_json())
    return results


def _told(workshop: Workshop) -> dict[str, Any]:
    """What was planned, and what it took."""
    took = {name: round(seconds, 2) for name, seconds in workshop.clock.took.items()}
    plan = {} if workshop.plan is None else workshop.plan.to_json()
    return {**plan, "took": took, "took_s": round(workshop.clock.spent, 2)}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "not installed"
    return found
