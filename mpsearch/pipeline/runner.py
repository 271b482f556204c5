"""`run`: the seven steps in order, every one resumable; `search`: the same on any nn.Module."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from mpsearch import files
from mpsearch.data import SampleSet
from mpsearch.errors import BudgetError, InfeasibleError, OptionError
from mpsearch.evaluate import FastEvaluator, clearly_lower
from mpsearch.models import from_module
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress, Silent
from mpsearch.pipeline.steps.costs import resolve_budgets, sized_problem
from mpsearch.pipeline.steps.finalists import Workshop
from mpsearch.pipeline.steps.front import write_front
from mpsearch.pipeline.steps.latency import add_latency, backend_of, latency_table, require_tables
from mpsearch.pipeline.steps.learned import searched_calibration, states_digest
from mpsearch.pipeline.steps.memory import add_memory, limits_memory, memory_kernels
from mpsearch.pipeline.steps.scores import add_scores
from mpsearch.pipeline.steps.subject import Subject, calibrate_subject, draw, load_subject, make_subject, require_same_weights
from mpsearch.pipeline.steps.tightening import REPAIRS, lowered, proxy_of, repair, scouted
from mpsearch.pipeline.steps.uniforms import Uniform, uniforms
from mpsearch.pipeline.workers.crew import Crew, Team, make_job
from mpsearch.problem import Budget, Candidate, Problem, mean_bits
from mpsearch.reconstruct import Calibration
from mpsearch.solvers import describe_least, problem_front, reachable, solve
from mpsearch.study import LossFile, Trial, explore, explore_by, polish
from mpsearch.units import format_pair, format_quantity

_PACKAGES = ("mpsearch", "torch", "timm", "optuna", "onnx", "onnxruntime", "openvino", "numpy", "scipy", "scikit-learn", "safetensors")
_GIVEN = {"model", "model_args", "weights", "pretrained", "data", "calibration_data", "class_map"}
"""Settings that say where a model and images come from."""
_MEASURED = ("size_bytes", "latency_us", "latency_high_us", "energy_mj", "memory_bytes", "onnx_bytes", "openvino_bytes", "triton_bytes")


def run(config: RunConfig, study: Study, progress: Progress | None = None, crew: Crew | None = None) -> dict[str, Any]:
    """Do, or finish, a study.

    Args:
        config: Settings.
        study: Its folder; what is there already is used.
        progress: Where progress goes.
        crew: Who measures the trials; None: this process.
    Returns: What was written to `results.json`: rows of the results table, the chosen assignment, predicted and measured.

    Raises:
        InfeasibleError: No assignment keeps the budgets.
        UserError: Anything in the settings cannot be used, alone or with this crew.
        StudyError: Another process runs this study, in this folder or in the storage.
    """
    progress, crew = progress or Silent(), crew or Crew()
    if config.sampler != "mpsearch" and (crew.workers != 1 or crew.storage is not None):
        raise OptionError(f"The baseline --sampler {config.sampler} measures in the run's own process. Leave out --workers and --storage.")
    require_tables(config)
    with study.busy(), crew.held(study, config):
        study.claim(config)
        if crew.workers != 1:
            require_same_weights(config)
        subject = load_subject(config, progress)
        return _run(subject, config, study, progress, crew)


def search(
    model: nn.Module,
    calibration: SampleSet,
    *,
    budgets: Sequence[str],
    evaluation: SampleSet | None = None,
    study: str | Path = "studies/search",
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The same on any module.

    Args:
        model: Float, one tensor in, logits (or what the `task` compares) out; not changed.
        calibration: Images, or texts as a `TokenSet`, for ranges, reconstruction and the searched loss (and evaluation, where none is given).
        budgets: As on the command line, such as `["15MB"]`.
        evaluation: Images for what is reported.
        study: Folder for the results; the artifact is in `artifact/` below it.
        progress: Where progress goes.
        settings: Further fields of `RunConfig`, such as `task="embedding"`.
    Returns: As `run`.
    """
    _require_settings(settings)
    for text in budgets:
        Budget.parse(text)  # a slip is told at once
    progress, folder = progress or Silent(), Study(Path(study))
    config = RunConfig(budgets=tuple(budgets), model=type(model).__name__, data=calibration.name, **settings)
    require_tables(config)
    loaded = from_module(model)
    both = (calibration, None) if evaluation is None else (evaluation, calibration)
    splits = draw(config, *both)
    with folder.busy():
        folder.claim(config)
        return _run(make_subject(loaded, splits, config, progress, model), config, folder, progress)


def _require_settings(settings: Mapping[str, Any]) -> None:
    """Raises OptionError where a name is none of a setting, or of one that says where a model or images come from, which are given."""
    known = {f.name for f in fields(RunConfig)} - _GIVEN - {"budgets"}
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            why = "is about a model or images that are named, and here they are given" if name in _GIVEN else "is no setting of search"
            raise OptionError(f"{name!r} {why}.{meant} Settings: {', '.join(sorted(known))}.")


def _run(subject: Subject, config: RunConfig, study: Study, progress: Progress, crew: Crew | None = None) -> dict[str, Any]:
    """The steps; `crew` where other processes can load the model from `config`."""
    problem, budgets = _limited(subject, config)
    about: dict[str, Any] = {"versions": _versions(), "hashes": subject.hashes, "splits": subject.splits.to_json()}
    calibration = calibrate_subject(subject, config, progress)
    workshop = Workshop(subject, calibration, config, study, progress)
    if config.target != "packed":
        table, where = latency_table(problem, config, progress)
        problem, about["hardware"] = add_latency(problem, config, table, where, workshop.architecture(problem), progress)
    if limits_memory(config):
        peaks = workshop.uniform_peaks(memory_kernels(problem, backend_of(config)))
        problem, about["memory"] = add_memory(problem, backend_of(config), workshop.float_onnx(), peaks, progress)
    searched = searched_calibration(problem, workshop)
    problem, about["objectives"] = add_scores(problem, subject, searched, config, study, progress)
    files.write_json(study.path / "problem.json", problem.to_json())
    study.describe(config, about)
    workshop.reference()
    result = _repaired(problem, budgets, searched, workshop, crew, about)
    with contextlib.closing((crew or Crew()).studies(study)) as studies:
        studies.finish()
    return result


def _limited(subject: Subject, config: RunConfig) -> tuple[Problem, tuple[Budget, ...]]:
    """The problem and its absolute limits. Raises as `resolve_budgets`, and says what can be reached also where a budget cannot be read."""
    try:
        problem = sized_problem(subject, config)
        return problem, resolve_budgets(problem, config)
    except BudgetError as error:
        problem = sized_problem(subject, replace(config, budgets=("8bits",)))
        raise BudgetError(f"{error} {describe_least(problem, {r: low for r, (low, _) in reachable(problem).items()})}") from None


def _repaired(
    problem: Problem, budgets: tuple[Budget, ...], searched: Calibration, workshop: Workshop, crew: Crew | None, about: dict[str, Any]
) -> dict[str, Any]:
    """Steps 4 to 6, again with tightened limits as long as what was chosen breaks a budget when it is measured, and no more than `REPAIRS` times.

    In the last round, or where nothing lower is predicted, a finalist that keeps the budgets when measured is preferred to a better one that does not. What is
    measured last is the artifact itself.
    """
    least = {resource: low for resource, (low, _) in reachable(problem).items()}
    repairs = list[dict[str, Any]]()
    limits = scouted(problem, budgets, least, workshop, repairs)
    for turn in range(REPAIRS):
        found = _search(problem, limits, searched, workshop, crew)
        last = turn == REPAIRS - 1 or any(limit.limit <= least.get(limit.resource, 0.0) for limit in limits)
        result = _finish(problem, budgets, found, workshop, about, last)
        best = result["best"]
        if all(b.kept(best["measured"]) for b in budgets):
            _ship(best, result["states"], workshop)
            if all(b.kept(best["measured"]) for b in budgets):
                best["repairs"] = repairs
                return _write(result, problem, limits, found["trials"], workshop)
            shutil.rmtree(workshop.study.artifact)  # what breaks a budget is not to be shipped
        for b in (b for b in budgets if not b.kept(best["measured"])):
            repairs.append(repair(b, best))
            got, limit = format_pair(repairs[-1]["measured"], b.limit, b.resource)
            predicted = format_quantity(repairs[-1]["predicted"], b.resource)
            workshop.progress.say(
                f"{best['label']}: measured {got} breaks the budget of {limit} (predicted {predicted}): tightened by that ratio, and searched again."
            )
        limits = lowered(budgets, limits, best, least)
    raise InfeasibleError(
        f"After {REPAIRS} rounds no exported model keeps {', '.join(map(str, budgets))} when it is measured. Raise the budget.",
        {b.resource: b.spent(best["measured"]) or 0.0 for b in budgets},
    )


def _search(problem: Problem, limits: tuple[Budget, ...], calibration: Calibration, workshop: Workshop, crew: Crew | None) -> dict[str, Any]:
    """Step 4: the proxy's optimum, the greatest uniform assignment that fits, and the best of the study on the measured loss beside these two.

    Where the states that the study measures were learned, those of one width were learned together: it is partial to the uniform assignment, which is a
    finalist of its own.
    """
    config = workshop.config
    proxy = proxy_of(config)
    optimum = solve(problem, proxy, limits)
    uniform = next((u.indices for u in _uniforms(problem, config) if _keeps(problem, u.indices, limits)), None)
    beyond = problem.interactions.get(proxy)  # the table alone, which the study corrects, has another optimum
    warm = [indices for indices in dict.fromkeys((uniform, optimum.indices if beyond else None)) if indices is not None]
    tables = _additive(problem, proxy)
    trials, name = _trials(replace(problem, interactions={}), tables, limits, warm, calibration, workshop, crew or Crew())
    ranked = sorted((t for t in trials if t.feasible), key=lambda t: (t.loss, t.number))
    best = next((t for t in ranked if t.indices not in (uniform, optimum.indices)), ranked[0])
    label = "best of the study" if best is ranked[0] else "best other of the study"
    return {"proxy": proxy, "optimum": optimum, "uniform": uniform, "best": {label: best.indices}, "trials": trials, "journal": name}


def _trials(
    problem: Problem, tables: Sequence[str], limits: tuple[Budget, ...], warm: Sequence[Sequence[int]], calibration: Calibration, workshop: Workshop, crew: Crew
) -> tuple[list[Trial], str]:
    """The study on the measured loss with its polish, and the name of its journal or in the database."""
    config, subject, study, progress = workshop.config, workshop.subject, workshop.study, workshop.progress
    proxy, *others = tables
    key = [problem.to_json(), [b.to_json() for b in limits], subject.hashes, config.seed, config.sampler, config.learning, config.task]
    measure = _Measure(problem, calibration, workshop)
    if config.sampler != "mpsearch":
        name = f"optuna-{files.digest(key)}.log"
        with progress.task(f"search on the measured loss by {config.sampler}") as advance:
            trials = explore_by(config.sampler, problem, proxy, limits, measure, study.path / name, config.trials, config.seed, warm, on_trial=advance)
    else:
        with contextlib.closing(crew.studies(study)) as studies:
            place = studies.place(files.digest(key))
            studies.finish(but=place)  # what an earlier run with other limits left is not worked on
        job = make_job(subject, problem, config, states_digest(calibration))
        with progress.task("search on the measured loss") as advance, Team(crew, study, progress) as team:
            by = measure if crew.workers == 1 else _left_to_workers
            trials = explore(problem, proxy, limits, by, place, config.trials, config.seed, warm, on_trial=advance, sharing=team.sharing(job), others=others)
        name = Path(place.url).name if crew.storage is None else place.name
    with progress.task("polish the best") as advance:
        held = LossFile(study.step_path("polish", [*key, config.trials], ".jsonl"), key)
        trials += polish(problem, proxy, limits, measure, trials, config.polish, held, on_trial=advance)
    return trials, name


class _Measure:
    """The loss of L choices; the evaluator is made at the first call, which a run with workers may never make."""

    def __init__(self, problem: Problem, calibration: Calibration, workshop: Workshop) -> None:
        self._problem, self._calibration, self._workshop = problem, calibration, workshop
        self._evaluator: FastEvaluator | None = None

    def __call__(self, indices: tuple[int, ...]) -> float:
        if self._evaluator is None:
            subject = self._workshop.subject
            self._evaluator = FastEvaluator(subject.module, self._calibration, subject.splits.search, task=self._workshop.task)
        return self._evaluator.measure(self._problem.assignment(indices))


def _left_to_workers(indices: tuple[int, ...]) -> float:
    raise AssertionError("A run that leaves the measuring to workers measures nothing.")


def _additive(problem: Problem, proxy: str) -> tuple[str, ...]:
    """The tables that a study starts from, the one that it corrects first: the proxy's, if that has no interactions, and those of other objectives without.

    If all have interactions, the proxy's without them.
    """
    return tuple(dict.fromkeys(name for name in (proxy, *problem.scores) if not problem.interactions.get(name))) or (proxy,)


def _uniforms(problem: Problem, config: RunConfig) -> list[Uniform]:
    """W8A8 and so on, widest first."""
    return uniforms(problem, [Candidate(b, config.a_bits) for b in sorted(config.bits, reverse=True)])


def _keeps(problem: Problem, indices: Sequence[int], limits: Sequence[Budget]) -> bool:
    cost = problem.cost(indices)
    return all(getattr(cost, b.resource) <= b.limit for b in limits)


def _finish(
    problem: Problem, budgets: Sequence[Budget], found: dict[str, Any], workshop: Workshop, about: dict[str, Any], last: bool = False
) -> dict[str, Any]:
    """Steps 5 and 6: rows of the results table; the finalists are reconstructed, and one is chosen, at last among those that keep the budgets if any does."""
    shown = {u.label: u.indices for u in _uniforms(problem, workshop.config) if u.candidate.w_bits in (8, 6, 4) or u.indices == found["uniform"]}
    finalists = {f"exact optimum of {found['proxy']}": found["optimum"].indices, **found["best"]}
    rows, learned = [], {}
    for label, indices in {**shown, **finalists}.items():
        row = _row(label, problem, indices, budgets, workshop)
        if label in finalists or indices == found["uniform"]:
            if indices not in learned:
                learned[indices] = workshop.reconstructed(problem.assignment(indices), label)
            row["reconstructed"] = workshop.measured(learned[indices])
        rows.append(row)
    done = [row for row in rows if "reconstructed" in row]
    keeping = [row for row in done if all(b.kept(row["reconstructed"]) for b in budgets)]
    done = keeping if last and keeping else done
    chosen, reason = _choose(done, found["uniform"], learned, workshop)
    best = {
        "label": chosen["label"],
        "reason": reason,
        "assignment": chosen["assignment"],
        "indices": chosen["indices"],
        "budgets": [b.to_json() for b in budgets],
        "predicted": chosen["predicted"],
        "measured": {k: v for k, v in chosen["reconstructed"].items() if k in _MEASURED},
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
        "mean_bits": mean_bits(problem.layers, problem.assignment(indices)),
        "fits": _keeps(problem, indices, budgets),
        "nearest": nearest,
    }


def _float_row(workshop: Workshop, about: dict[str, Any]) -> dict[str, Any]:
    images, logits = workshop.subject.splits.evaluation, workshop.reference()["evaluation"]
    measured: dict[str, Any] = {"metrics": workshop.task.compare(logits, logits, images.labels).to_json(), "size_bytes": workshop.subject.float_bytes()}
    measured |= {name: value for name in ("latency_us", "energy_mj") if (value := about.get("hardware", {}).get(f"float_{name}")) is not None}
    return {"label": "float", "mean_bits": 32.0, "fits": False, "predicted": {}, "nearest": measured}


def _ship(best: dict[str, Any], states: Any, workshop: Workshop) -> None:
    """Step 6: the artifact is written; what it takes in new processes is what counts from here on."""
    earlier = workshop.study.set_aside(workshop.config.budgets)
    if earlier is not None:
        workshop.progress.say(f"The artifact and the report of earlier budgets are in {earlier} now.")
    best["artifact"] = workshop.write_artifact(states, {k: best[k] for k in ("assignment", "budgets", "predicted", "measured", "metrics")})
    written = {**best["artifact"], **best["artifact"].get("latency", {})}
    best["measured"] |= {k: written[k] for k in _MEASURED if k in written}


def _write(result: dict[str, Any], problem: Problem, limits: Sequence[Budget], trials: Sequence[Trial], workshop: Workshop) -> dict[str, Any]:
    """What step 7 reads."""
    study, subject, best = workshop.study, workshop.subject, result["best"]
    del result["states"]
    proxy = best["proxy"]["objective"]
    base, alone = _additive(problem, proxy)[0], replace(problem, interactions={})
    write_front(study, alone, base, problem_front(alone, base), trials)
    result |= {
        "study": str(study.path),
        "measure": workshop.task.measure,
        "not_quantized": subject.layout.leftover_bytes(),
        "header_bytes": subject.layout.header_bytes,
        "unused": list(subject.graph.unused),
        "float_in_graph": [layer.name for layer in problem.layers if not layer.weight_shape],
        "rounded_to_nearest": subject.unlearned,
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
