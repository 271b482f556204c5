"""`mpsearch profile`."""

from __future__ import annotations

from typing import Annotated

import typer

from mpsearch.cli._app import app
from mpsearch.cli._options import ModelArguments, Output, Tables, Threads, model_arguments
from mpsearch.cli._show import Format, ProgressBars, print_rows, say


@app.command()
def profile(
    model: Annotated[str, typer.Option(help="As in run.")],
    data: Annotated[str, typer.Option(help="As in run: gives the input's size.")],
    model_arg: ModelArguments = None,
    tables: Tables = "latency_tables",
    threads: Threads = 1,
    output: Output = Format.table,
) -> None:
    """Measure the rows that this device's latency table lacks for a model's shapes. Weights do not matter."""
    from mpsearch.pipeline import RunConfig, profile_model

    config = RunConfig(
        budgets=("8bits",),
        model=model,
        model_args=model_arguments(model_arg or []),
        pretrained=False,
        data=data,
        tables=tables,
        threads=threads,
        calibration_images=1,
        search_images=1,
        evaluation_images=1,
    )
    table, path = profile_model(config, ProgressBars())
    rows = [(r.key, r.kernel, r.status, f"{r.median_us:.1f}", f"{r.iqr_us:.1f}", r.executed) for _, r in sorted(table.rows.items())]
    print_rows(("unit", "kernel", "status", "median_us", "iqr_us", "executed"), rows, output)
    say(f"{len(table.rows)} rows in {path}.")
