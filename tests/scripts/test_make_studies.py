"""`scripts/make_studies.py` keeps of a study what can be read: small, with its page, and from no particular machine."""

import itertools
import json
import shlex
from pathlib import Path

import pytest
import typer
from saved_study import large_study, save, study_files

from mpsearch.cli import app
from mpsearch.report import write_report
from mpsearch.report.saved import read_saved
from scripts.make_studies import DATA, POINTS, ROOT, STUDIES, TEXTS, keep, link_plotly, require_fit, thinned


@pytest.fixture
def made(tmp_path):
    """A finished study of 40 layers with 512 points of the front, and weights that are not to be kept."""
    contents = large_study(40, 10)
    contents["front.json"]["resource"] = "size_bytes"
    for point in contents["front.json"]["points"]:
        point["size_bytes"] = point["predicted"]["size_bytes"]
    study = save(tmp_path / "made", contents)
    for name in (*TEXTS, *DATA):
        if not (study / name).exists():
            (study / name).write_text("{}")
    (study / "artifact" / "model.safetensors").write_bytes(bytes(1000))
    return study


def test_what_can_be_read_is_kept_and_has_the_same_choice(made, tmp_path):
    kept = tmp_path / "kept"
    keep(made, kept)
    names = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    assert names == {*TEXTS, *DATA, "front.json", "front.csv"}
    before, after = read_saved(made), read_saved(kept)
    assert after.best == before.best and after.problem.to_json() == before.problem.to_json()
    points = after.front["points"]
    assert len(points) == POINTS and after.front["measured"] == before.front["measured"]
    assert [points[0], points[-1]] == [before.front["points"][0], before.front["points"][-1]]
    header, *rows = (kept / "front.csv").read_text().splitlines()
    assert header == "size_bytes,sketch" and len(rows) == POINTS


def test_a_short_front_is_left_as_it_is_and_a_long_one_is_even():
    assert thinned([1, 2, 3]) == [1, 2, 3]
    found = thinned(list(range(1000)))
    steps = {b - a for a, b in itertools.pairwise(found)}
    assert (found[0], found[-1], len(found)) == (0, 999, POINTS) and steps <= {7, 8}


def test_the_page_loads_plotly_and_is_small(made, tmp_path):
    keep(made, tmp_path / "kept")
    report = write_report(tmp_path / "kept")
    whole = report.stat().st_size
    link_plotly(report)
    text = report.read_text()
    assert whole > 4_000_000 and report.stat().st_size < 250_000
    assert text.count('src="https://cdn.plot.ly/plotly-') == 1 and text.rstrip().endswith("</html>")
    with pytest.raises(SystemExit, match="does not hold Plotly"):
        link_plotly(report)


def test_a_path_of_this_machine_or_too_many_bytes_are_refused(tmp_path):
    study = save(tmp_path / "study", study_files(timed=True, labelled=True))
    require_fit(study, ("/nowhere",))
    (study / "study.json").write_text(json.dumps({"weights": "/home/me/mine.pt"}))
    with pytest.raises(SystemExit, match=r"study\.json"):
        require_fit(study, ("/home/me",))
    (study / "study.json").write_text(" " * 300_000)
    with pytest.raises(SystemExit, match="300,000 B"):
        require_fit(study, ("/home/me",))


@pytest.mark.parametrize("example", STUDIES, ids=lambda example: example.name)
def test_the_commands_are_ones_that_mpsearch_takes(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in example.words:
        if word.startswith(("images/", "weights/")):
            Path(word).parent.mkdir(exist_ok=True)
            Path(word).touch()
    Path("examples").symlink_to(ROOT / "examples")
    group = typer.main.get_command(app)
    program, command, *words = shlex.split(example.command)
    assert (program, command) == ("mpsearch", "run")
    with group.commands["run"].make_context("run", words) as context:
        assert context.params["name"] == example.name
        assert context.params["budget"] == [example.words[1]]
