"""What `mpsearch solve` prints: optima, ranges, prices, fronts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpsearch.cli._show import Format, ProgressBars, print_rows, say
from mpsearch.errors import OptionError
from mpsearch.problem import Assignment, Budget, Drop, Problem, Solution
from mpsearch.units import format_quantity


def _quantity(value: float, resource: str, output: Format) -> Any:
    return format_quantity(value, resource) if output is Format.table else value


def _damage(value: float, output: Format) -> Any:
    return f"{value:.6g}" if output is Format.table else value


def print_best(
    problem: Problem, objective: str, budgets: Sequence[Budget], count: int, distance: int, output: Format
) -> None:
    from mpsearch.solvers import solve as solve_one
    from mpsearch.solvers import solve_best

    found = (
        [solve_one(problem, objective, budgets)]
        if count == 1
        else solve_best(problem, objective, budgets, count, distance)
    )
    assignments = [problem.assignment(s.indices) for s in found]
    if output is Format.json:
        data = [{"assignment": a.to_json(), **s.to_json()} for a, s in zip(assignments, found, strict=True)]
        print(json.dumps(data[0] if count == 1 else data, indent=1))
        return
    header = (
        "layer",
        *(["candidate"] if count == 1 else [f"#{k}" for k in range(1, len(found) + 1)]),
        "weights",
    )
    print_rows(
        header,
        [
            (layer.name, *(str(a[layer.name]) for a in assignments), layer.weight_numel)
            for layer in problem.layers
        ],
        output,
    )
    for k, solution in enumerate(found, start=1):
        say(("" if count == 1 else f"#{k}: ") + _told(solution))
    if len(found) < count:
        say(f"There are no more than {len(found)} that keep the budgets and differ in {distance} layers.")


def _told(solution: Solution) -> str:
    costs = ", ".join(
        f"{r.rsplit('_', 1)[0]} {format_quantity(v, r)}" for r, v in solution.cost.to_json().items()
    )
    bound = (
        f", at least {solution.bound:.6g}"
        if solution.status != "optimal" and solution.bound is not None
        else ""
    )
    return f"{solution.status} ({solution.found_by}): damage {solution.score:.6g}{bound}; predicted {costs}."


def print_ranges(problem: Problem, budgets: Sequence[Budget], output: Format) -> None:
    from mpsearch.solvers import least_within, reachable

    within = least_within(problem, budgets) if budgets else {}
    rows = [
        (r.rsplit("_", 1)[0], *(_quantity(v, r, output) for v in (*ends, *([within[r]] if budgets else []))))
        for r, ends in reachable(problem).items()
    ]
    print_rows(
        ("resource", "least", "greatest", *(["least within the budgets"] if budgets else [])), rows, output
    )


def print_prices(
    problem: Problem,
    objective: str,
    budgets: Sequence[Budget],
    resources: list[str],
    most: int,
    output: Format,
) -> None:
    from mpsearch.solvers import marginal_prices, problem_front

    (resource,) = _just(resources, 1, "--prices")
    limit = _only_limit(budgets, resource, "--prices")
    unit, scale = {
        "size_bytes": ("MB", 1e6),
        "latency_us": ("ms", 1e3),
        "energy_mj": ("mJ", 1.0),
        "bops": ("GBOPs", 1e9),
    }[resource]
    rows = []
    for price in marginal_prices(problem_front(problem, objective, resource, limit), most):
        changed = ", ".join(
            f"{problem.layers[i].name} {problem.candidates[i][price.indices[i]]}" for i in price.changed
        )
        values = (
            _quantity(price.cost, resource, output),
            _quantity(price.more, resource, output),
            _damage(price.score, output),
            _damage(price.saved, output),
        )
        rows.append((*values, _damage(price.rate * scale, output), changed))
    print_rows(("from", "more", "damage", "saved", f"saved for 1 {unit}", "layers"), rows, output)


def print_front(
    problem: Problem,
    objective: str,
    budgets: Sequence[Budget],
    resources: list[str],
    points: int | None,
    output: Format,
) -> None:
    from mpsearch.solvers import front_of_three, problem_front

    if len(resources) == 1:
        front = problem_front(
            problem, objective, resources[0], _only_limit(budgets, resources[0], "--front over one resource")
        )
        at = (
            range(len(front))
            if points is None
            else sorted({round(k * (len(front) - 1) / max(1, points - 1)) for k in range(points)})
        )
        found = [
            (
                _damage(float(front.scores[p]), output),
                _quantity(float(front.costs[p]), resources[0], output),
                *_shown(problem, front.indices(p), output),
            )
            for p in at
        ]
    else:
        pair = _just(resources, 2, "--front")
        with ProgressBars().task("sweep the limits") as advance:
            solutions = front_of_three(
                problem, objective, (pair[0], pair[1]), budgets, 12 if points is None else points, advance
            )
        found = [
            (
                _damage(s.score, output),
                *(_quantity(getattr(s.cost, r), r, output) for r in pair),
                *_shown(problem, s.indices, output),
            )
            for s in solutions
        ]
    print_rows(("damage", *resources, *(["assignment"] if output is Format.json else [])), found, output)
    say(f"{len(found)} points.")


def _shown(problem: Problem, indices: Sequence[int], output: Format) -> list[Any]:
    return [problem.assignment(indices).to_json()] if output is Format.json else []


def _just(resources: list[str], count: int, what: str) -> list[str]:
    if len(resources) != count:
        raise OptionError(
            f"{what} takes {'one resource' if count == 1 else 'one or two resources'}, not "
            f"{', '.join(resources)}."
        )
    return resources


def _only_limit(budgets: Sequence[Budget], resource: str, what: str) -> float | None:
    others = sorted({b.text for b in budgets if b.resource != resource})
    if others:
        raise OptionError(
            f"{what} takes budgets on {resource.rsplit('_', 1)[0]} alone, not {', '.join(others)}. Use "
            "--front over two resources."
        )
    return min((b.limit for b in budgets), default=None)


def print_floor(
    study: Path,
    problem: Problem,
    objective: str,
    budgets: Sequence[Budget],
    drop: Drop,
    resource: str,
    output: Format,
) -> None:
    from mpsearch.pipeline.jobs.floor import within_floor  # imports torch

    found = within_floor(study, problem, objective, budgets, drop, resource, ProgressBars())
    if output is Format.json:
        print(json.dumps(found, indent=1))
        return
    assignment = Assignment.from_json(found["assignment"])
    print_rows(
        ("layer", "candidate", "weights"),
        [(layer.name, str(assignment[layer.name]), layer.weight_numel) for layer in problem.layers],
        output,
    )
    say(found["told"])
