"""Engines' inputs are written here, built and timed there (by a stand-in for trtexec), and read again: a table, a run
with it, and what was chosen timed in its turn.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fake_trtexec
import pytest
from typer.testing import CliRunner

from mpsearch.cli import app
from mpsearch.errors import OptionError
from mpsearch.hardware.trtexec import read_builds, read_manifest, read_predictions
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.engines import planned_builds, write_engines
from mpsearch.pipeline.progress import Silent

HELPERS = Path(__file__).parents[1] / "helpers"
CHEAP = {"trials": 2, "polish": 0, "search_states": "nearest", "method": "nearest", "objectives": ("sketch",)}


def build(folder):
    """Do what build.sh says with the stand-in, here: a process for each engine would take seconds."""
    calls = [line for line in (folder / "build.sh").read_text().splitlines() if line.startswith("if trtexec")]
    for call in calls:
        arguments = shlex.split(call.partition(" > ")[0])[2:]
        fake_trtexec.main(arguments, folder)
    return len(calls)


def run_script(folder, tmp_path):
    """Run build.sh itself with the stand-in in the path."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "trtexec").write_text(f'#!/bin/sh\nexec {sys.executable} {HELPERS / "fake_trtexec.py"} "$@"\n')
    (tools / "trtexec").chmod(0o755)
    found = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(HELPERS)}
    done = subprocess.run(
        ["sh", str(folder / "build.sh")],
        env={**os.environ, **found},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout == "model: built and timed\n", done.stderr


@pytest.fixture(scope="module")
def written(place, tmp_path_factory):
    """`profile --target tensorrt --write`, built, and read into a table."""
    tmp = tmp_path_factory.mktemp("engines")
    folder, tables = tmp / "inputs", tmp / "tables"
    about = ["--model", f"{place / 'nets.py'}:make", "--data", str(place / "images.npz")]
    asked = [
        "profile",
        "--target",
        "tensorrt",
        "--write",
        str(folder),
        "--models",
        "11",
        "--batch",
        "4",
        *about,
    ]
    result = CliRunner().invoke(app, [*asked, "--format", "json"])
    assert result.exit_code == 0, result.output
    assert build(folder) == 11
    read = CliRunner().invoke(
        app, ["profile", "--from", f"trtexec:{folder}", "--tables", str(tables), "--format", "json"]
    )
    assert read.exit_code == 0, read.output
    return tmp, folder, next(tables.glob("*.csv")), json.loads(result.stdout), read


def test_uniform_and_mixed_engines_are_written_with_one_script(written):
    _, folder, _, rows, _ = written
    assert [row["build"] for row in rows[:3]] == ["float", "int8", "int8-units"] and len(rows) == 11
    network, batch = read_manifest(folder)
    assert (
        batch == 4 and set(network.asked) == {row["build"] for row in rows} and not read_predictions(folder)
    )
    tensors = [i for i, layer in enumerate(network.layers) if not layer.weight_shape]
    assert [network.layers[i].name for i in tensors] == ["stem.output", "down.output"]
    assert {network.asked["int8"][i] for i in tensors} == {"W8A8"}
    assert {network.asked["int8-units"][i] for i in tensors} == {"float"}
    assert len(set(network.asked.values())) == 11


def test_every_unit_is_found_again_by_its_name_and_its_precision(written):
    _, folder, _, _, read = written
    network, _ = read_manifest(folder)
    for built in read_builds(folder):
        names = {n for layer in built.layers for n in layer.nodes}
        assert {layer.name for layer in network.layers if layer.weight_shape} <= names
    assert "Whole engines are predicted within" in read.stderr
    for row in json.loads(read.stdout):
        assert float(row["predicted_ms"]) == pytest.approx(float(row["median_ms"]), rel=0.1)


def test_what_a_run_has_chosen_is_timed_and_compared(written, settings, tmp_path):
    tmp, _, table, *_ = written
    config = settings(budgets=("55us",), target="tensorrt", table=str(table), **CHEAP)
    best = run(config, Study(tmp_path / "study"))["best"]
    artifact = tmp_path / "study" / "artifact"
    assert read_predictions(artifact) == {"model": pytest.approx(best["predicted"]["latency_us"])}
    run_script(artifact, tmp)
    result = CliRunner().invoke(
        app, ["profile", "--from", f"trtexec:{artifact}", "--tables", str(table.parent)]
    )
    assert result.exit_code == 0, result.output
    said = re.search(r"model takes (\S+) ms; (\S+) ms were predicted", " ".join(result.stderr.split()))
    assert said is not None
    assert 1e3 * float(said[2]) == pytest.approx(best["predicted"]["latency_us"], abs=1)
    again = run(replace(config, budgets=("200us",)), Study(tmp_path / "again"))["best"]
    assert again["measured"].get("latency_us", 0) <= 200


def test_too_few_engines_and_foreign_folders_are_refused(settings, tmp_path):
    config = settings(target="tensorrt", budgets=("8bits",))
    with pytest.raises(OptionError, match=r"3 uniform engines and 8 mixed ones are needed"):
        write_engines(config, tmp_path / "a", Silent(), count=5)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"holds other files"):
        write_engines(config, tmp_path, Silent())
    for asked in (["--target", "tensorrt"], ["--write", str(tmp_path / "b")]):
        result = CliRunner().invoke(app, ["profile", "--model", "m.py:f", "--data", "digits", *asked])
        assert isinstance(result.exception, OptionError) and "go together" in str(result.exception)


def test_tied_units_share_their_kernel_in_every_build(written):
    network, _ = read_manifest(written[1])
    ties = [[0, 1], *([i] for i in range(2, len(network.layers)))]
    for kernels in planned_builds(network.layers, ties, 16, 0).values():
        assert kernels[0] == kernels[1]
