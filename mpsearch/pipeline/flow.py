"""The seven steps in order, from a model and its images to the artifact and what the report reads."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mpsearch import files
from mpsearch.accelerator import describe_device
from mpsearch.errors import InfeasibleError
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.results import Choice, Results
from mpsearch.pipeline.steps.assigned import assigned
from mpsearch.pipeline.steps.clock import Clock
from mpsearch.pipeline.steps.costs import limited
from mpsearch.pipeline.steps.dry import try_export
from mpsearch.pipeline.steps.engines import add_engines, say_of
from mpsearch.pipeline.steps.finalists import Chosen, choose
from mpsearch.pipeline.steps.front import write_front
from mpsearch.pipeline.steps.inputs import chosen_names
from mpsearch.pipeline.steps.latency import backend_of, has_backend, latency_table
from mpsearch.pipeline.steps.latency_model import add_latency
from mpsearch.pipeline.steps.learned import searched_calibration
from mpsearch.pipeline.steps.memory import add_memory, limits_memory, memory_kernels
from mpsearch.pipeline.steps.plan import planned
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.scores import add_scores
from mpsearch.pipeline.steps.scoring import Floor
from mpsearch.pipeline.steps.search import Found, additive, search_assignments
from mpsearch.pipeline.steps.smallest import floor_of, unreachable, within_drop
from mpsearch.pipeline.steps.states import States
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.pipeline.steps.tightening import REPAIRS, broken, lowered, scouted, told
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.pipeline.workers.crew import Crew
from mpsearch.problem import Budget, Problem
from mpsearch.reconstruct import Calibration
from mpsearch.solvers import reachable

_PACKAGES = (
    *("mpsearch", "torch", "timm", "optuna", "onnx", "onnxruntime", "openvino"),
    *("numpy", "scipy", "scikit-learn", "safetensors"),
)


def seven_steps(
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
    raise _unrepaired(budgets, best)


def _unrepaired(budgets: tuple[Budget, ...], best: Choice) -> InfeasibleError:
    return InfeasibleError(
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
        "plan": _plan_and_times(workshop),
        "latencies": say_of(problem, workshop.deployment.engines),
        "metric": None if subject.metric is None else subject.metric.to_json(),
        "batch": workshop.config.batch,
    }
    results = Results(chosen.rows, best, found.journal, str(study.path), workshop.task.measure, limits, model)
    files.write_json(study.path / "best.json", best.to_json())
    files.write_json(study.path / "results.json", results.to_json())
    return results


def _plan_and_times(workshop: Workshop) -> dict[str, Any]:
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
