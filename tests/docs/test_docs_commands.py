"""Every command of the README and the documentation, through the parser of the program that it calls."""

import contextlib
import re
import tomllib
from pathlib import Path

import pytest
import typer
from doc_blocks import COMMANDS, DATA, PAGES, ROOT, all_blocks, commands

from mpsearch.cli import app
from mpsearch.cli import run as run_command
from mpsearch.objectives import OBJECTIVES
from mpsearch.presets import PRESETS

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SHELL = {"cd", "git", "ls", "head", "mkdir", "bash", "pytest", "mkdocs", "pre-commit", "scripts/check"}
"""Programs that are not ours; their options are not looked at."""
FILES = (
    "my_model.py",
    "my_data.py",
    "my_task.py",
    "my_metric.py",
    "classes.json",
    "bit_config.py",
    "assignment.json",
)
TYPED = [(block, words) for block in all_blocks() if block.language in COMMANDS for words in commands(block)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder where the names that the pages use are there, and empty."""
    monkeypatch.chdir(tmp_path)
    for name in (*FILES, "val.npz", "test.npz", "train.zip", "w.safetensors", "resnet50.safetensors"):
        Path(name).touch()
    for name in ("mine.safetensors", "mine.pt", "cifar10_resnet20.safetensors", "cifar10_png_subset.npz"):
        Path(name).touch()
    for name in ("images/val", "images/train", "images/unseen", "studies/default-15MB", "engines"):
        Path(name).mkdir(parents=True)
    Path("examples").symlink_to(ROOT / "examples")
    for block in all_blocks():
        if block.title and block.language in DATA:  # a file of settings is read while options are
            Path(block.title).write_text(block.text)
    return tmp_path


def test_every_fence_says_what_it_is():
    unknown = {str(b): b.language for b in all_blocks() if b.language not in (*COMMANDS, *DATA, "python")}
    assert not unknown


def test_what_is_not_run_has_a_reason_that_is_about_the_place():
    reasons = [b.reason for b in all_blocks() if b.reason]
    assert reasons and all(reason.startswith("needs ") for reason in reasons)
    said = sum(path.read_text().count("\n<!-- not run") for path in PAGES)
    assert said == len(reasons)  # each stands right above a block


@pytest.mark.parametrize(("block", "words"), TYPED, ids=lambda x: str(x) if not isinstance(x, list) else x[0])
def test_a_command_is_one_that_its_program_takes(block, words, place, monkeypatch):
    program, *rest = words
    if program == "mpsearch":
        _parse(rest, monkeypatch)
    elif program == "python":
        _require_script(rest[0])
    elif program == "pip":
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            assert set(extra.replace("NAME", "test").split(",")) <= set(EXTRAS), extra
    else:
        assert program in SHELL


def _parse(words, monkeypatch):
    """Through click, and for `run` through all checks of its settings too; nothing is carried out."""
    group = typer.main.get_command(app)
    if words[0].startswith("--"):
        with contextlib.suppress(typer.Exit), group.make_context("mpsearch", list(words)):
            pass
        return
    with group.make_context("mpsearch", list(words), resilient_parsing=False) as context:
        name, command, rest = group.resolve_command(context, list(words))
        with command.make_context(name, rest, parent=context) as parsed:
            if name == "run" and parsed.params["resume"] is None:
                _settle(parsed, monkeypatch)


def _settle(context, monkeypatch):
    held = []
    for way in ("_finish", "_print_plan"):
        monkeypatch.setattr(run_command, way, lambda config, *_: held.append(config))
    if "weight_peak" in str(context.params["objective"]):  # CONTRIBUTING's own example
        monkeypatch.setitem(OBJECTIVES._members, "weight_peak", _weight_peak())
    context.command.invoke(context)
    assert held


def _weight_peak():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class WeightPeak(OBJECTIVES.get("weight_mse")):
        power: float = 2.0

    return WeightPeak


def _require_script(name):
    """A script of the repository, or one that a page of the documentation holds."""
    titles = {b.title for b in all_blocks() if b.title}
    assert name in titles or (ROOT / name).is_file() or name in ("-m", "-c"), name


def test_a_renamed_option_would_be_found(place, monkeypatch):
    with pytest.raises(Exception, match="No such option"):
        _parse(["solve", "studies/default-15MB", "--bugdet", "5bits"], monkeypatch)


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_of_presets_says_what_they_are(name):
    page = (ROOT / "docs" / "presets.md").read_text()
    assert f"## {name}\n" in page and f"```text\n{PRESETS[name].typed()}\n```" in page


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 110
