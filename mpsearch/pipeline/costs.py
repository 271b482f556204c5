"""Steps 2 and 3: what each candidate costs on this device, and the damage it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mpsearch.errors import InfeasibleError, OptionError, TableError
from mpsearch.evaluate import TASKS
from mpsearch.hardware import BACKENDS, Backend, LatencyTable, identity, latency_costs, profile
from mpsearch.objectives import OBJECTIVES, Objective, ScoringContext, score
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.couplings import add_couplings, interacts
from mpsearch.pipeline.prepare import Subject
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.study import Study
from mpsearch.problem import Budget, Candidate, Problem, Restrictions
from mpsearch.reconstruct import Calibration
from mpsearch.search import solve

Table = tuple[tuple[float, ...], ...]

FLOAT = Candidate.parse("float")


def sized_problem(subject: Subject, config: RunConfig) -> Problem:
    """Layers, candidates, and the costs that need no measuring: bytes of the packed file and bit operations.

    Where a latency is asked for, float is a candidate too: integers are not always faster.
    """
    integers = tuple(Candidate(bits, config.a_bits) for bits in sorted(config.bits, reverse=True))
    timed = any(Budget.parse(text).resource == "latency_us" for text in config.budgets)
    wide = (*integers, FLOAT) if timed else integers
    fixed = _fixed(subject, config)
    candidates = tuple(fixed.get(layer.name, wide) if layer.name in subject.layout.weights else (FLOAT,) for layer in subject.graph.layers)
    candidates = Restrictions.parse(config.fix, config.layer_bits).choose(subject.graph.layers, candidates, _possible(subject, candidates))
    size, bops = [], []
    for layer, choices in zip(subject.graph.layers, candidates, strict=True):
        size.append(tuple(float(subject.layout.unit_bytes(layer.name, c)) if layer.weight_shape else 0.0 for c in choices))
        bops.append(tuple(float(layer.macs * (c.w_bits or 32) * (c.a_bits or 32)) for c in choices))
    return Problem(
        subject.graph.layers,
        candidates,
        costs={"size_bytes": tuple(size), "bops": tuple(bops)},
        constants={"size_bytes": float(subject.layout.constant_bytes), "bops": 0.0},
    )


def _possible(subject: Subject, candidates: Sequence[Sequence[Candidate]]) -> list[tuple[Candidate, ...]]:
    """What rules may pick from: of a unit with a weight every width there is, the widest first, and float."""
    every = (*(Candidate(w, a) for w in range(8, 1, -1) for a in range(8, 1, -1)), FLOAT)
    return [every if layer.name in subject.layout.weights else tuple(row) for layer, row in zip(subject.graph.layers, candidates, strict=True)]


def _fixed(subject: Subject, config: RunConfig) -> dict[str, tuple[Candidate, ...]]:
    """The first and the last unit, and the units tied to them, where they are not left to the search."""
    if config.first_last_bits is None:
        return {}
    ends, tie = {subject.units[0], subject.units[-1]}, {layer.name: layer.tie or layer.name for layer in subject.graph.layers}
    heads = {tie[unit] for unit in ends}
    return {unit: (Candidate(config.first_last_bits, config.first_last_bits),) for unit in subject.units if tie[unit] in heads}


def resolve_budgets(subject: Subject, problem: Problem, config: RunConfig) -> tuple[Budget, ...]:
    """Absolute limits; refuses at once what no assignment can keep.

    Raises:
        BudgetError: It cannot be read.
        InfeasibleError: No assignment is that small.
    """
    resolved = []
    for budget in (Budget.parse(text) for text in config.budgets):
        if budget.scale == "float":
            budget = budget.resolve(budget.limit * subject.float_bytes())
        elif budget.scale == "bits":
            budget = budget.resolve(_bytes_at(subject, budget.limit, config.a_bits))
        resolved.append(budget)
    known = [b for b in resolved if b.resource != "latency_us" or config.target == "packed"]
    zeros = tuple(tuple(0.0 for _ in row) for row in problem.candidates)
    solve(replace(problem, scores={"none": zeros}), "none", known)
    return tuple(resolved)


def _bytes_at(subject: Subject, bits: float, a_bits: int) -> float:
    """Size of the packed file at `bits` for each weight: linear between the files of the uniform widths on either side."""
    low, high = max(2, min(8, math.floor(bits))), max(2, min(8, math.ceil(bits)))
    sizes = [sum(subject.layout.unit_bytes(unit, Candidate(b, a_bits)) for unit in subject.units) for b in (low, high)]
    share = bits - low if high > low else 0.0
    if not 2 <= bits <= 8:
        return subject.layout.constant_bytes + sizes[0] * bits / low
    return subject.layout.constant_bytes + sizes[0] + share * (sizes[1] - sizes[0])


@dataclass(frozen=True)
class WholeRuns:
    """Latency of the whole model, measured, in microseconds: all float, and all units at W8A8."""

    float_us: float
    integer_us: float


def latency_table(problem: Problem, config: RunConfig, progress: Progress) -> tuple[LatencyTable, Path]:
    """The table that was asked for, or this device's, with what it lacks measured now."""
    backend, device, folder = _backend(config), identity(), Path(config.tables)
    if config.table is not None:
        return LatencyTable.load(Path(config.table), device, allow_estimate=config.allow_estimate), Path(config.table)
    table = LatencyTable.open(folder, device, backend.name, backend.version, config.threads)
    widths = tuple((*choices, FLOAT) for choices in problem.candidates)
    with progress.task("measure latencies that the table lacks") as advance:
        profile(problem.layers, widths, backend, table, folder, on_row=lambda done, total, _: advance(done, total))
    return table, folder / table.file_name


def add_latency(problem: Problem, config: RunConfig, table: LatencyTable, where: Path, whole: WholeRuns) -> tuple[Problem, dict[str, Any]]:
    """Rows of the table, scaled so that their sums are what the whole float and the whole W8A8 model were measured to take.

    A unit alone finds its weight in the cache and pays for float tensors on both sides; in the model it does neither, and
    what is no unit takes time too. One factor for float rows and one for integer rows puts all of that where it was measured.

    Raises:
        InfeasibleError: A layer has no candidate with a usable row.
        TableError: The table lacks a float row.
    """
    backend = _backend(config)
    costs = latency_costs(problem.layers, problem.candidates, backend, table)
    unusable = costs.unusable
    if unusable:
        kept = [[i for i, value in enumerate(row) if math.isfinite(value)] for row in costs.rows]
        problem = _without(problem, kept, unusable)
        costs = latency_costs(problem.layers, problem.candidates, backend, table)
    floats = latency_costs(problem.layers, [(FLOAT,)] * len(problem.layers), backend, table)
    if floats.unusable:
        raise TableError(
            f"{where} has no row for {floats.unusable[0][0]!r} in float, so its rows cannot be scaled to a whole model. Measure it with `mpsearch profile`."
        )
    factors = _factors(problem, costs.rows, floats.rows, whole)
    rows = tuple(
        tuple(value * factors["float" if c.is_float else "integer"] for value, c in zip(row, choices, strict=True))
        for row, choices in zip(costs.rows, problem.candidates, strict=True)
    )
    about: dict[str, Any] = {"device": table.device.to_json(), "backend": backend.name, "version": backend.version, "threads": config.threads}
    about |= {"table": str(where), "estimated": costs.estimated, "unusable": [list(u) for u in unusable], "factors": factors}
    about |= {"float_latency_us": whole.float_us, "integer_latency_us": whole.integer_us}
    estimated = ("latency_us",) if costs.estimated else ()
    return replace(problem, costs={**problem.costs, "latency_us": rows}, constants={**problem.constants, "latency_us": 0.0}, estimated=estimated), about


def _factors(problem: Problem, rows: Table, floats: Table, whole: WholeRuns) -> dict[str, float]:
    """Whole over sum; activation products, float in both models, count with the float factor."""
    by_float = whole.float_us / math.fsum(row[0] for row in floats)
    products = math.fsum(row[0] for row, layer in zip(floats, problem.layers, strict=True) if not layer.weight_shape)
    total = math.fsum(
        next((value for value, c in zip(row, choices, strict=True) if not c.is_float), 0.0) for row, choices in zip(rows, problem.candidates, strict=True)
    )
    left = whole.integer_us - by_float * products
    return {"float": by_float, "integer": left / total if total > 0 and left > 0 else by_float}


def _backend(config: RunConfig) -> Backend:
    return BACKENDS.create(f"{config.target}:threads={config.threads}")


def _without(problem: Problem, kept: list[list[int]], unusable: Sequence[tuple[str, str, str]]) -> Problem:
    for layer, at in zip(problem.layers, kept, strict=True):
        if not at:
            why = next((w for name, _, w in unusable if name == layer.name), "not measured")
            raise InfeasibleError(f"Layer {layer.name!r} has no candidate with a measured latency ({why}). Measure it, or run with --target packed.")

    def pick(table: Any) -> Any:
        return tuple(tuple(row[i] for i in at) for row, at in zip(table, kept, strict=True))

    return replace(problem, candidates=pick(problem.candidates), costs={r: pick(t) for r, t in problem.costs.items()})


def add_scores(
    problem: Problem, subject: Subject, calibration: Calibration, config: RunConfig, study: Study, progress: Progress
) -> tuple[Problem, dict[str, Any]]:
    """The table of every objective asked for, and its interactions where it has some, each cached by what it depends on."""
    names = [text.partition(":")[0].strip() for text in config.objectives]
    if len(set(names)) < len(names):
        raise OptionError(f"The objectives are {', '.join(config.objectives)}; a run keeps tables by name. Give each once; `score` compares options.")
    problem, about = replace(problem, scores={}, interactions={}), {}
    candidates = [[str(c) for c in row] for row in problem.candidates]
    for text in config.objectives:
        if interacts(text):
            name = text.partition(":")[0].strip()
            problem, about[name] = add_couplings(problem, text, name, subject, calibration, config, study, progress)
            continue
        objective = OBJECTIVES.create(text)
        key = [
            subject.hashes["weights"],
            subject.hashes["calibration"],
            repr(objective),
            calibration.weight_observer,
            calibration.input_observer,
            calibration.symmetric_inputs,
            candidates,
            config.seed,
            config.learning if calibration.learned else [],
            config.task,
        ]
        with progress.task(f"score with {objective.name}") as advance:
            images, task = subject.splits.calibration, TASKS.create(config.task)
            context = ScoringContext(subject.module, problem.layers, problem.candidates, calibration, images, config.seed, advance, task)
            report = study.cached(f"score-{objective.name}", key, partial(_scored, objective, context))
        problem = replace(problem, scores={**problem.scores, objective.name: tuple(tuple(row) for row in report["rows"])})
        about[objective.name] = {"seconds": report["seconds"], "violations": report["violations"], "unit": objective.unit}
        about[objective.name] |= {k: report[k] for k in ("weights", "activations", "passes", "notes") if report.get(k)}
    return problem, about


def _scored(objective: Objective, context: ScoringContext) -> dict[str, Any]:
    return asdict(score(objective, context))
