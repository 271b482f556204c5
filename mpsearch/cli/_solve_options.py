"""Options of `mpsearch solve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Where = Annotated[Path, typer.Argument(help="Folder of a study, or a problem.json.")]
Budgets = Annotated[
    list[str] | None,
    typer.Option(help="15MB, 40%, 5bits, 2.5ms, 3mJ, '512MiB peak', 20GBOPs. May be repeated."),
]
Objective = Annotated[str | None, typer.Option(help="Score table to minimise; the study's first without it.")]
LayerBits = Annotated[
    list[str] | None,
    typer.Option(help="NAME=2..6 (weights) or NAME=A4..8 (inputs); NAME may be a pattern. May be repeated."),
]
KBest = Annotated[int, typer.Option(help="This many assignments, least damage first.")]
Distance = Annotated[
    int, typer.Option(help="With --k-best: layers in which each differs from all before it, at least.")
]
Ranges = Annotated[
    bool,
    typer.Option("--ranges", help="Instead: what is reachable of each resource, and within the budgets."),
]
Prices = Annotated[bool, typer.Option("--prices", help="Instead: what each step up in a resource buys.")]
Front = Annotated[
    bool,
    typer.Option(
        "--front",
        help="Instead: the exact front over --resource; over two resources, one as fine as --points.",
    ),
]
Resources = Annotated[
    list[str] | None,
    typer.Option(
        help="What --prices and --front weigh: size, latency, energy or bops. Twice for three objectives."
    ),
]
Points = Annotated[
    int | None,
    typer.Option(
        help="Steps of --prices (20), points of --front (all), or limits on each of two resources (12)."
    ),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        help=(
            "Instead: the least --minimize whose measured score (the study's metric, or its task's) is at "
            "most this below the float model's: 1% of it, or 0.5 points."
        )
    ),
]
Minimize = Annotated[Literal["size", "latency"], typer.Option(help="What --max-drop makes least.")]
