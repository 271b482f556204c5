"""The studies of studies/examples/ are what they say: whole, small, from no particular machine, within their budgets, and
read by the commands that studies/README.md shows.
"""

import json
import re
import shlex
import shutil
import tomllib
from html.parser import HTMLParser

import jsonschema
import pytest
from doc_blocks import blocks, commands
from doc_place import run_command

from mpsearch.problem import Budget, read_assignment
from mpsearch.report.saved import read_saved
from scripts.make_studies import DATA, EXAMPLES, MOST, POINTS, ROOT, STUDIES, TEXTS

NAMES = [example.name for example in STUDIES]
KEPT = {*TEXTS, *DATA, "front.json", "front.csv", "report.html"}
README = ROOT / "studies" / "README.md"
PLACES = re.compile(r"(?<![\w.:/-])(?:/(?:home|root|tmp|work|Users|mnt|opt|var)\b|[A-Z]:\\)")
"""Where the paths of a machine begin."""
SHOWN = [words for b in blocks(README) if b.language == "bash" for words in commands(b)]


@pytest.fixture(params=NAMES)
def study(request):
    return EXAMPLES / request.param


def test_there_are_those_that_the_script_makes_and_no_others():
    assert sorted(path.name for path in EXAMPLES.iterdir()) == sorted(NAMES)
    assert all(f"(examples/{name}/report.html)" in README.read_text() for name in NAMES)


def test_it_is_whole_and_small(study):
    files = {path.relative_to(study).as_posix(): path for path in study.rglob("*") if path.is_file()}
    assert set(files) == KEPT
    assert sum(path.stat().st_size for path in files.values()) <= MOST


def test_it_names_no_path_of_a_machine(study):
    for path in study.rglob("*.*"):
        if path.is_file():
            assert not PLACES.findall(path.read_text()), path


def test_its_settings_are_those_of_the_command(study):
    (example,) = (example for example in STUDIES if example.name == study.name)
    settings = tomllib.loads((study / "config.toml").read_text())
    typed = dict(zip(example.words[::2], example.words[1::2], strict=True))
    assert settings["budget"] == [typed["--budget"]] and settings["name"] == study.name
    assert settings.get("model") == typed.get("--model")
    assert settings["effort"] == "balanced"
    assert f"mpsearch run --budget {typed['--budget']}" in README.read_text()


def test_its_numbers_belong_together_and_keep_the_budget(study):
    saved = read_saved(study)
    best = saved.best
    assignment = saved.problem.assignment(best["indices"])
    assert best["assignment"] == assignment.to_json()
    for budget in saved.budgets:
        spent = budget.spent(best["measured"])
        assert spent is not None and spent <= budget.limit
    document = json.loads((study / "artifact" / "assignment.json").read_text())
    jsonschema.validate(document, json.loads((ROOT / "docs" / "assignment.schema.json").read_text()))
    assert read_assignment(study / "artifact" / "assignment.csv").to_json() == assignment.to_json()
    points = saved.front["points"]
    assert 2 <= len(points) <= POINTS
    for point in points:
        assert saved.problem.cost(point["indices"]).to_json() == pytest.approx(point["predicted"])
        score = saved.problem.score(saved.front["objective"], point["indices"])
        assert score == pytest.approx(point["score"], rel=1e-6)


def test_it_is_solved_for_another_budget(study):
    saved = read_saved(study)
    limit = int(0.9 * saved.best["predicted"]["size_bytes"])
    found = json.loads(run_command(["solve", str(study), "--budget", f"{limit}B", "--format", "json"]))
    assert set(found["assignment"]) == set(saved.best["assignment"])
    indices = [
        next(i for i, candidate in enumerate(row) if str(candidate) == found["assignment"][layer.name])
        for layer, row in zip(saved.problem.layers, saved.problem.candidates, strict=True)
    ]
    assert Budget.parse(f"{limit}B").limit >= saved.problem.cost(indices).size_bytes


class Page(HTMLParser):
    """Scripts of a page, by where they are from, and whether its elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.ids, self.last = [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.ids += [held["id"]] if "id" in held else []
        self.sources += [held["src"]] if tag == "script" and "src" in held else []

    def handle_endtag(self, tag):
        self.last = tag


def test_its_report_opens(study, tmp_path):
    text = (study / "report.html").read_text()
    page = Page(text)
    (source,) = page.sources
    assert source.startswith("https://cdn.plot.ly/plotly-") and page.last == "html"
    data = re.search(r'<script[^>]*id="study"[^>]*>(.*?)</script>', text, re.S)[1]
    saved = read_saved(study)
    assert len(json.loads(data)["layers"]) == len(saved.problem.layers)
    assert saved.budgets[0].text in text and saved.best["label"] in text
    shutil.copytree(study, tmp_path / study.name)
    run_command(["report", str(tmp_path / study.name)])
    whole = Page((tmp_path / study.name / "report.html").read_text())
    assert not whole.sources and set(whole.ids) == set(page.ids)


@pytest.mark.parametrize("words", SHOWN, ids=shlex.join)
def test_the_commands_of_the_readme(words, tmp_path, monkeypatch):
    (tmp_path / "studies").mkdir()
    shutil.copytree(EXAMPLES, tmp_path / "studies" / "examples")
    monkeypatch.chdir(tmp_path)
    assert words[0] == "mpsearch" and run_command(words[1:]).strip()
