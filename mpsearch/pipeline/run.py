"""`run`: the seven steps in order, every one resumable; `search`: the same on any nn.Module."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mpsearch import files
from mpsearch.data import ImageSet, make_splits
from mpsearch.errors import InfeasibleError
from mpsearch.evaluate import FastEvaluator, clearly_lower, compare
from mpsearch.hardware import LatencyTable
from mpsearch.models import from_module
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.costs import add_scores, resolve_budgets, sized_problem
from mpsearch.pipeline.finalists import Workshop
from mpsearch.pipeline.front import write_front
from mpsearch.pipeline.latency import add_latency, backend_of, latency_table
from mpsearch.pipeline.memory import add_memory, limits_memory, memory_kernels
from mpsearch.pipeline.prepare import Subject, calibrate_subject, load_subject, make_subject
from mpsearch.pipeline.progress import Progress, Silent
from mpsearch.pipeline.sampling import mean_bits
from mpsearch.pipeline.study import Study
from mpsearch.problem import Budget, Candidate, Problem
from mpsearch.search import Trial, explore, problem_front, solve
from mpsearch.units import format_quantity

_PACKAGES = ("mpsearch", "torch", "timm", "optuna", "onnx", "onnxruntime", "numpy", "scipy", "scikit-learn", "safetensors")
_REPAIRS = 4


def run(config: RunConfig, study: Study, progress: Progress | None = None) -> dict[str, Any]:
    """Do, or finish, a study.

    Args:
        config: Settings.
        study: Its folder; what is there already is used.
        progress: Where progress goes.
    Returns: What was written to `results.json`: rows of the results table, the chosen assignment, predicted and measured.

    Raises:
        InfeasibleError: No assignment keeps the budgets.
        UserError: Anything in the settings cannot be used.
    """
    progress = progress or Silent()
    with study.busy():
        study.claim(config)
        subject = load_subject(config, progress)
        return _run(subject, config, study, progress)


def search(
    model: nn.Module,
    calibration: ImageSet,
    *,
    budgets: Sequence[str],
    evaluation: ImageSet | None = None,
    study: str | Path = "studies/search",
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The same on any module.

    Args:
        model: Float, one tensor in, logits out; not changed.
        calibration: Images for ranges, reconstruction and the searched loss (and evaluation, where none is given).
        budgets: As on the command line, such as `["15MB"]`.
        evaluation: Images for what is reported.
        study: Folder for the results; the artifact is in `artifact/` below it.
        progress: Where progress goes.
        settings: Further fields of `RunConfig`.
    Returns: As `run`.
    """
    progress, folder = progress or Silent(), Study(Path(study))
    config = RunConfig(budgets=tuple(budgets), model=type(model).__name__, data=calibration.name, **settings)
    splits = make_splits(
        evaluation if evaluation is not None else calibration,
        calibration=calibration if evaluation is not None else None,
        calibration_images=config.calibration_images,
        search_images=config.search_images,
        evaluation_images=config.evaluation_images,
        seed=config.seed,
    )
    with folder.busy():
        folder.claim(config)
        return _run(make_subject(from_module(model), splits), config, folder, progress)


def profile_model(config: RunConfig, progress: Progress, at_most: int | None = None) -> tuple[LatencyTable, Path]:
    """Measure the rows that this device's table lacks for a model, or the most informative of them. Returns the table and its file."""
    return latency_table(sized_problem(load_subject(config, progress), config), config, progress, at_most)


def _run(subject: Subject, config: RunConfig, study: Study, progress: Progress) -> dict[str, Any]:
    problem = sized_problem(subject, config)
    budgets = resolve_budgets(subject, problem, config)
    about: dict[str, Any] = {"versions": _versions(), "hashes": subject.hashes, "splits": subject.splits.to_json()}
    calibration = calibrate_subject(subject, config, progress)
    workshop = Workshop(subject, calibration, config, study, progress)
    if config.target != "packed":
        table, where = latency_table(problem, config, progress)
        problem, about["hardware"] = add_latency(problem, config, table, where, workshop.architecture(problem), progress)
    if limits_memory(config):
        peaks = workshop.uniform_peaks(memory_kernels(problem, backend_of(config)))
        problem, about["memory"] = add_memory(problem, backend_of(config), workshop.float_onnx(), peaks, progress)
    problem, about["objectives"] = add_scores(problem, subject, calibration, config, study, progress)
    files.write_json(study.path / "problem.json", problem.to_json())
    study.describe(config, about)
    workshop.reference()
    return _repaired(problem, budgets, workshop, about)


def _repaired(problem: Problem, budgets: tuple[Budget, ...], workshop: Workshop, about: dict[str, Any]) -> dict[str, Any]:
    """Steps 4 to 6, again with tightened limits as long as what was chosen breaks a budget when it is measured, and no more than `_REPAIRS` times.

    In the last round a finalist that keeps the budgets when measured is preferred to a better one that does not.
    """
    limits, repairs = budgets, list[dict[str, Any]]()
    for turn in range(_REPAIRS):
        found = _search(problem, limits, workshop)
        result = _finish(problem, budgets, found, workshop, about, last=turn == _REPAIRS - 1)
        best = result["best"]
        broken = [b for b in budgets if best["measured"].get(b.resource, 0.0) > b.limit]
        if not broken:
            best["repairs"] = repairs
            return _write(result, problem, limits, found["trials"], workshop)
        for b in broken:
            got, predicted = best["measured"][b.resource], best["predicted"][b.resource]
            repairs.append({"resource": b.resource, "limit": b.limit, "predicted": predicted, "measured": got})
            workshop.progress.say(
                f"{best['label']}: measured {format_quantity(got, b.resource)} breaks the budget of {format_quantity(b.limit, b.resource)} "
                f"(predicted {format_quantity(predicted, b.resource)}): tightened by that ratio, and searched again."
            )
        limits = tuple(_tightened(b, limit, result) for b, limit in zip(budgets, limits, strict=True))
    raise InfeasibleError(
        f"After {_REPAIRS} rounds no exported model keeps {', '.join(map(str, budgets))} when it is measured. Raise the budget.",
        {b.resource: best["measured"].get(b.resource, 0.0) for b in budgets},
    )


def _tightened(budget: Budget, limit: Budget, result: dict[str, Any]) -> Budget:
    """A limit for the solver that was wrong by as much as the last measurement was."""
    got, predicted = result["best"]["measured"].get(budget.resource), result["best"]["predicted"].get(budget.resource)
    if got is None or predicted is None or got <= budget.limit:
        return limit
    return replace(limit, limit=min(limit.limit, predicted) * budget.limit / got * 0.99)


def _search(problem: Problem, limits: tuple[Budget, ...], workshop: Workshop) -> dict[str, Any]:
    """Step 4: the proxy's optimum, the greatest uniform assignment that fits, and the best of the study on the measured loss."""
    config, study, progress = workshop.config, workshop.study, workshop.progress
    proxy = workshop.config.objectives[0].partition(":")[0]
    optimum = solve(problem, proxy, limits)
    uniform = next((u for u in _uniforms(problem, config).values() if _keeps(problem, u, limits)), None)
    warm = [uniform] if uniform is not None else []
    evaluator = FastEvaluator(workshop.subject.module, workshop.calibration, workshop.subject.splits.search)
    key = [problem.to_json(), [b.to_json() for b in limits], workshop.subject.hashes, config.seed]
    journal = study.path / f"optuna-{files.digest(key)}.log"
    with progress.task("search on the measured loss") as advance:
        trials = explore(
            problem,
            proxy,
            limits,
            lambda i: evaluator.measure(problem.assignment(i)),
            journal,
            config.trials,
            config.seed,
            warm,
            on_trial=lambda d, t: advance(d, t),
        )
    best = min((t for t in trials if t.feasible), key=lambda t: (t.loss, t.number))
    return {"proxy": proxy, "optimum": optimum, "uniform": uniform, "best": best, "trials": trials, "journal": journal.name}


def _uniforms(problem: Problem, config: RunConfig) -> dict[str, tuple[int, ...]]:
    """`W8A8` and so on, widest first."""
    named = {f"W{b}A{config.a_bits}": problem.uniform(Candidate(b, config.a_bits)) for b in sorted(config.bits, reverse=True)}
    return {name: indices for name, indices in named.items() if indices is not None}


def _keeps(problem: Problem, indices: Sequence[int], limits: Sequence[Budget]) -> bool:
    cost = problem.cost(indices)
    return all(getattr(cost, b.resource) <= b.limit for b in limits)


def _finish(
    problem: Problem, budgets: Sequence[Budget], found: dict[str, Any], workshop: Workshop, about: dict[str, Any], last: bool = False
) -> dict[str, Any]:
    """Steps 5 and 6: rows of the results table; the finalists are reconstructed, and one is chosen, at last among those that keep the budgets if any does."""
    uniforms = _uniforms(problem, workshop.config)
    shown = {f"uniform {name}": indices for name, indices in uniforms.items() if name[:2] in ("W8", "W6", "W4") or indices == found["uniform"]}
    finalists = {f"exact optimum of {found['proxy']}": found["optimum"].indices, "best of the study": found["best"].indices}
    rows, learned = [], {}
    for label, indices in {**shown, **finalists}.items():
        row = _row(label, problem, indices, budgets, workshop)
        if label in finalists or indices == found["uniform"]:
            if indices not in learned:
                learned[indices] = workshop.reconstructed(problem.assignment(indices), label)
            row["reconstructed"] = workshop.measured(learned[indices])
        rows.append(row)
    done = [row for row in rows if "reconstructed" in row]
    keeping = [row for row in done if all(row["reconstructed"].get(b.resource, 0.0) <= b.limit for b in budgets)]
    done = keeping if last and keeping else done
    chosen, reason = _choose(done, found["uniform"], learned, workshop)
    best = {
        "label": chosen["label"],
        "reason": reason,
        "assignment": chosen["assignment"],
        "indices": chosen["indices"],
        "budgets": [b.to_json() for b in budgets],
        "predicted": chosen["predicted"],
        "measured": {k: v for k, v in chosen["reconstructed"].items() if k in ("size_bytes", "latency_us", "onnx_bytes", "memory_bytes")},
        "metrics": chosen["reconstructed"]["metrics"],
        "proxy": {"objective": found["proxy"], "status": found["optimum"].status, "found_by": found["optimum"].found_by},
    }
    return {"rows": [_float_row(workshop, about), *rows], "best": best, "states": learned[tuple(chosen["indices"])], "journal": found["journal"]}


def _choose(done: list[dict[str, Any]], uniform: tuple[int, ...] | None, learned: dict[tuple[int, ...], Any], workshop: Workshop) -> tuple[dict[str, Any], str]:
    """The finalist of least loss on the search images; but the uniform one where that is better by no more than chance."""
    best = min(done, key=lambda row: row["reconstructed"]["search_kl"])
    plain = next((row for row in done if tuple(row["indices"]) == uniform), None)
    if plain is None or plain is best:
        return best, "least loss on the search images"
    if clearly_lower(*(workshop.search_losses(learned[tuple(row["indices"])]) for row in (best, plain))):
        return best, f"least loss on the search images, by more than two standard errors below {plain['label']}"
    return plain, f"{best['label']} is better on the search images by less than two standard errors"


def _row(label: str, problem: Problem, indices: Sequence[int], budgets: Sequence[Budget], workshop: Workshop) -> dict[str, Any]:
    assignment = problem.assignment(indices)
    with workshop.progress.task(f"measure {label}") as advance:
        nearest = workshop.measured(workshop.calibration.states(assignment))
        advance(1, 1)
    return {
        "label": label,
        "indices": list(indices),
        "assignment": assignment.to_json(),
        "predicted": problem.cost(indices).to_json(),
        "mean_bits": mean_bits(problem, tuple(indices)),
        "fits": _keeps(problem, indices, budgets),
        "nearest": nearest,
    }


def _float_row(workshop: Workshop, about: dict[str, Any]) -> dict[str, Any]:
    images, logits = workshop.subject.splits.evaluation, workshop.reference()["evaluation"]
    measured: dict[str, Any] = {"metrics": compare(logits, logits, images.labels).to_json(), "size_bytes": workshop.subject.float_bytes()}
    if "hardware" in about:
        measured["latency_us"] = about["hardware"]["float_latency_us"]
    return {"label": "float", "mean_bits": 32.0, "fits": False, "predicted": {}, "nearest": measured}


def _write(result: dict[str, Any], problem: Problem, limits: Sequence[Budget], trials: Sequence[Trial], workshop: Workshop) -> dict[str, Any]:
    """Step 6, the artifact, and what step 7 reads."""
    study, subject, states = workshop.study, workshop.subject, result.pop("states")
    best = result["best"]
    best["artifact"] = workshop.write_artifact(states, {k: best[k] for k in ("assignment", "budgets", "predicted", "measured", "metrics")})
    proxy = best["proxy"]["objective"]
    write_front(study, problem, proxy, problem_front(problem, proxy), trials)
    result |= {
        "study": str(study.path),
        "not_quantized": subject.layout.leftover_bytes(),
        "header_bytes": subject.layout.header_bytes,
        "unused": list(subject.graph.unused),
        "float_in_graph": [layer.name for layer in problem.layers if not layer.weight_shape],
        "blocks": [[name, list(units)] for name, units in subject.blocks],
        "solver_limits": [b.to_json() for b in limits],
    }
    files.write_json(study.path / "best.json", best)
    files.write_json(study.path / "results.json", result)
    return result


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "not installed"
    return found
