"""Presets: recipes in one word, which other options overrule."""

from pathlib import Path

import pytest

from mpsearch.cli import finetune, run
from mpsearch.errors import UnknownNameError
from mpsearch.presets import PRESETS, preset_of

SETTINGS = "--model net.py:net --data images.npz --random-weights"


@pytest.fixture
def settled(monkeypatch, tmp_path):
    """`settled(arguments)`: the settings of a run by the command line, which is not made."""
    from typer.testing import CliRunner

    from mpsearch.cli._app import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("def net(): ...")
    (tmp_path / "images.npz").write_bytes(b"")  # nothing of it is read
    held = []
    monkeypatch.setattr(run, "_finish", lambda config, *_: held.append(config))
    monkeypatch.setattr(finetune, "_finish", lambda _, *asked: held.append(asked[:2]))

    def of(text, command="run"):
        result = CliRunner().invoke(app, [command, *text.split()])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return held[-1]

    return of


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_it_says_that_one_would_type(settled, name):
    preset = PRESETS[name]
    learns = preset.command == "finetune"
    given = "--bits 4 --evaluation-images 9" if learns else "" if preset.without_budget else "--budget 5bits"
    assert settled(f"{given} {SETTINGS} --preset {name}", preset.command) == settled(
        f"{given} {SETTINGS} {preset.typed(given.startswith('--budget'))}", preset.command
    )


def test_an_option_overrules_the_preset(settled):
    found = settled(f"--budget 5bits {SETTINGS} --preset qdrop --iterations 7 --a-bits 8")
    assert (found.method, found.iterations, found.a_bits) == ("qdrop", 7, (8,))


def test_a_budget_takes_the_place_of_the_assignment(settled):
    with_one = settled(f"--budget 5bits {SETTINGS} --preset attention-round")
    assert with_one.assign is None and with_one.bits == (2, 3, 4, 5, 6, 7, 8)
    without = settled(f"{SETTINGS} --preset attention-round")
    assert without.assign == "coding_length" and without.bits == (3, 4, 5, 6) and without.budgets == ()


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="qdrop"):
        preset_of("qdrp")


def test_the_page_has_them_all(pytestconfig):
    page = " ".join(Path(pytestconfig.rootpath / "docs" / "presets.md").read_text().split())
    for name, preset in PRESETS.items():
        assert f"## {name}" in page and preset.about in page and preset.typed() in page
