"""Options of `mpsearch score` alone."""

from __future__ import annotations

from typing import Annotated

import typer

EvaluationImages = Annotated[
    int | None, typer.Option(help="Kept apart; --validate measures regrets again on them.")
]
Objectives = Annotated[
    list[str] | None,
    typer.Option(help="NAME[:option=value,...]. May be repeated; every additive one without it."),
]
Validate = Annotated[
    bool,
    typer.Option(
        "--validate",
        help="Compare each objective with the true loss, and its exact optimum with the best known.",
    ),
]
Samples = Annotated[int, typer.Option(help="With --validate: assignments spread over the range of sizes.")]
Levels = Annotated[str, typer.Option(help="With --validate: how many, or bits a weight such as 7,6,4.")]
LocalSteps = Annotated[
    int, typer.Option(help="With --validate: measurements of the local search at each budget.")
]
UnseenImages = Annotated[
    int,
    typer.Option(help="With --validate: evaluation images at most, on which the regrets are measured again."),
]
Name = Annotated[
    str | None, typer.Option(help="Name of the study's folder below studies/; MODEL-score without it.")
]
