"""The table a user chooses an objective by: rows of `validation.json`, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LIMIT = 0.10
"""Regret above which an objective's optimum counts as missed."""
LOW_BITS = 4.0
"""Bits a weight from which on the samples count as low, and down to which the worst regret is told."""

LEGEND = (
    "rho, tau: Spearman's and Kendall's rank correlation of predicted damage and true loss over all "
    "samples; at size: partial, given the bytes; "
    "low: over the samples of at most 4 bits a weight. regret: loss of the objective's exact optimum at "
    "a budget above the best known, as a share of it; "
    "worst: of the budgets of 4 bits a weight and more. repaired: entries that were not monotone in "
    "bits. seconds: of the scoring alone."
)
UNSEEN = (
    "The best known is the least of all that was measured on the search images, so it is too good for "
    "these; here it and the optima are measured on "
    "{images} evaluation images, by which nothing was chosen. regret: mean loss above that of the best "
    "known, as a share, with its standard error."
)
FINISHED = (
    "What is delivered: the optima finished by {method}, on the same {images} images; mean loss, and in "
    "brackets how far it is above the best "
    "of the row's budget, as a share, with its standard error."
)


def card(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and one row for each objective, then one for uniform bits; the least worst regret first."""
    regrets = [f"regret {budget['bits']:g}b" for budget in result["budgets"]]
    header = (
        "objective",
        "rho",
        "tau",
        "rho at size",
        "rho low",
        "tau low",
        *regrets,
        "worst",
        "repaired",
        "seconds",
    )
    return header, [*(_row(objective) for objective in _ranked(result, "worst_regret")), _uniform_row(result)]


def unseen_card(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The same for the regrets on images that nothing was chosen by."""
    header = ("objective", *(f"unseen {budget['bits']:g}b" for budget in result["budgets"]), "worst unseen")
    rows = [
        (
            o["objective"],
            *(_with_error(optimum["unseen"]) for optimum in o["optima"]),
            _share(o["worst_unseen"]),
        )
        for o in _ranked(result, "worst_unseen")
    ]
    uniform = [budget["uniform_unseen"] for budget in result["budgets"]]
    return header, [*rows, ("(uniform bits)", *map(_with_error, uniform), "")]


def finished_card(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Losses of the finished optima on the same images, and how far they are above the best of them at each
    budget.
    """
    header = ("objective", *(f"finished {budget['bits']:g}b" for budget in result["budgets"]))

    def cells(measured: list[dict[str, float | None] | None]) -> list[str]:
        return [
            "-" if m is None or m["loss"] is None else f"{m['loss']:.4g} ({_with_error(m)})" for m in measured
        ]

    rows = [
        (o["objective"], *cells([optimum["finished"] for optimum in o["optima"]]))
        for o in _ranked(result, "worst_unseen")
    ]
    return header, [
        *rows,
        ("(uniform bits)", *cells([budget["uniform_finished"] for budget in result["budgets"]])),
    ]


def _ranked(result: dict[str, Any], by: str) -> list[dict[str, Any]]:
    return sorted(result["objectives"], key=lambda o: (o[by] is None, o[by] or 0.0, o["seconds"]))


def markdown(result: dict[str, Any]) -> str:
    """A section: settings, the table, the best known at each budget, and who keeps within 10% of it."""
    unseen = result["images"]["unseen"]
    lines = [
        f"## {result['model'].rpartition('/')[2]}",
        "",
        _settings(result),
        "",
        *_table(*card(result)),
        "",
        UNSEEN.format(images=unseen),
        "",
        *_table(*unseen_card(result)),
        "",
        FINISHED.format(images=unseen, method=result["method"]),
        "",
        *_table(*finished_card(result)),
        "",
        _verdict(result),
        "",
        *_table(*_best_known(result)),
    ]
    if result["unreachable"]:
        lines += [
            "",
            (
                "Not reachable by any assignment, so left out: "
                f"{', '.join(f'{v:g}' for v in result['unreachable'])} bits a weight."
            ),
        ]
    return "\n".join(lines) + "\n"


def _best_known(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header, and a row for each budget."""
    measure = result.get("measure", "KL")
    header = (
        "budget",
        "bytes",
        f"best known {measure}",
        "found by",
        f"on unseen images, {measure}",
        f"uniform {measure}",
    )
    return header, [_best_row(budget) for budget in result["budgets"]]


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [_line(header), "|---" * len(header) + "|", *map(_line, rows)]


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
    best, unseen, uniform = (
        "-" if (value := budget[name]) is None else f"{value:.4g}"
        for name in ("best_loss", "best_unseen_loss", "uniform_loss")
    )
    return (
        f"{budget['bits']:g} bits",
        f"{budget['limit_bytes']:,.0f}",
        best,
        budget["best_found_by"],
        unseen,
        uniform,
    )


def _settings(result: dict[str, Any]) -> str:
    images, local = result["images"], result["local_steps"]
    bits, a_bits = (", ".join(map(str, result[name])) for name in ("bits", "a_bits"))
    seconds = result["seconds_for_each_loss"]
    each = "" if seconds is None else f"{seconds:.2f} s each; "
    low = next((o["low_bits"]["count"] for o in result["objectives"]), 0)
    return (
        f"Weight bits {bits}, input bits {a_bits}; {images['calibration']} calibration images, "
        f"{images['search']} search images, "
        f"seed {result['seed']}. True loss: {result.get('measure', 'KL')} to the float model on the "
        f"search images, states {result['states']}; "
        f"{each}{result['measured']} assignments measured, {len(result['samples'])} of them samples "
        f"spread over the sizes ({low} of at most 4 bits a weight), {local} steps of local search at "
        "each budget. "
        f"{LEGEND}"
    )


def _verdict(result: dict[str, Any]) -> str:
    """By the unseen images; one whose regret is above the limit by less than two standard errors is named
    apart, and one image has no error to judge by.
    """
    within, near = [], []
    for objective in result["objectives"]:
        asked = [optimum["unseen"] for optimum in objective["optima"] if optimum["bits"] >= LOW_BITS]
        if not asked or any(u["regret"] is None or u["error"] is None for u in asked):
            continue
        if all(u["regret"] <= LIMIT for u in asked):
            within.append(objective["objective"])
        elif all(u["regret"] - 2 * u["error"] <= LIMIT for u in asked):
            near.append(objective["objective"])
    said = (
        "On unseen images, within 10% of the best known at every budget down to 4 bits a weight: "
        + (", ".join(within) or "no objective's exact optimum")
        + "."
    )
    return said + (f" Above it by less than two standard errors: {', '.join(near)}." if near else "")


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with_error(unseen: dict[str, float | None] | None) -> str:
    if unseen is None or unseen["regret"] is None:
        return "-"
    return f"{unseen['regret']:+.1%}" + ("" if unseen["error"] is None else f" ± {unseen['error']:.1%}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
