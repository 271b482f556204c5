"""`mpsearch solve`: no torch, but with --max-drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpsearch.cli import _solve_options as options
from mpsearch.cli._app import command
from mpsearch.cli._options import Fix, Output
from mpsearch.cli._show import Format
from mpsearch.cli._solve_print import print_best, print_floor, print_front, print_prices, print_ranges
from mpsearch.errors import BudgetError, OptionError
from mpsearch.problem import RESOURCES, Budget, Drop, Problem, Restrictions, absolute

_SHORT = {r.rsplit("_", 1)[0]: r for r in RESOURCES}


@command(
    "mpsearch solve studies/default-15MB --budget 12MB",
    "mpsearch solve studies/default-15MB --budget 12MB --k-best 3 --distance 2",
    "mpsearch solve studies/default-15MB --prices",
)
def solve(
    study: options.Where,
    budget: options.Budgets = None,
    objective: options.Objective = None,
    fix: Fix = None,
    bits: options.LayerBits = None,
    k_best: options.KBest = 1,
    distance: options.Distance = 1,
    ranges: options.Ranges = False,
    prices: options.Prices = False,
    front: options.Front = False,
    resource: options.Resources = None,
    points: options.Points = None,
    max_drop: options.MaxDrop = None,
    minimize: options.Minimize = "size",
    output: Output = Format.table,
) -> None:
    """The exact optimum of a saved problem for any budgets, in milliseconds and without torch; and what one
    asks next.
    """
    asked = [
        name
        for name, given in (
            ("--ranges", ranges),
            ("--prices", prices),
            ("--front", front),
            ("--max-drop", max_drop),
            ("--k-best", k_best > 1),
        )
        if given
    ]
    if len(asked) > 1:
        raise OptionError(
            f"{' and '.join(asked)} were asked for at once; each prints its own table. Give one of them."
        )
    _refuse_unused(
        prices or front, k_best, max_drop, {"--points": points, "--resource": resource}, distance, minimize
    )
    drop = None if max_drop is None else Drop.parse(max_drop)
    problem = Problem.load(study if study.suffix == ".json" else study / "problem.json")
    problem = Restrictions.parse(
        fix or (), [text if "=" in text else f"*={text}" for text in bits or ()]
    ).apply(problem)
    name = objective or next(iter(problem.scores))
    budgets = _budgets(problem, budget or [])
    if ranges:
        print_ranges(problem, budgets, output)
    elif prices:
        print_prices(
            problem,
            name,
            budgets,
            _resources(problem, resource, budgets),
            20 if points is None else points,
            output,
        )
    elif front:
        print_front(problem, name, budgets, _resources(problem, resource, budgets), points, output)
    elif drop is not None:
        print_floor(
            study.parent if study.suffix == ".json" else study,
            problem,
            name,
            budgets,
            drop,
            _SHORT[minimize],
            output,
        )
    elif not budgets:
        raise BudgetError(f"There is no budget. Give at least one, such as --budget 15MB. {_least(problem)}")
    else:
        print_best(problem, name, budgets, k_best, distance, output)


def _refuse_unused(
    listing: bool, k_best: int, max_drop: str | None, of_lists: dict[str, Any], distance: int, minimize: str
) -> None:
    """Raises OptionError where an option is given without the one that it belongs to, which would pass over
    it.
    """
    lost = [(name, "--prices or --front") for name, value in of_lists.items() if value and not listing]
    lost += [("--distance", "--k-best")] if distance != 1 and k_best == 1 else []
    lost += [("--minimize", "--max-drop")] if minimize != "size" and max_drop is None else []
    if lost:
        raise OptionError(
            f"{lost[0][0]} goes with {lost[0][1]}, which was not given. Give both, or leave {lost[0][0]} out."
        )
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
