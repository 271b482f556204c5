"""The table a user chooses an objective by: rows of `validation.json`, for the terminal and in Markdown."""

from __future__ import annotations

from typing import Any

LIMIT = 0.10
"""Regret above which an objective's optimum counts as missed."""


LEGEND = (
    "rho, tau: Spearman's and Kendall's rank correlation of predicted damage and true loss over all samples; at size: partial, given the bytes; "
    "low: over the samples of at most 4 bits a weight. regret: loss of the objective's exact optimum at a budget above the best known, as a share of it; "
    "worst: of the budgets of 4 bits a weight and more. repaired: entries that were not monotone in bits. seconds: of the scoring alone."
)


def card(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and one row for each objective, then one for uniform bits; the least worst regret first."""
    regrets = [f"regret {budget['bits']:g}b" for budget in result["budgets"]]
    header = ("objective", "rho", "tau", "rho at size", "rho low", "tau low", *regrets, "worst", "repaired", "seconds")
    ranked = sorted(result["objectives"], key=lambda o: (o["worst_regret"] is None, o["worst_regret"] or 0.0, o["seconds"]))
    return header, [*(_row(objective) for objective in ranked), _uniform_row(result)]


def markdown(result: dict[str, Any]) -> str:
    """A section: settings, the table, the best known at each budget, and who keeps within 10% of it."""
    header, rows = card(result)
    lines = [
        f"## {result['model'].rpartition('/')[2]}",
        "",
        _settings(result),
        "",
        _line(header),
        "|---" * len(header) + "|",
        *map(_line, rows),
        "",
        _verdict(result),
        "",
    ]
    measure = result.get("measure", "KL")
    best = ("budget", "bytes", f"best known {measure}", "found by", f"uniform {measure}")
    lines += [_line(best), "|---" * len(best) + "|", *(_line(_best_row(budget)) for budget in result["budgets"])]
    if result["unreachable"]:
        lines += ["", f"Not reachable by any assignment, so left out: {', '.join(f'{v:g}' for v in result['unreachable'])} bits a weight."]
    return "\n".join(lines) + "\n"


def _row(objective: dict[str, Any]) -> tuple[str, ...]:
    overall, low = objective["overall"], objective["low_bits"]
    return (
        objective["objective"],
        *(_number(overall[name]) for name in ("spearman", "kendall", "at_equal_size")),
        *(_number(low[name]) for name in ("spearman", "kendall")),
        *(_share(optimum["regret"]) for optimum in objective["optima"]),
        _share(objective["worst_regret"]),
        str(objective["violations"]),
        f"{objective['seconds']:.1f}",
    )


def _uniform_row(result: dict[str, Any]) -> tuple[str, ...]:
    regrets = [budget["uniform_regret"] for budget in result["budgets"]]
    asked = [budget["uniform_regret"] for budget in result["budgets"] if budget["bits"] >= 4]
    worst = None if not asked or None in asked else max(asked)
    return ("(uniform bits)", *[""] * 5, *(_share(value) for value in regrets), _share(worst), "", "")


def _best_row(budget: dict[str, Any]) -> tuple[str, ...]:
    losses = ["-" if value is None else f"{value:.4g}" for value in (budget["best_loss"], budget["uniform_loss"])]
    return (f"{budget['bits']:g} bits", f"{budget['limit_bytes']:,.0f}", losses[0], budget["best_found_by"], losses[1])


def _settings(result: dict[str, Any]) -> str:
    images, bits, local = result["images"], ", ".join(map(str, result["bits"])), result["local_steps"]
    seconds = result["seconds_for_each_loss"]
    each = "" if seconds is None else f"{seconds:.2f} s each; "
    low = next((o["low_bits"]["count"] for o in result["objectives"]), 0)
    return (
        f"Weight bits {bits}, input bits {result['a_bits']}; {images['calibration']} calibration images, {images['search']} search images, "
        f"seed {result['seed']}. True loss: {result.get('measure', 'KL')} to the float model on the search images, weights rounded to nearest; "
        f"{each}{result['measured']} assignments measured, {len(result['samples'])} of them samples "
        f"spread over the sizes ({low} of at most 4 bits a weight), {local} steps of local search at each budget. "
        f"{LEGEND}"
    )


def _verdict(result: dict[str, Any]) -> str:
    within = [o["objective"] for o in result["objectives"] if o["worst_regret"] is not None and o["worst_regret"] <= LIMIT]
    if not within:
        return "No objective's exact optimum is within 10% of the best known at every budget down to 4 bits a weight."
    return f"Within 10% of the best known at every budget down to 4 bits a weight: {', '.join(within)}."


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
