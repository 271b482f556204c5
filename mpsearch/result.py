"""`Result`: a finished study for programs and notebooks."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpsearch.errors import OptionError
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.export import Deployer, export_points
from mpsearch.pipeline.jobs.imported import open_workshop
from mpsearch.pipeline.jobs.points import assignment_of, points_of
from mpsearch.pipeline.progress import Lines, Progress
from mpsearch.pipeline.results import Choice, Results
from mpsearch.problem import Assignment
from mpsearch.report.figures import FIGURES
from mpsearch.report.points import points_of as report_points
from mpsearch.report.saved import Saved, read_saved
from mpsearch.units import format_quantity

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from torch import nn

    from mpsearch.pipeline.steps.workshop import Workshop

Opener = Callable[[Study, Progress], "Workshop"]


class Result:
    """What a search found. It reads the study's folder, so it can be made of any finished study:
    `mpsearch.Result("studies/default-15MB")`.

    A point is named as `mpsearch export --point` names it: `best`, a measured trial (`7`), a point of the
    exact front (`front:12`), `float`, or a uniform assignment (`W4A8`).

    Args:
        study: Its folder.
        model: The float model, where a program gave it as an object.
        opener: Opens the study with the model and samples that the program gave; None where the settings name
            them.
    Raises: StudyError: There is no finished study in the folder, or it is damaged.
    """

    def __init__(
        self, study: str | Path, model: nn.Module | None = None, opener: Opener | None = None
    ) -> None:
        self.path = Path(study)
        self._saved: Saved = read_saved(self.path)
        self._model, self._opener = model, opener

    @property
    def data(self) -> dict[str, Any]:
        """All of `results.json`, as plain data."""
        return self._saved.results

    @property
    def best(self) -> Choice:
        """The choice: `assignment`, `predicted`, `measured`, `metrics`, `reason`, files in `artifact`."""
        return Results.from_json(self._saved.results).best

    @property
    def front(self) -> list[dict[str, Any]]:
        """The exact front of predicted damage over size (or latency), a record for each point: `point` (its
        name), `fits`, predicted costs such as `size_bytes`, and `damage`. `pandas.DataFrame` takes the list.
        """
        return [r for r in self.points if r["kind"] == "front"]

    @property
    def points(self) -> list[dict[str, Any]]:
        """Every assignment that is known by name or number, as records: also measured trials and the rows of
        the results table, with what was measured (`measured_...`).
        """
        objective = self._saved.front["objective"]
        return [
            {
                "kind": p.kind,
                "point": p.name,
                "label": p.label,
                "fits": p.fits,
                **p.predicted,
                "damage": p.damage.get(objective),
                **{f"measured_{name}": value for name, value in p.measured.items()},
            }
            for p in report_points(self._saved)
        ]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The results table as records: float, uniform widths, the optimum, the choice."""
        found = []
        for row in self._saved.rows:
            held = row.get("reconstructed") or row["searched"]
            metrics = held["metrics"]
            top1 = {} if metrics["top1"] is None else {"top1": metrics["top1"]}
            costs = {key: held[key] for key in ("size_bytes", "latency_us", "energy_mj") if key in held}
            chosen = row["label"] == self._saved.best["label"]
            record = {"label": row["label"], "chosen": chosen, "bits": row["mean_bits"], **costs, **top1}
            found.append({**record, self._saved.measure: metrics["kl"], **metrics.get("scores", {})})
        return found

    @property
    def report(self) -> Path:
        """The page about the study."""
        return self.path / "report.html"

    def assignment(self, point: str = "best") -> Assignment:
        """The candidate of each layer at a point. Raises UserError where there is no such point."""
        return assignment_of(self.path, point)

    def export(self, target: str = "onnx", point: str = "best", *, progress: Progress | bool = True) -> Path:
        """Write a point for a deployment target, run it in a new process, and compare.

        Args:
            target: As `--target` of `mpsearch export`.
            point: Its name.
            progress: Where progress goes; True for lines on stderr, False for nowhere.
        Returns: The artifact's folder.
        Raises: MpsearchError: It cannot be written, or computes something else.
        """
        study, told = Study(self.path), Lines.of(progress)
        with study.busy():
            workshop = (
                open_workshop(study.settled(), study, told)
                if self._opener is None
                else self._opener(study, told)
            )
            deployer = Deployer(workshop, self.path / "export")
            rows, failed = export_points(deployer, points_of(workshop, [point]), [target])
        if failed:
            raise failed[0]
        return Path(rows[0]["folder"])

    def materialize(self, point: str = "best", *, progress: Progress | bool = True) -> nn.Module:
        """The quantised model of a point, in eval mode: the artifact's for `best`; any other is finished and
        written first.

        Args:
            point: Its name; not `float`, which is the model that was given.
            progress: Where progress goes, as for `export`.
        Raises: MpsearchError: There is no such point, or it cannot be written.
        """
        from mpsearch.deploy import load

        if point == "float":
            raise OptionError(
                "The point 'float' is the model itself. Give another, such as 'best' or 'W4A8'."
            )
        folder = (
            self.path / "artifact" if point == "best" else self.export("packed", point, progress=progress)
        )
        return load(folder / "model.safetensors", self._model)

    def plot(self, figure: str = "front") -> go.Figure:
        """A figure of the report.

        Args:
            figure: `front`, `bits`, `sensitivity`, `history` or another of the report's.
        Raises: OptionError: There is no such figure, or the study has nothing to draw in it.
        """
        make = FIGURES.get(figure)
        drawn = None if make is None else make(self._saved, report_points(self._saved))
        if drawn is None:
            raise OptionError(
                f"There is no figure {figure!r} of {self.path}. It may be {', '.join(FIGURES)}, where there "
                "is something to draw."
            )
        return drawn

    def __repr__(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        writer.writerows(self._table())
        lines = [line.split("\t") for line in text.getvalue().splitlines()]
        wide = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        table = ["  ".join(c.ljust(w) for c, w in zip(line, wide, strict=True)).rstrip() for line in lines]
        return "\n".join([f"{self._headline()}", *table, f"Report: {self.report}"])

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        cells = "".join(f"<th>{html.escape(c)}</th>" for c in head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        return f"<p>{html.escape(self._headline())}</p><table><tr>{cells}</tr>{body}</table>"

    def _headline(self) -> str:
        best = self._saved.best
        said = ", ".join(b.text for b in self._saved.budgets) or "no budget"
        return f"mpsearch study {self.path} ({said}): {best['label']} is chosen, {best['reason']}."

    def _table(self) -> list[tuple[str, ...]]:
        records = self.rows
        keys = [key for key in dict.fromkeys(k for r in records for k in r) if key not in ("label", "chosen")]
        head = ("", *(key.removesuffix("_bytes").removesuffix("_us").removesuffix("_mj") for key in keys))
        lines = [head]
        for record in records:
            label = record["label"] + (" [chosen]" if record["chosen"] else "")
            lines.append((label, *(_cell(key, record.get(key)) for key in keys)))
        return lines


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key.endswith(("_bytes", "_us", "_mj")):
        return format_quantity(value, key)
    return f"{value:.2%}" if key == "top1" else f"{value:.2f}" if key == "bits" else f"{value:.5f}"
