"""`mpsearch solve`: no torch, but with --max-drop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mpsearch.cli._app import app
from mpsearch.cli._options import Fix, Output
from mpsearch.cli._show import Format, ProgressBars, print_rows, say
from mpsearch.errors import BudgetError, OptionError
from mpsearch.problem import RESOURCES, Assignment, Budget, Problem, Restrictions, Solution, absolute
from mpsearch.units import format_quantity

_SHORT = {r.rsplit("_", 1)[0]: r for r in RESOURCES}


@app.command()
def solve(  # long for its options alone
    study: Annotated[Path, typer.Argument(help="Folder of a study, or a problem.json.")],
    budget: Annotated[list[str] | None, typer.Option(help="15MB, 40%, 5bits, 2.5ms, 3mJ, '512MiB peak', 20GBOPs. May be repeated.")] = None,
    objective: Annotated[str | None, typer.Option(help="Score table to minimise; the study's first without it.")] = None,
    fix: Fix = None,
    bits: Annotated[list[str] | None, typer.Option(help="NAME=2..6 (weights) or NAME=A4..8 (inputs); NAME may be a pattern. May be repeated.")] = None,
    k_best: Annotated[int, typer.Option(help="This many assignments, least damage first.")] = 1,
    distance: Annotated[int, typer.Option(help="With --k-best: layers in which each differs from all before it, at least.")] = 1,
    ranges: Annotated[bool, typer.Option("--ranges", help="Instead: what is reachable of each resource, and within the budgets.")] = False,
    prices: Annotated[bool, typer.Option("--prices", help="Instead: what each step up in a resource buys.")] = False,
    front: Annotated[bool, typer.Option("--front", help="Instead: the exact front over --resource; over two resources, one as fine as --points.")] = False,
    resource: Annotated[
        list[str] | None, typer.Option(help="What --prices and --front weigh: size, latency, energy or bops. Twice for three objectives.")
    ] = None,
    points: Annotated[int | None, typer.Option(help="Steps of --prices (20), points of --front (all), or limits on each of two resources (12).")] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="Instead: the least --minimize whose measured top-1 is at most this below the float model's, as 1%.")
    ] = None,
    minimize: Annotated[Literal["size", "latency"], typer.Option(help="What --max-drop makes least.")] = "size",
    output: Output = Format.table,
) -> None:
    """The exact optimum of a saved problem for any budgets, in milliseconds and without torch; and what one asks next."""
    asked = [
        name for name, given in (("--ranges", ranges), ("--prices", prices), ("--front", front), ("--max-drop", max_drop), ("--k-best", k_best > 1)) if given
    ]
    if len(asked) > 1:
        raise OptionError(f"{' and '.join(asked)} were asked for at once; each prints its own table. Give one of them.")
    _refuse_unused(prices or front, k_best, max_drop, {"--points": points, "--resource": resource}, distance, minimize)
    problem = Problem.load(study if study.suffix == ".json" else study / "problem.json")
    problem = Restrictions.parse(fix or (), [text if "=" in text else f"*={text}" for text in bits or ()]).apply(problem)
    name = objective or next(iter(problem.scores))
    budgets = _budgets(problem, budget or [])
    if ranges:
        _print_ranges(problem, budgets, output)
    elif prices:
        _print_prices(problem, name, budgets, _resources(problem, resource, budgets), 20 if points is None else points, output)
    elif front:
        _print_front(problem, name, budgets, _resources(problem, resource, budgets), points, output)
    elif max_drop is not None:
        _print_floor(study.parent if study.suffix == ".json" else study, problem, name, budgets, max_drop, _SHORT[minimize], output)
    elif not budgets:
        raise BudgetError(f"There is no budget. Give at least one, such as --budget 15MB. {_least(problem)}")
    else:
        _print_best(problem, name, budgets, k_best, distance, output)


def _refuse_unused(listing: bool, k_best: int, max_drop: str | None, of_lists: dict[str, Any], distance: int, minimize: str) -> None:
    """Raises OptionError where an option is given without the one that it belongs to, which would pass over it."""
    lost = [(name, "--prices or --front") for name, value in of_lists.items() if value and not listing]
    lost += [("--distance", "--k-best")] if distance != 1 and k_best == 1 else []
    lost += [("--minimize", "--max-drop")] if minimize != "size" and max_drop is None else []
    if lost:
        raise OptionError(f"{lost[0][0]} goes with {lost[0][1]}, which was not given. Give both, or leave {lost[0][0]} out.")
    if listing and of_lists["--points"] is not None and of_lists["--points"] < 1:
        raise OptionError(f"--points is {of_lists['--points']}; it must be 1 or more.")


def _budgets(problem: Problem, texts: Sequence[str]) -> list[Budget]:
    """Read, and refuse with what is reachable."""
    try:
        return [absolute(problem, Budget.parse(text)) for text in texts]
    except BudgetError as error:
        raise BudgetError(f"{error} {_least(problem)}") from None


def _least(problem: Problem) -> str:
    from mpsearch.solvers import describe_least, reachable

    return describe_least(problem, {r: low for r, (low, _) in reachable(problem).items()})


def _resources(problem: Problem, names: list[str] | None, budgets: Sequence[Budget]) -> list[str]:
    """As asked for; else that of the first budget, or the size."""
    for name in names or ():
        if _SHORT.get(name, name) not in problem.costs:
            known = ", ".join(r.rsplit("_", 1)[0] for r in problem.costs)
            raise OptionError(f"The problem has no costs called {name!r}. It has: {known}.")
    return [_SHORT.get(name, name) for name in names or [budgets[0].resource if budgets else "size_bytes"]]


def _quantity(value: float, resource: str, output: Format) -> Any:
    return format_quantity(value, resource) if output is Format.table else value


def _damage(value: float, output: Format) -> Any:
    return f"{value:.6g}" if output is Format.table else value


def _print_best(problem: Problem, objective: str, budgets: Sequence[Budget], count: int, distance: int, output: Format) -> None:
    from mpsearch.solvers import solve as solve_one
    from mpsearch.solvers import solve_best

    found = [solve_one(problem, objective, budgets)] if count == 1 else solve_best(problem, objective, budgets, count, distance)
    assignments = [problem.assignment(s.indices) for s in found]
    if output is Format.json:
        data = [{"assignment": a.to_json(), **s.to_json()} for a, s in zip(assignments, found, strict=True)]
        print(json.dumps(data[0] if count == 1 else data, indent=1))
        return
    header = ("layer", *(["candidate"] if count == 1 else [f"#{k}" for k in range(1, len(found) + 1)]), "weights")
    print_rows(header, [(layer.name, *(str(a[layer.name]) for a in assignments), layer.weight_numel) for layer in problem.layers], output)
    for k, solution in enumerate(found, start=1):
        say(("" if count == 1 else f"#{k}: ") + _told(solution))
    if len(found) < count:
        say(f"There are no more than {len(found)} that keep the budgets and differ in {distance} layers.")


def _told(solution: Solution) -> str:
    costs = ", ".join(f"{r.rsplit('_', 1)[0]} {format_quantity(v, r)}" for r, v in solution.cost.to_json().items())
    bound = f", at least {solution.bound:.6g}" if solution.status != "optimal" and solution.bound is not None else ""
    return f"{solution.status} ({solution.found_by}): damage {solution.score:.6g}{bound}; predicted {costs}."


def _print_ranges(problem: Problem, budgets: Sequence[Budget], output: Format) -> None:
    from mpsearch.solvers import least_within, reachable

    within = least_within(problem, budgets) if budgets else {}
    rows = [(r.rsplit("_", 1)[0], *(_quantity(v, r, output) for v in (*ends, *([within[r]] if budgets else [])))) for r, ends in reachable(problem).items()]
    print_rows(("resource", "least", "greatest", *(["least within the budgets"] if budgets else [])), rows, output)


def _print_prices(problem: Problem, objective: str, budgets: Sequence[Budget], resources: list[str], most: int, output: Format) -> None:
    from mpsearch.solvers import marginal_prices, problem_front

    (resource,) = _just(resources, 1, "--prices")
    limit = _only_limit(budgets, resource, "--prices")
    unit, scale = {"size_bytes": ("MB", 1e6), "latency_us": ("ms", 1e3), "energy_mj": ("mJ", 1.0), "bops": ("GBOPs", 1e9)}[resource]
    rows = []
    for price in marginal_prices(problem_front(problem, objective, resource, limit), most):
        changed = ", ".join(f"{problem.layers[i].name} {problem.candidates[i][price.indices[i]]}" for i in price.changed)
        values = (_quantity(price.cost, resource, output), _quantity(price.more, resource, output), _damage(price.score, output), _damage(price.saved, output))
        rows.append((*values, _damage(price.rate * scale, output), changed))
    print_rows(("from", "more", "damage", "saved", f"saved for 1 {unit}", "layers"), rows, output)


def _print_front(problem: Problem, objective: str, budgets: Sequence[Budget], resources: list[str], points: int | None, output: Format) -> None:
    from mpsearch.solvers import front_of_three, problem_front

    if len(resources) == 1:
        front = problem_front(problem, objective, resources[0], _only_limit(budgets, resources[0], "--front over one resource"))
        at = range(len(front)) if points is None else sorted({round(k * (len(front) - 1) / max(1, points - 1)) for k in range(points)})
        found = [
            (_damage(float(front.scores[p]), output), _quantity(float(front.costs[p]), resources[0], output), *_shown(problem, front.indices(p), output))
            for p in at
        ]
    else:
        pair = _just(resources, 2, "--front")
        with ProgressBars().task("sweep the limits") as advance:
            solutions = front_of_three(problem, objective, (pair[0], pair[1]), budgets, 12 if points is None else points, advance)
        found = [(_damage(s.score, output), *(_quantity(getattr(s.cost, r), r, output) for r in pair), *_shown(problem, s.indices, output)) for s in solutions]
    print_rows(("damage", *resources, *(["assignment"] if output is Format.json else [])), found, output)
    say(f"{len(found)} points.")


def _shown(problem: Problem, indices: Sequence[int], output: Format) -> list[Any]:
    return [problem.assignment(indices).to_json()] if output is Format.json else []


def _just(resources: list[str], count: int, what: str) -> list[str]:
    if len(resources) != count:
        raise OptionError(f"{what} takes {'one resource' if count == 1 else 'one or two resources'}, not {', '.join(resources)}.")
    return resources


def _only_limit(budgets: Sequence[Budget], resource: str, what: str) -> float | None:
    others = sorted({b.text for b in budgets if b.resource != resource})
    if others:
        raise OptionError(f"{what} takes budgets on {resource.rsplit('_', 1)[0]} alone, not {', '.join(others)}. Use --front over two resources.")
    return min((b.limit for b in budgets), default=None)


def _print_floor(study: Path, problem: Problem, objective: str, budgets: Sequence[Budget], text: str, resource: str, output: Format) -> None:
    from mpsearch.pipeline.jobs.floor import drop_of, within_floor  # imports torch

    found = within_floor(study, problem, objective, budgets, drop_of(text), resource, ProgressBars())
    if output is Format.json:
        print(json.dumps(found, indent=1))
        return
    assignment = Assignment.from_json(found["assignment"])
    print_rows(("layer", "candidate", "weights"), [(layer.name, str(assignment[layer.name]), layer.weight_numel) for layer in problem.layers], output)
    say(found["told"])
