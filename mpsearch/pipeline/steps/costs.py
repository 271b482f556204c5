"""Step 2: the candidates, and what each costs without measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpsearch.errors import BudgetError
from mpsearch.pipeline.config import RunConfig, limits
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.pipeline.steps.uniforms import pairs_of_bits
from mpsearch.problem import (
    FLOAT,
    FLOAT_BYTES,
    FLOAT_INPUT,
    Budget,
    Candidate,
    Layer,
    Problem,
    Restrictions,
    Table,
    absolute,
)
from mpsearch.solvers import describe_least, reachable, solve


def sized_problem(subject: Subject, config: RunConfig) -> Problem:
    """Layers, candidates, and the costs that need no measuring: bytes of the target's file, bit operations.

    Float is a candidate where it is asked for, and where a latency or an energy is limited: integers are not
    always faster.
    """
    integers = tuple(pairs_of_bits(config))
    may = config.floats or config.deployment.elsewhere or limits(config, "latency_us", "energy_mj")
    wide = (*integers, FLOAT) if may else integers
    fixed, weightless = _fixed(subject, config), _weightless(wide)
    whole = config.deployment.tensors  # engines call a quantised tensor W8A8, as the units that read it
    candidates = tuple(
        fixed.get(layer.name, wide)
        if layer.name in (subject.layout.units if whole else subject.layout.weights)
        else (weightless if layer.name in subject.layout.units else (FLOAT,))
        for layer in subject.graph.layers
    )
    candidates = Restrictions.parse(config.fix, config.layer_bits).choose(
        subject.graph.layers, candidates, _possible(subject, candidates)
    )
    return Problem(
        subject.graph.layers,
        candidates,
        costs=static_costs(subject, candidates),
        constants={
            "size_bytes": float(subject.file.constant_bytes),
            "bops": 0.0,
            FLOAT_BYTES: subject.float_bytes(subject.file),
        },
    )


def static_costs(subject: Subject, candidates: Sequence[Sequence[Candidate]]) -> dict[str, Table]:
    """Bytes in the target's file and bit operations of each layer's candidates."""
    rows = list(zip(subject.graph.layers, candidates, strict=True))
    size = tuple(
        tuple(
            float(subject.file.unit_bytes(layer.name, c)) if layer.name in subject.layout.units else 0.0
            for c in choices
        )
        for layer, choices in rows
    )
    bops = tuple(tuple(bit_operations(layer, c) for c in choices) for layer, choices in rows)
    return {"size_bytes": size, "bops": bops}


def bit_operations(layer: Layer, candidate: Candidate) -> float:
    """Multiply-accumulates times the bits of both operands, 32 of a float one; those of a product of
    activations have the same width.
    """
    inputs = candidate.a_bits or 32
    other = inputs if not layer.weight_shape else candidate.w_bits or 32
    return float(layer.macs * other * inputs)


def _weightless(wide: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates of a unit without a weight: each width of inputs once, float where inputs may stay
    so.
    """
    return tuple(dict.fromkeys(c.of_inputs for c in wide))


def _possible(subject: Subject, candidates: Sequence[Sequence[Candidate]]) -> list[tuple[Candidate, ...]]:
    """What rules may pick from: of a unit with a weight every width there is, the widest first, and float."""
    every = (*(Candidate(w, a) for w in range(8, 1, -1) for a in (*range(8, 1, -1), FLOAT_INPUT)), FLOAT)
    inputs = (*(Candidate(None, a) for a in range(8, 1, -1)), FLOAT)
    return [
        every
        if layer.name in subject.layout.weights
        else (inputs if layer.name in subject.layout.products else tuple(row))
        for layer, row in zip(subject.graph.layers, candidates, strict=True)
    ]


def _fixed(subject: Subject, config: RunConfig) -> dict[str, tuple[Candidate, ...]]:
    """The first and the last unit, and the units tied to them, where they are not left to the search."""
    if config.first_last_bits is None:
        return {}
    ends, tie = (
        {subject.units[0], subject.units[-1]},
        {layer.name: layer.tie or layer.name for layer in subject.graph.layers},
    )
    heads = {tie[unit] for unit in ends}
    return {
        unit: (Candidate(config.first_last_bits, config.first_last_bits),)
        for unit in subject.units
        if tie[unit] in heads
    }


def resolve_budgets(problem: Problem, config: RunConfig) -> tuple[Budget, ...]:
    """Absolute limits; refuses at once what no assignment can keep.

    Raises:
        BudgetError: It cannot be read, or limits what is not measured for the target.
        InfeasibleError: No assignment is that small.
    """
    resolved = []
    for budget in (Budget.parse(text) for text in config.budgets):
        _require_measured(budget, config)
        resolved.append(absolute(problem, budget))
    known = [b for b in resolved if b.resource not in ("latency_us", "energy_mj", "memory_bytes")]
    zeros = tuple(tuple(0.0 for _ in row) for row in problem.candidates)
    solve(replace(problem, scores={"none": zeros}), "none", known)
    return tuple(resolved)


def _require_measured(budget: Budget, config: RunConfig) -> None:
    if budget.resource == "energy_mj" and not config.deployment.measures_energy:
        raise BudgetError(
            f"The target {config.target} measures no energy, so the budget {budget.text} cannot be kept. "
            "Take --target triton-cuda on a machine with an NVIDIA "
            "GPU, or limit size, latency, peak memory or bit operations."
        )
    if budget.resource == "memory_bytes" and not config.deployment.measures_memory:
        raise BudgetError(
            f"Peak memory is measured for --target ort-cpu, not for {config.target}. Take that target, "
            f"or leave the budget {budget.text} out."
        )
    if budget.resource == "latency_us" and config.deployment.backend() is None:
        raise BudgetError(
            f"The target {config.target} has no runtime, so the budget {budget.text} cannot be measured. "
            "Take --target ort-cpu, or leave the budget out."
        )


def limited(subject: Subject, config: RunConfig) -> tuple[Problem, tuple[Budget, ...]]:
    """The problem and its absolute limits. Raises as `resolve_budgets`, and says what can be reached also
    where a budget cannot be read.
    """
    try:
        problem = sized_problem(subject, config)
        return problem, resolve_budgets(problem, config)
    except BudgetError as error:
        problem = sized_problem(subject, replace(config, budgets=("8bits",)))
        least = {resource: low for resource, (low, _) in reachable(problem).items()}
        raise BudgetError(f"{error} {describe_least(problem, least)}") from None
