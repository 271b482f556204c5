"""`mpsearch profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpsearch.cli._app import command
from mpsearch.cli._options import CallBatch, ModelArguments, Output, Tables, Threads
from mpsearch.cli._reading import config_of
from mpsearch.cli._show import Format, ProgressBars, print_rows, say
from mpsearch.cli._trtexec import ELSEWHERE, profile_from, profile_write
from mpsearch.errors import DeviceMismatchError, OptionError, TableError


@command(
    "mpsearch profile --model resnet18 --data images/val",
    "mpsearch profile --check latency_tables",
    "mpsearch profile --model resnet18 --data images/val --target tensorrt --write engines",
)
def profile(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Model, as in run.")] = None,
    data: Annotated[str | None, typer.Option(help="Data, as in run: gives the input's size.")] = None,
    model_arg: ModelArguments = None,
    target: Annotated[
        str,
        typer.Option(
            help=(
                "ort-cpu, openvino-cpu, openvino-cpu-bf16 or triton-cuda: whose kernels are measured; or "
                "tensorrt, with --write."
            )
        ),
    ] = "ort-cpu",
    tables: Tables = "latency_tables",
    threads: Threads = 1,
    at_most: Annotated[
        int | None,
        typer.Option(help="Measure no more rows than this, those from which the others are predicted best."),
    ] = None,
    models: Annotated[
        int,
        typer.Option(
            help=(
                "Also measure so many whole models at mixed assignments, as run does for a latency "
                "budget (24), which then finds them here."
            )
        ),
    ] = 0,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Measure nothing: tell whether this table, or each table of this folder, fits this device."
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            help=(
                "With --target tensorrt: measure nothing here, and write engines' inputs (--models of them, "
                "16 unless told) and one script of trtexec calls into this folder."
            )
        ),
    ] = None,
    batch: CallBatch = 1,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help=(
                "trtexec:DIR: measure nothing, and read what trtexec has written of TensorRT engines. "
                "--model and --data tell whose engines they are, where mpsearch did not write them."
            ),
        ),
    ] = None,
    allow_estimate: Annotated[
        bool, typer.Option("--allow-estimate", help="With --from: take profiles of one iteration.")
    ] = False,
    output: Output = Format.table,
) -> None:
    """Measure the rows that this device's latency table lacks for a model's shapes. Weights do not matter."""
    if source is not None:
        profile_from(context, source, output)
        return
    if check is not None:
        _check(check, output)
        return
    if (write is not None) != (target.partition(":")[0] in ELSEWHERE):
        raise OptionError(
            "--target tensorrt and --write DIR go together: engines are built and timed where the GPU is. "
            "Give both; then read what came back with --from trtexec:DIR."
        )
    if model is None or data is None:
        raise OptionError(
            "profile needs --model and --data, whose shapes it measures; or --check TABLE, which "
            "measures nothing."
        )
    if target == "packed":
        raise OptionError(
            "The target 'packed' has no runtime to measure. Take --target ort-cpu or --target openvino-cpu."
        )
    if at_most is not None and at_most < 0:
        raise OptionError(f"--at-most is {at_most}; it must be 0 or more.")
    if models < 0:
        raise OptionError(f"--models is {models}; it must be 0 or more.")
    if write is not None:
        profile_write(context, write, output)
        return
    from mpsearch.pipeline import profile_model

    one = dict.fromkeys(("calibration_images", "search_images", "evaluation_images"), 1)
    config = config_of(context, budgets=("8bits",), pretrained=False, **one)
    table, path = profile_model(config, ProgressBars(), at_most, models)
    rows = [
        (r.key, r.kernel, r.status, f"{r.median_us:.1f}", f"{r.iqr_us:.1f}", r.executed)
        for _, r in sorted(table.rows.items())
    ]
    print_rows(("unit", "kernel", "status", "median_us", "iqr_us", "executed"), rows, output)
    say(f"{len(table.rows)} rows and {len(table.models)} runs of whole models in {path} and beside it.")


def _check(place: Path, output: Format) -> None:
    """One line for each table; an error where not every table fits."""
    from mpsearch.hardware import check_tables, identity

    found = check_tables(place, identity())
    rows = []
    for c in found:
        statuses = ", ".join(f"{n} {status}" for status, n in sorted(c.rows.items()))
        rows.append(
            (
                c.path.name,
                c.verdict,
                statuses,
                str(c.models),
                "" if c.aa_error is None else f"{c.aa_error:.1%}",
                "; ".join(c.reasons),
            )
        )
    print_rows(("table", "verdict", "rows", "models", "A/A", "why"), rows, output)
    damaged, others = (
        [c.path.name for c in found if c.verdict == verdict] for verdict in ("damaged", "estimate")
    )
    if damaged:
        raise TableError(
            f"Damaged: {', '.join(damaged)}. Restore, or remove and measure again; the table above says "
            "where."
        )
    if others:
        raise DeviceMismatchError(
            f"Not of this device and version: {', '.join(others)}. Measure here, or take one as an "
            "estimate with --allow-estimate."
        )
    say(f"{len(found)} {'table fits' if len(found) == 1 else 'tables fit'} this device and version.")
