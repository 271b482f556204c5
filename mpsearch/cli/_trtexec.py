"""`mpsearch profile --from trtexec:DIR` and `--target tensorrt --write DIR`, as they are printed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mpsearch.cli._reading import config_of
from mpsearch.cli._show import Format, ProgressBars, print_rows, say
from mpsearch.errors import OptionError

if TYPE_CHECKING:
    from mpsearch.pipeline.jobs.trtexec import TrtexecTable


ELSEWHERE = ("tensorrt", "onnx-tensorrt")
"""Targets whose engines are built and timed on another machine."""
_USUAL = 16


def profile_write(context: typer.Context, folder: Path, output: Format) -> None:
    """Write the inputs of engines.

    Args:
        context: Options of the command.
        folder: Where they go.
        output: Format of the rows.
    """
    from mpsearch.pipeline.jobs.engines import write_engines

    given = context.params
    one = dict.fromkeys(("calibration_images", "search_images", "evaluation_images"), 1)
    config = config_of(context, budgets=("8bits",), pretrained=False, **one)
    builds = write_engines(config, folder, ProgressBars(), given["models"] or _USUAL, given["batch"])
    rows = [
        (name, str(sum(k != "float" for k in kernels)), str(len(kernels))) for name, kernels in builds.items()
    ]
    print_rows(("build", "int8", "units and tensors"), rows, output)
    say(
        f"{len(builds)} inputs of engines in {folder}. Copy it to where the GPU is, run build.sh there, copy "
        f"it back, and read it with: mpsearch profile --from trtexec:{folder}"
    )


def profile_from(context: typer.Context, source: str, output: Format) -> None:
    """Read a folder of trtexec's files into a table.

    Args:
        context: Options of the command.
        source: `trtexec:DIR`.
        output: Format of the rows.
    """
    from mpsearch.hardware.trtexec import read_builds, source_folder

    given = context.params
    if (given["model"] is None) != (given["data"] is None):
        raise OptionError(
            "--from takes --model and --data together, or neither: the data give the input's size."
        )
    folder, config = source_folder(source), None
    builds = read_builds(folder)  # bad files are told before a model is loaded
    from mpsearch.pipeline.jobs.trtexec import import_trtexec

    if given["model"] is not None:
        one = dict.fromkeys(("calibration_images", "search_images", "evaluation_images"), 1)
        config = config_of(context, budgets=("8bits",), pretrained=False, target="packed", **one)
    found = import_trtexec(
        folder, builds, config, Path(given["tables"]), ProgressBars(), allow_estimate=given["allow_estimate"]
    )
    rows = []
    for build in found.builds:
        predicted = "" if build.predicted_us is None else f"{build.predicted_us / 1e3:.3f}"
        sums = found.imported.accounts[build.name].sums()
        parts = [f"{us / 1e3:.3f}" for us in sums.values()]
        rows.append((build.name, f"{build.measured_us / 1e3:.3f}", predicted, *parts, f"{build.share:.2f}"))
    head = (
        "build",
        "median_ms",
        "predicted_ms",
        "units_ms",
        "groups_ms",
        "edges_ms",
        "other_ms",
        "layers/whole",
    )
    print_rows(head, rows, output)
    for build in found.builds:
        if build.before and build.predicted_us is not None:
            more = build.measured_us / build.predicted_us - 1
            say(
                f"{build.name} takes {build.measured_us / 1e3:.3f} ms; {build.predicted_us / 1e3:.3f} ms "
                f"were predicted ({more:+.1%}). A run with --table {found.path} knows it, and repairs its "
                "budget."
            )
    _say_error(found)


def _say_error(found: TrtexecTable) -> None:
    table = found.imported.table
    counts = Counter(row.kind for row in table.rows.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    say(
        f"{len(table.rows)} rows ({kinds}) and {len(table.models)} runs of whole engines at batch "
        f"{table.batch}, in {found.path}."
    )
    unstable = sum(row.status == "unstable" for row in table.rows.values())
    if unstable:
        say(f"{unstable} rows are of fewer than 50 iterations, and marked unstable.")
    if found.model is None:
        say("The model's graph is not known, so nothing is predicted. Give --model and --data.")
    elif found.model.error is None:
        say("One engine is too few to tell how well others are predicted.")
    else:
        said = "each predicted by the others" if found.model.error.runs < 8 else "by cross-validation"
        say(f"Whole engines are predicted within {found.model.error}; {said}.")
