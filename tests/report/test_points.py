"""The commands of the page name the assignments that they stand beside."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from saved_study import large_study, save, study_files

from mpsearch.pipeline.jobs.points import _numbered, require_points, uniform
from mpsearch.problem import FLOAT, Candidate, Layer, Problem
from mpsearch.report.points import export_command, points_of, uniform_name
from mpsearch.report.saved import read_saved


def test_names_are_those_that_export_takes(tmp_path: Path) -> None:
    folder = save(tmp_path / "study", large_study(layers=4, trials=20))
    saved = read_saved(folder)
    points = points_of(saved)
    assert [p.kind for p in points] == [*["front"] * 512, *["trial"] * 20, "float", "uniform", "chosen"]
    names = [p.name for p in points]
    assert None not in names and names[-3:] == ["float", "W4A8", "best"]
    require_points(folder, [str(name) for name in names])
    for point in points[:532]:
        assert tuple(_numbered(folder, str(point.name))) == point.indices
    best = json.loads((folder / "best.json").read_text())
    assert tuple(best["indices"]) == points[-1].indices
    words = shlex.split(export_command(saved, "front:12"))
    assert words == ["mpsearch", "export", str(folder), "--point", "front:12", "--target", "ort-cpu"]


LAYERS = (
    Layer("a", "conv2d", (8, 3, 3, 3), ((1, 3, 8, 8),), (1, 8, 8, 8), 1, "a"),
    Layer("b", "linear", (10, 8), ((1, 8),), (1, 10), 1, "b"),
    Layer("c.matmul0", "matmul", (), ((1, 4, 4), (1, 4, 4)), (1, 4, 4), 1, "c"),
)


@pytest.mark.parametrize("product", [("A8", "A4"), ("float",)])
def test_a_uniform_name_is_the_same_assignment(product: tuple[str, ...]) -> None:
    """As `export --point W4A8` makes it, for a model whose products are quantised, or are not."""
    rows = (("W8A8", "W4A8", "W4A4"), ("W8A8", "W4A8", "W4A4"), product)
    problem = Problem(LAYERS, tuple(tuple(map(Candidate.parse, row)) for row in rows))
    quantised = [] if product == ("float",) else ["c.matmul0"]
    subject = SimpleNamespace(
        units=("a", "b"), layout=SimpleNamespace(products=quantised), graph=SimpleNamespace(layers=LAYERS)
    )
    named = 0
    for i in range(3):
        for j in range(3):
            for k in range(len(product)):
                name = uniform_name(problem, (i, j, k))
                if name is not None:
                    named += 1
                    assert uniform(subject, Candidate.parse(name)) == problem.assignment((i, j, k))
    assert named == 3


def test_float_everywhere_has_no_uniform_name() -> None:
    problem = Problem(LAYERS[:2], ((FLOAT,), (FLOAT,)))
    assert uniform_name(problem, (0, 0)) is None


def test_a_row_that_the_search_never_met_has_no_name(tmp_path: Path) -> None:
    """It is made from a file of its own; the trial that has the assignment of a row lends its number."""
    contents = study_files(timed=True, labelled=True)
    rows = contents["results.json"]["rows"]
    rows += [
        {**rows[1], "label": "odd", "indices": [0, 1, 0]},
        {**rows[1], "label": "met", "indices": [1, 1, 0]},
    ]
    points = {p.label: p for p in points_of(read_saved(save(tmp_path / "study", contents)))}
    assert points["odd"].name is None and points["met"].name == "W4A8" and points["odd"].kind == "other"
