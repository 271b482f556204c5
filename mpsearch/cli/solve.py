"""`mpsearch solve`: no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mpsearch.cli._app import app
from mpsearch.cli._options import Output
from mpsearch.cli._show import Format, print_rows, say
from mpsearch.problem import Budget, Problem
from mpsearch.units import format_quantity


@app.command()
def solve(
    study: Annotated[Path, typer.Argument(help="Folder of a study, or a problem.json.")],
    budget: Annotated[list[str], typer.Option(help="As in run, absolute: 15MB, 2.5ms. May be repeated.")],
    objective: Annotated[str | None, typer.Option(help="Score table to minimise; the study's first without it.")] = None,
    output: Output = Format.table,
) -> None:
    """The exact optimum of a saved problem for any budgets, in milliseconds and without torch."""
    from mpsearch.search import solve as solve_problem

    problem = Problem.load(study if study.suffix == ".json" else study / "problem.json")
    budgets = [Budget.parse(text) for text in budget]
    solution = solve_problem(problem, objective or next(iter(problem.scores)), budgets)
    assignment = problem.assignment(solution.indices)
    if output is Format.json:
        print(json.dumps({"assignment": assignment.to_json(), **solution.to_json()}, indent=1))
        return
    rows = [(layer.name, str(assignment[layer.name]), layer.weight_numel) for layer in problem.layers]
    print_rows(("layer", "candidate", "weights"), rows, output)
    found = ", ".join(f"{r.rsplit('_', 1)[0]} {format_quantity(v, r)}" for r, v in solution.cost.to_json().items())
    say(f"{solution.status} ({solution.found_by}): damage {solution.score:.6g}; predicted {found}.")
