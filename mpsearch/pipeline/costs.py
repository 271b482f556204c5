"""Steps 2 and 3: the candidates, what each costs without measuring, and the damage it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from mpsearch.errors import BudgetError, OptionError
from mpsearch.evaluate import TASKS
from mpsearch.objectives import OBJECTIVES, Objective, ScoringContext, score
from mpsearch.pipeline.config import RunConfig, limits
from mpsearch.pipeline.couplings import add_couplings, interacts
from mpsearch.pipeline.prepare import Subject
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.study import Study
from mpsearch.problem import FLOAT, FLOAT_INPUT, Budget, Candidate, Problem, Restrictions
from mpsearch.reconstruct import Calibration
from mpsearch.solvers import solve


def sized_problem(subject: Subject, config: RunConfig) -> Problem:
    """Layers, candidates, and the costs that need no measuring: bytes of the packed file and bit operations.

    Where a latency or an energy is asked for, float is a candidate too: integers are not always faster.
    """
    integers = tuple(Candidate(bits, config.a_bits) for bits in sorted(config.bits, reverse=True))
    wide = (*integers, FLOAT) if limits(config, "latency_us", "energy_mj") else integers
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
    every = (*(Candidate(w, a) for w in range(8, 1, -1) for a in (*range(8, 1, -1), FLOAT_INPUT)), FLOAT)
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
        BudgetError: It cannot be read, or limits what is not measured for the target.
        InfeasibleError: No assignment is that small.
    """
    resolved = []
    for budget in (Budget.parse(text) for text in config.budgets):
        _require_measured(budget, config)
        if budget.scale == "float":
            budget = budget.resolve(budget.limit * subject.float_bytes())
        elif budget.scale == "bits":
            budget = budget.resolve(_bytes_at(subject, budget.limit, config.a_bits))
        resolved.append(budget)
    known = [b for b in resolved if b.resource not in ("latency_us", "energy_mj", "memory_bytes")]
    zeros = tuple(tuple(0.0 for _ in row) for row in problem.candidates)
    solve(replace(problem, scores={"none": zeros}), "none", known)
    return tuple(resolved)


def _require_measured(budget: Budget, config: RunConfig) -> None:
    if budget.resource == "energy_mj" and config.target != "triton-cuda":
        raise BudgetError(
            f"The target {config.target} measures no energy, so the budget {budget.text} cannot be kept. Take --target triton-cuda on a machine with an NVIDIA "
            "GPU, or limit size, latency, peak memory or bit operations."
        )
    if budget.resource == "memory_bytes" and config.target != "ort-cpu":
        raise BudgetError(f"Peak memory is measured for --target ort-cpu, not for {config.target}. Take that target, or leave the budget {budget.text} out.")
    if budget.resource == "latency_us" and config.target == "packed":
        raise BudgetError(f"The target packed has no runtime, so the budget {budget.text} cannot be measured. Take --target ort-cpu, or leave the budget out.")


def _bytes_at(subject: Subject, bits: float, a_bits: int) -> float:
    """Size of the packed file at `bits` for each weight: linear between the files of the uniform widths on either side."""
    low, high = max(2, min(8, math.floor(bits))), max(2, min(8, math.ceil(bits)))
    sizes = [sum(subject.layout.unit_bytes(unit, Candidate(b, a_bits)) for unit in subject.units) for b in (low, high)]
    share = bits - low if high > low else 0.0
    if not 2 <= bits <= 8:
        return subject.layout.constant_bytes + sizes[0] * bits / low
    return subject.layout.constant_bytes + sizes[0] + share * (sizes[1] - sizes[0])


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
            *([objective.revision] if objective.revision else []),
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
