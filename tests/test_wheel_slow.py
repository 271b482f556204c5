"""The built wheel, installed where no source tree is, runs a study from end to end: only with -m slow."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from doc_place import MODEL

ROOT = Path(__file__).resolve().parent.parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
WHERE = "import sys, mpsearch; print(mpsearch.__file__); print(*sys.path, sep='\\n')"
USE = """
import sys, torch, mpsearch
model = mpsearch.load(sys.argv[1], model="my_model.py:build")
print(tuple(model(torch.zeros(1, 3, 16, 16)).shape))
"""


def packaged():
    """Files of the package that git knows, from the root."""
    told = subprocess.run(
        ["git", "ls-files", "mpsearch"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(told.stdout.split())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", *sorted(packaged())):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    command = (*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", "./source")
    subprocess.run(command, cwd=folder, check=True)
    (path,) = (folder / "dist").glob("mpsearch-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """`installed(*arguments)`: what Python prints that has the wheel and its requirements, and not the source tree.

    `-S` leaves out the .pth files of site-packages, by which a source tree may be installed.
    """
    target, folder = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    subprocess.run((*PIP, "install", "--no-deps", "--no-index", "--target", target, wheel), check=True)
    places = dict.fromkeys((str(target), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONWARNINGS": "default"}
    (folder / "my_model.py").write_text(MODEL)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (96, 16, 16, 3)).astype(np.uint8)
    np.savez(folder / "val.npz", x=images, y=np.arange(96) % 4)

    def run(*arguments):
        told = subprocess.run(
            [sys.executable, "-S", *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr
        return told.stdout

    run.target, run.folder = target, folder
    return run


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("mpsearch/")}
        metadata = archive.read("mpsearch-0.1.0.dist-info/METADATA").decode()
    assert held == packaged()
    assert {"mpsearch/py.typed", "mpsearch/report/templates/report.html"} <= held
    assert "Requires-Dist: torch" in metadata and "License-File: LICENSE" in metadata


@pytest.mark.slow
def test_the_installed_wheel_runs_a_study_from_end_to_end(installed):
    file, *path = installed("-c", WHERE).splitlines()
    assert Path(file).is_relative_to(installed.target)
    assert not [place for place in path if Path(place or installed.folder).resolve().is_relative_to(ROOT)]
    mpsearch = str(installed.target / "bin" / "mpsearch")
    words = ["run", "--budget", "5bits", "--model", "my_model.py:build", "--random-weights"]
    words += ["--data", "val.npz", "--calibration-images", "24", "--search-images", "24", "--trials", "2"]
    found = json.loads(installed(mpsearch, *words, "--name", "mine", "--format", "json"))
    study = installed.folder / "studies" / "mine"
    size = (study / "artifact" / "model.onnx").stat().st_size
    assert size == found["best"]["measured"]["size_bytes"] <= found["best"]["budgets"][0]["limit"]
    report = (study / "report.html").read_text()
    assert "<style>" in report and "front" in report and "</html>" in report
    assert list((installed.folder / "latency_tables").glob("*__ort-cpu__*.csv"))  # measured where it runs
    solved = json.loads(installed(mpsearch, "solve", "studies/mine", "--budget", "4bits", "--format", "json"))
    assert set(solved["assignment"]) == set(found["best"]["assignment"])
    assert installed("-c", USE, "studies/mine/artifact/model.safetensors").strip() == "(1, 4)"
