"""`mpsearch bench` and `mpsearch eval`: what an artifact does in a process of its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from mpsearch.cli._app import command
from mpsearch.cli._options import ClassMap, Metric, Output, Threads
from mpsearch.cli._show import Format, print_rows, say
from mpsearch.errors import OptionError
from mpsearch.units import format_bytes

ArtifactPath = Annotated[
    Path, typer.Argument(help="Folder that `mpsearch export` wrote, a study's `artifact`, or a file in it.")
]
FloatModel = Annotated[
    str | None,
    typer.Option(
        help="file.py:function (which is run) that builds the float model, where the artifact needs one."
    ),
]


@command(
    "mpsearch bench studies/default-15MB/artifact",
    "mpsearch bench studies/default-15MB/export/onnx/best --batch 1,32 --seconds 5",
)
def bench(
    artifact: ArtifactPath,
    beside: Annotated[
        list[str] | None,
        typer.Option(help="Further artifacts; without it float and W8A8 of the same export."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Batch sizes, such as 1,8,32. Without it 1 and 8, or 1 and that of the run's --batch."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of measuring for each batch size.")] = 2.0,
    threads: Threads = 1,
    model: FloatModel = None,
    output: Output = Format.table,
) -> None:
    """Latency distribution, throughput, peak memory and energy, with float and uniform int8 beside."""
    sizes = None if batch is None else _sizes(batch)
    if not 0 < seconds < math.inf or threads < 1:
        raise OptionError(
            f"seconds is {seconds} and threads {threads}; both must be above 0, and finite.",
            ("seconds", "threads"),
        )
    from mpsearch.deploy.artifact import open_artifact
    from mpsearch.pipeline.jobs.bench import bench_artifacts

    first = open_artifact(artifact)
    folders = (
        [Path(text) for text in beside]
        if beside
        else [first.folder.parent / name for name in ("float", "W8A8")]
    )
    others = [
        open_artifact(folder)
        for folder in folders
        if beside or (folder.is_dir() and folder.resolve() != first.folder.resolve())
    ]
    sizes = sizes or [1, int(first.manifest.get("batch", 8))]
    rows = bench_artifacts([first, *others], sizes, seconds, threads, model)
    if output is Format.json:
        print(json.dumps(rows, indent=1))
        return
    header = (
        "artifact",
        "target",
        "bytes",
        "batch",
        "p50 us",
        "p90 us",
        "p99 us",
        "iqr us",
        "calls",
        "images/s",
        "peak memory",
        "memory for the model",
    )
    print_rows(header, [line for row in rows for line in _lines(row)], output)
    energy = rows[0]["energy"]
    said = energy["reason"] if energy["mj_per_image"] is None else f"{energy['mj_per_image']:.3f} mJ an image"
    say(f"Energy: {said}. Device: {rows[0]['device']}. Wall clock, {threads} threads.")


@command(
    "mpsearch eval studies/default-15MB/artifact --data digits",
    "mpsearch eval studies/mine/export/onnx/best --data images/val --images 1000",
    name="eval",
)
def evaluate(
    artifact: ArtifactPath,
    data: Annotated[str, typer.Option(help="Labelled images, or file.py:function, as in run.")],
    class_map: ClassMap = None,
    metric: Metric = None,
    images: Annotated[int | None, typer.Option(help="At most so many, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the draw.")] = 0,
    threads: Threads = 1,
    model: FloatModel = None,
    output: Output = Format.table,
) -> None:
    """Accuracy through the runtime itself, in a fresh process; of a task without classes, the damage to the
    float artifact of the same export.
    """
    if threads < 1:
        raise OptionError(f"threads is {threads}; it must be 1 or more.", ("threads",))
    from mpsearch.deploy.artifact import open_artifact
    from mpsearch.pipeline.jobs.bench import evaluate_artifact

    row = evaluate_artifact(open_artifact(artifact), data, images, seed, threads, model, class_map, metric)
    if output is Format.json:
        print(json.dumps(row, indent=1))
        return
    held = row.get("metric")
    value = "" if held is None else "not finite" if held["value"] is None else f"{held['value']:.6g}"
    own = ((), ()) if held is None else ((held["name"],), (value,))
    if "damage" in row:
        damage = "" if row["damage"] is None else f"{row['damage']:.5f}"
        scores = tuple(f"{value:.4f}" for value in row["scores"].values())
        header = (
            "artifact",
            "target",
            "runs with",
            "images",
            f"{row['measure']} to float",
            "agreement",
            *row["scores"],
            *own[0],
        )
        print_rows(
            header,
            [
                (
                    row["artifact"],
                    row["target"],
                    row["runs_with"],
                    row["images"],
                    damage,
                    f"{row['agreement']:.2%}",
                    *scores,
                    *own[1],
                )
            ],
            output,
        )
        return
    header = ("artifact", "target", "runs with", "images", "top-1", "standard error", "loss", *own[0])
    error = "" if row["top1_error"] is None else f"{row['top1_error']:.2%}"
    shares = (
        "" if row["top1"] is None else f"{row['top1']:.2%}",
        error,
        "" if row["loss"] is None else f"{row['loss']:.4f}",
    )
    print_rows(
        header, [(row["artifact"], row["target"], row["runs_with"], row["images"], *shares, *own[1])], output
    )


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise OptionError(f"{text!r} are no batch sizes. Write 1,8.")
    return sizes


def _lines(row: dict[str, Any]) -> list[tuple[Any, ...]]:
    lines = []
    for measured in row["batches"]:
        t, memory = measured["latency_us"], row["memory"]
        times = [f"{t[key]:,.0f}" for key in ("p50", "p90", "p99", "iqr")]
        held = (
            format_bytes(memory["peak_bytes"]),
            format_bytes(memory["peak_bytes"] - memory["before_load_bytes"]),
        )
        lines.append(
            (
                row["artifact"],
                row["target"],
                f"{row['bytes']:,}",
                measured["batch"],
                *times,
                t["repeats"],
                f"{measured['images_per_second']:.1f}",
                *held,
            )
        )
    return lines
