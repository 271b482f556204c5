"""Help with examples, groups of options, settings in a file, completion, doctor, dashboard, --dry-run, --quiet."""

import json
import os
import shlex
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import typer

from mpsearch.cli import app, doctor
from mpsearch.cli._config_file import config_text
from mpsearch.cli._reading import config_of
from mpsearch.errors import OptionError, UnknownNameError
from mpsearch.study.sharing.journal import open_journal

COMMANDS = typer.main.get_command(app).commands
ROOT = Path(__file__).parents[2]


def context_of(name, *arguments):
    return COMMANDS[name].make_context(name, list(arguments))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_it_can_read(name):
    command = COMMANDS[name]
    head, *examples = [line.strip() for line in command.epilog.split("\n\n")]
    assert head == "Examples:" and examples
    flags = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    for example in examples:
        words = shlex.split(example)
        if words[0] == "mpsearch":
            assert words[1] == name
            assert {word for word in words if word.startswith("--")} <= flags, example
    assert {"--quiet", "-q", "--verbose", "-v"} <= flags


def test_help_is_also_h_and_shows_groups_with_the_usual_options_first(call):
    code, out, _ = call("run", "-h")
    assert code == 0 and "Examples:" in out
    order = [
        "─ Options",
        "--preset",
        "--budget",
        "--model",
        "─ Model",
        "─ Bits and grids",
        "─ Search",
        "─ Finish",
    ]
    places = [out.index(text) for text in order]
    assert places == sorted(places)


def test_settings_are_read_from_a_file_below_what_is_typed(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'budget = "15MB"\nbits = [2, 4, 8]\ncalibration_images = 64\nallow-estimate = true\nseed = 3\n'
        'input-size = [3, 32, 32]\nfix = ["a=W8A8", "b=float"]\n[model-arg]\nnum_classes = 10\n'
    )
    context = context_of("run", str(file), "--seed", "5")
    given = context.params
    assert (list(given["budget"]), list(given["bits"]), given["calibration_images"]) == (
        ["15MB"],
        ["2,4,8"],
        64,
    )
    assert given["allow_estimate"] and given["seed"] == 5 and given["input_size"] == "3,32,32"
    assert list(given["fix"]) == ["a=W8A8", "b=float"] and list(given["model_arg"]) == ["num_classes=10"]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("bugdet = '15MB'", UnknownNameError, "Did you mean 'budget'?"),
        ("resume = 'studies/x'", UnknownNameError, "resume"),
        ("allow-estimate = 1", OptionError, "must be true or false"),
        ("seed = true", OptionError, "must be a text, a number, or a list"),
        ("[fix]\na = 'W8A8'", OptionError, "must be a text, a number, or a list"),
    ],
)
def test_a_setting_that_is_none_is_refused(tmp_path, text, error, words):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(error, match=words.replace("?", r"\?")):
        context_of("run", str(tmp_path / "mine.toml"))


def test_the_settings_of_a_study_are_a_file_that_gives_them_again(tmp_path):
    typed = [
        "--budget",
        "15MB",
        "--budget",
        "20GBOPs",
        "--bits",
        "2..6,float",
        "--bits",
        "fc=4..8",
        "--a-bits",
    ]
    typed += ["4..8", "--fix", "conv1=W8A8", "--model", "resnet18", "--random-weights", "--data", "digits"]
    typed += [
        "--model-arg",
        "num_classes=10",
        "--model-arg",
        "act=relu",
        "--mean",
        "0.5,0.5,0.25",
        "--trials",
        "3",
    ]
    typed += ["--no-bias-correction", "--objective", "fisher:images=8"]

    def read(*arguments):
        context = context_of("run", *arguments)
        given = context.params
        return config_of(context, budgets=tuple(given["budget"]), objectives=tuple(given["objective"]))

    config = read(*typed)
    (tmp_path / "config.toml").write_text(config_text(config, "x", workers=2))
    assert read(str(tmp_path / "config.toml")) == config
    assert context_of("run", str(tmp_path / "config.toml")).params["workers"] == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(call, shell):
    code, out, _ = call("completion", shell)
    assert code == 0 and f"_MPSEARCH_COMPLETE=complete_{shell}" in out


def test_a_shell_that_asks_is_told_the_commands():
    asked = {"_MPSEARCH_COMPLETE": "complete_bash", "COMP_WORDS": "mpsearch so", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['mpsearch']; from mpsearch.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert ran.stdout.split() == ["solve"], ran.stderr


def test_doctor_tells_versions_devices_extras_and_speed(call):
    code, out, said = call("doctor", "--format", "json")
    rows = json.loads(out)
    found = {row["what"]: row["found"] for row in rows}
    assert code == 0 and {row["about"] for row in rows} == {
        "versions",
        "device",
        "measured here",
        "extras",
        "speed",
    }
    assert found["torch"][0].isdigit() and found["size, bit operations"].startswith("yes")
    assert float(found["float32 products"].split()[0]) > 0
    assert "mpsearch run --budget 15MB" in said


def test_doctor_knows_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"test", "docs"}


def test_dashboard_is_refused_without_its_package_and_shows_the_last_journal(call, tmp_path, monkeypatch):
    study = tmp_path / "mine"
    study.mkdir()
    (study / "study.json").write_text("{}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    code, _, said = call("dashboard", str(study))
    assert code == 2 and "pip install 'mpsearch[dashboard]'" in said
    monkeypatch.undo()
    shown = []
    fake = types.ModuleType("optuna_dashboard")
    fake.run_server = lambda storage, host, port: shown.append((storage.get_all_studies(), host, port))
    fake.__spec__ = types.SimpleNamespace(name="optuna_dashboard")
    monkeypatch.setitem(sys.modules, "optuna_dashboard", fake)
    code, _, said = call("dashboard", str(study))
    assert code == 2 and "no trial was measured in it yet" in said
    with open_journal(study / "optuna-1.log") as storage:
        storage.get_all_studies()
    (study / "optuna-1.log").touch()
    code, _, said = call("dashboard", str(study), "--port", "9000")
    assert (code, shown) == (0, [([], "127.0.0.1", 9000)]) and "http://127.0.0.1:9000" in said


def test_quiet_says_errors_alone_and_verbose_shows_where_they_come_from(call, tmp_path):
    code, out, said = call("doctor", "--quiet", "--format", "csv")
    assert code == 0 and out.startswith("about,what,found") and said == ""
    code, _, said = call("report", str(tmp_path), "--quiet")
    assert code == 2 and "There is no study" in said and "Traceback" not in said
    code, _, said = call("report", str(tmp_path), "-v")
    assert code == 2 and "Traceback" in said and "There is no study" in said
