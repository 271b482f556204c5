"""A package from outside adds an objective: installed, found by its entry point, and held to the contract."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mpsearch.errors import UnknownNameError
from mpsearch.objectives import OBJECTIVES

SOURCE = Path(__file__).parent / "mpsearch_spread"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder it was installed in, from a copy, because a build leaves files beside the source; nothing is
    downloaded.
    """
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    done = subprocess.run(
        [*pip, "--target", str(folder / "target"), str(source)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "target" / "mpsearch_spread.py").is_file()
    return folder / "target"


def _run(arguments, path):
    """A process of its own: the registry of this one must not see the package."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=240,
    )


LIST = (
    "-c",
    (
        "from mpsearch.objectives import OBJECTIVES as o; print(*o.names()); "
        "print(o.create('weight_spread:power=3'))"
    ),
)


def test_it_is_found_by_its_entry_point_and_takes_options(installed):
    done = _run(LIST, installed)
    assert done.returncode == 0, done.stderr
    names, member = done.stdout.splitlines()
    assert "weight_spread" in names.split() and "weight_mse" in names.split()
    assert member == "WeightSpread(power=3.0)"


def test_without_the_package_the_name_is_unknown():
    with pytest.raises(UnknownNameError, match="No objective is called 'weight_spread'"):
        OBJECTIVES.create("weight_spread")


def test_it_keeps_the_contract_of_every_objective(installed, tmp_path):
    suite = shutil.copy(
        SOURCE / "contract.py", tmp_path / "contract.py"
    )  # away from this repository's settings
    done = _run(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(suite)], installed
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "failed" not in done.stdout and "skipped" not in done.stdout


def test_a_package_that_breaks_the_contract_is_caught(installed, tmp_path):
    broken = shutil.copytree(installed, tmp_path / "broken")
    module = broken / "mpsearch_spread.py"
    module.write_text(
        module.read_text().replace("0.0 if c.w_bits is None else", "1.0 if c.w_bits is None else")
    )
    suite = shutil.copy(SOURCE / "contract.py", tmp_path / "contract.py")
    check = "test_finite_not_negative_float_is_zero"
    done = _run(
        [
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            f"{suite}::TestWeightSpread::{check}",
        ],
        broken,
    )
    assert done.returncode == 1
    assert "a float candidate has damage" in done.stdout
