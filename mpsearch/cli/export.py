"""`mpsearch export` and `mpsearch materialize`: assignments become artifacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mpsearch.cli._app import command
from mpsearch.cli._options import Output
from mpsearch.cli._reading import require_file, require_names
from mpsearch.cli._show import Format, ProgressBars, print_rows, say
from mpsearch.errors import MpsearchError, OptionError
from mpsearch.named import require_study
from mpsearch.units import format_bytes

StudyFolder = Annotated[Path, typer.Argument(help="Folder of a finished study.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="NAME[:option=value]; `mpsearch list targets` names them. May be repeated.",
        show_default="onnx for export, packed for materialize",
    ),
]
Nearest = Annotated[
    bool, typer.Option("--nearest", help="Round weights to nearest instead of learning them.")
]
References = Annotated[
    bool,
    typer.Option(
        "--references/--no-references",
        help="Also export float and uniform W8A8, for `bench` to compare with.",
    ),
]


@command(
    "mpsearch export studies/default-15MB --target openvino",
    "mpsearch export studies/default-15MB --point best,front:12,W4A8 --target onnx --target packed",
)
def export(
    study: StudyFolder,
    point: Annotated[
        str,
        typer.Option(
            help=(
                "Comma-separated: best, the number of a measured trial (7), a point of the exact front "
                "(front:12), float, W4A8, or finetuned:LABEL."
            )
        ),
    ] = "best",
    target: Targets = None,
    nearest: Nearest = False,
    references: References = True,
    output: Output = Format.table,
) -> None:
    """Write points of a study as artifacts; each is run in a fresh process and compared with what it stands
    for.
    """
    require_study(study)
    require_names({"target": target})
    from mpsearch.pipeline.folder import Study
    from mpsearch.pipeline.jobs.export import REFERENCES
    from mpsearch.pipeline.jobs.points import points_of, require_points

    texts = list(dict.fromkeys(part.strip() for part in point.split(",") if part.strip()))
    Study(study).config()
    require_points(study, texts)  # before the model is loaded: a slip is told at once

    def points(workshop: Any) -> list[Any]:
        beside = [text for text in REFERENCES if references and text not in texts]
        return [
            *points_of(workshop, texts, reconstruct=not nearest),
            *points_of(workshop, beside, reconstruct=False),
        ]

    _export(study, target or ["onnx"], points, output)


@command(
    "mpsearch materialize assignment.json --study studies/default-15MB",
    "mpsearch materialize bits.csv --study studies/default-15MB --target onnx --label mine",
)
def materialize(
    assignment: Annotated[
        Path, typer.Argument(help="assignment.json, CSV, or the file of another tool (--from).")
    ],
    study: Annotated[Path, typer.Option(help="Study whose model, images and settings are used.")],
    importer: Annotated[
        str, typer.Option("--from", help="Form of the file; `mpsearch list importers` names them.")
    ] = "mpsearch",
    label: Annotated[
        str | None, typer.Option(help="Name of the artifact; the file's name without it.")
    ] = None,
    target: Targets = None,
    nearest: Nearest = False,
    output: Output = Format.table,
) -> None:
    """Quantise, reconstruct and write a given assignment."""
    require_names({"target": target, "importer": importer})
    require_file(assignment)
    if label is not None and (Path(label).name != label or label in (".", "..")):
        raise OptionError(
            f"--label {label!r} is no name of a folder. Write a name without slashes, such as mine."
        )
    require_study(study)
    from mpsearch.deploy.imports import IMPORTERS
    from mpsearch.pipeline.jobs.imported import read_import
    from mpsearch.pipeline.jobs.points import Point

    IMPORTERS.create(importer)  # before the model is loaded: a slip is told at once

    def points(workshop: Any) -> list[Any]:
        found = read_import(assignment, importer, workshop.subject)
        for note in found.notes:
            say(note)
        return [Point(label or assignment.stem, found.assignment, not nearest)]

    _export(study, target or ["packed"], points, output)


def _export(folder: Path, targets: list[str], points: Any, output: Format) -> None:
    from mpsearch.deploy.targets import TARGETS
    from mpsearch.pipeline.folder import Study
    from mpsearch.pipeline.jobs.export import Deployer, export_points
    from mpsearch.pipeline.jobs.imported import open_workshop

    for text in targets:
        TARGETS.create(text)  # before the model is loaded: a slip is told at once
    study = Study(folder)
    config = study.settled()
    with study.busy():
        workshop = open_workshop(config, study, ProgressBars())
        rows, failed = export_points(Deployer(workshop, folder / "export"), points(workshop), targets)
    if rows or not failed:
        _print(rows, output)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        for error in failed:
            say(str(error))
        raise MpsearchError(
            f"{len(failed)} of {len(rows) + len(failed)} exports failed for the reasons "
            f"above{'; the others are written' if rows else ''}."
        )


def _print(rows: list[dict[str, Any]], output: Format) -> None:
    if output is Format.json:
        print(json.dumps(rows, indent=1))
        return
    what = rows[0]["measure"] if rows and rows[0]["fake_quantized"]["top1"] is None else "top-1"
    header = (
        "point",
        "target",
        "bits",
        "size predicted",
        "artifact",
        f"{what} fake-quantised",
        f"{what} runtime",
        "cosine (mean, least)",
        "folder",
    )
    print_rows(header, [_cells(row) for row in rows], output)
    for row in rows:
        for note in row["notes"]:
            say(f"{row['point']} for {row['target']}: {note}")
        if row["runtime"] is None:
            say(f"{row['point']} for {row['target']} was written and not run: {row['reason']}")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    ran, fake = row["runtime"], row["fake_quantized"]
    cosine = "" if ran is None else f"{ran['cosine_mean']:.6f}, {ran['cosine_least']:.6f}"
    through = "" if ran is None else _quality(ran)
    predicted = f"{row['predicted_file']}: {format_bytes(row['predicted_bytes'])}"
    sizes = (predicted, format_bytes(row["artifact_bytes"]))
    return (
        row["point"],
        row["target"],
        f"{row['mean_bits']:.2f}",
        *sizes,
        _quality(fake),
        through,
        cosine,
        row["folder"],
    )


def _quality(metrics: dict[str, Any]) -> str:
    """Top-1 where there is one, else the damage."""
    return f"{metrics['kl']:.5f}" if metrics["top1"] is None else f"{metrics['top1']:.2%}"
