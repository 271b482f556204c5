"""The command line from the outside: exit codes, one clear error each, and results on stdout alone."""

import importlib
import json
import pkgutil
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mpsearch
from mpsearch.cli import lists
from mpsearch.cli._run_print import _in_new_processes
from mpsearch.hardware import BACKENDS, LatencyTable
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.members import PLACES, aliases_at, names_at
from mpsearch.problem import Budget
from mpsearch.registry import Registry

FACTORY = """
from torch import nn
def net():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    model.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "interpolation": "bilinear"}
    return model
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, weights and images, and the arguments that name them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(textwrap.dedent(FACTORY))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(
        tmp_path / "images.npz",
        x_train=images[:40],
        y_train=np.arange(40) % 4,
        x_test=images[40:],
        y_test=np.arange(20) % 4,
    )
    scope = {}
    exec(FACTORY, scope)
    torch.manual_seed(0)
    save_file(scope["net"]().state_dict(), tmp_path / "weights.safetensors")
    return tmp_path


SETTINGS = [
    "--model",
    "net.py:net",
    "--weights",
    "weights.safetensors",
    "--data",
    "images.npz",
    "--calibration-images",
    "16",
    "--search-images",
    "8",
]
QUICK = [*SETTINGS, "--trials", "6", "--iterations", "5"]


def refused(result, code, *texts):
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    message = " ".join(result.err.split())
    for text in texts:
        assert text in message


def test_run_keeps_the_budget_and_prints_json_alone_on_stdout(place, call):
    result = call("run", "--budget", "5bits", *QUICK, "--format", "json")
    assert result.code == 0, result.err
    best = json.loads(result.out)["best"]
    study = place / "studies" / "net-5bits"
    written = (study / "artifact" / "model.onnx").stat().st_size
    assert (
        written
        == best["predicted"]["size_bytes"]
        == best["measured"]["size_bytes"]
        <= best["budgets"][0]["limit"]
    )
    assert (study / "report.html").stat().st_size > 100_000
    assert {"front.csv", "front.json", "best.json", "problem.json", "study.json"} <= {
        p.name for p in study.iterdir()
    }
    said = tomllib.loads((study / "config.toml").read_text())
    assert (said["budget"], said["name"], said["trials"]) == (["5bits"], "net-5bits", 6)
    again = call("run", "--resume", str(study), "--format", "json")
    assert again.code == 0
    assert json.loads(again.out)["best"]["assignment"] == best["assignment"]
    refused(
        call("run", "--resume", str(study), "--trials", "9", "--fix", "7=W8A8"),
        2,
        "--resume goes on",
        "--trials, --fix would change them",
    )
    solved = call("solve", str(study), "--budget", "4bits", "--format", "json")
    assert solved.code == 0, solved.err
    assert set(json.loads(solved.out)["assignment"]) == set(best["assignment"])
    refused(call("run", "--budget", "5bits", *QUICK, "--seed", "3"), 2, "other settings (seed)", "--name")


def test_solve_imports_no_torch(place):
    code = (
        "import sys; from mpsearch.cli import main; sys.argv[1:] = ['solve', 'problem.json', "
        "'--budget', '1kB']; "
    )
    code += "\ntry: main()\nfinally: print('torch' in sys.modules)"
    problem = {
        "schema": 1,
        "layers": [],
        "candidates": [],
        "scores": {"a": []},
        "costs": {"size_bytes": []},
        "constants": {"size_bytes": 10.0},
        "estimated": [],
    }
    (place / "problem.json").write_text(json.dumps(problem))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip().endswith("False"), result.stderr


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--budget", "15MB", "--model", "net.py:net", "--data", "empty"], ["empty"]),
        (["--budget", "15MB", *QUICK, "--objective", "fisher:imagess=3"], ["no option 'imagess=3'"]),
        (["--budget", "15MB", *QUICK, "--bits", "2-99999999999999999999"], ["must be 2 to 8"]),
        (["--budget", "15MB", *QUICK, "--bits", "7=2..99999999999999999999"], ["bits are 2 to 8"]),
        (["--budget", "3mJ", *QUICK], ["3mJ", "energy"]),
        (["--budget", "2ms", *QUICK, "--target", "packed"], ["2ms", "--target ort-cpu"]),
        (["--budget", "1MiB peak", *QUICK, "--target", "packed"], ["1MiB peak", "--target ort-cpu"]),
        (["--budget", "5bits", *QUICK, "--sampler", "tpe", "--workers", "2"], ["--sampler tpe", "--workers"]),
        (
            ["--budget", "5bits", *QUICK, "--target", "torchao"],
            ["--target torchao is written but not measured", "--target ort-cpu", "mpsearch export"],
        ),
        (["--budget", "5bits", *QUICK, "--name", "file"], ["studies/file cannot be a study's folder"]),
        (["--resume", "net.py"], ["There is no study in net.py"]),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(place, call, arguments, texts):
    (place / "empty").mkdir()
    (place / "studies").mkdir()
    (place / "studies" / "file").touch()
    refused(call("run", *arguments), 2, *texts)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "images.npz", "--calibration-data", "nothere"], "There is no nothere"),
        (["--data", "empty.zip"], "empty.zip"),
        (["--data", "images.npz", "--table", "nothere.csv"], "There is no latency table nothere.csv"),
        (["--data", "images.npz", "--table", "."], "There is no latency table ."),
        (["--data", "images.npz", "--tables", "net.py/tables"], "net.py is a file"),
    ],
)
def test_a_path_that_is_not_there_is_told_before_a_download(place, call, monkeypatch, arguments, text):
    with zipfile.ZipFile(place / "empty.zip", "w"):
        pass
    monkeypatch.setattr(
        "timm.create_model", lambda *_, **__: pytest.fail("the model was built, or its weights downloaded")
    )
    refused(call("run", "--budget", "5bits", "--model", "resnet18", *arguments), 2, text)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ("nothere.safetensors", "There is no weights file"),
        ("images.npz", "not a safetensors file"),
        (".", "no weights"),
    ],
)
def test_weights_that_cannot_be_read_are_told_before_the_model_is_built(
    place, call, monkeypatch, weights, text
):
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("the model was built"))
    refused(
        call("run", "--budget", "5bits", "--model", "resnet18", "--data", "images.npz", "--weights", weights),
        2,
        text,
    )


def test_weights_without_a_model_are_not_passed_over(place, call):
    refused(
        call("run", "--budget", "15MB", "--weights", "weights.safetensors"),
        2,
        "--weights is given without --model",
    )
    refused(
        call("run", "--budget", "15MB", "--model-arg", "num_classes=3"),
        2,
        "--model-arg is given without --model",
    )


def test_nan_weights_are_refused_by_name(place, call):
    scope = {}
    exec(FACTORY, scope)
    weights = scope["net"]().state_dict()
    weights["3.weight"][0] = float("nan")
    save_file(weights, place / "weights.safetensors")
    refused(call("run", "--budget", "5bits", *QUICK), 2, "NaN", "'3.weight'")


def test_a_budget_below_the_least_size_exits_with_3_and_names_it(place, call):
    refused(call("run", "--budget", "100B", *QUICK), 3, "below the least reachable")
    assert not list((place / "studies" / "net-100B").glob("steps/score-*"))


def test_a_table_of_another_device_is_refused(place, call):
    backend = BACKENDS.create("ort-cpu")
    other = DeviceIdentity("Imaginary 9000", "x86_64", 64, ("avx2",), "Linux")
    path = LatencyTable(other, backend.name, backend.version, 1).save(place / "elsewhere")
    refused(
        call("run", "--budget", "5bits", *QUICK, "--table", str(path)),
        2,
        "Imaginary 9000",
        "--allow-estimate",
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["worker", "--study", "x", "--wait", "-1"], "--wait is -1"),
        (["bench", "x", "--seconds", "nan"], "seconds is nan"),
        (["eval", "x", "--data", "images.npz", "--threads", "0"], "threads is 0"),
        (["solve", "x", "--budget", "5kB", "--resource", "bops"], "--resource goes with"),
        (["solve", "x", "--budget", "5kB", "--minimize", "latency"], "--minimize goes with --max-drop"),
        (["score", *SETTINGS, "--name", "/x"], "--name '/x' leads out of studies/"),
    ],
)
def test_what_would_be_passed_over_or_never_end_is_refused(place, call, arguments, text):
    refused(call(*arguments), 2, text)


def test_the_version_is_told(call):
    assert call("--version").out == f"mpsearch {mpsearch.__version__}\n"


def test_list_names_the_members(call):
    result = call("list", "objectives")
    assert {"coding_length", "output_mse", "weight_mse", "fisher", "kl"} <= set(result.out.split())
    refused(call("list", "fruit"), 2, "There is no list of 'fruit'")
    refused(call("list", "models", "zzz*"), 2, "No timm model is called 'zzz*'")


def test_every_registry_can_be_listed(call):
    known = set()
    for module in pkgutil.walk_packages(mpsearch.__path__, "mpsearch."):
        if module.name.rpartition(".")[2] in ("_base", "backend", "methods"):
            known |= {
                id(value)
                for value in vars(importlib.import_module(module.name)).values()
                if isinstance(value, Registry)
            }
    listed = {id(getattr(importlib.import_module(place.module), place.constant)) for place in PLACES.values()}
    for place in PLACES.values():
        registry = getattr(importlib.import_module(place.module), place.constant)
        own = [name for name in registry.names() if registry.get(name).__module__.startswith("mpsearch.")]
        assert [n for n in names_at(place) if n in own] == own  # others come by entry points, or from tests
        assert list(aliases_at(place)) == [*registry.aliases()]
        assert place.group == registry.package
    assert len(known) == 7 and listed == known
    for what in ("observers", "roundings"):  # no option takes a name of them
        refused(call("list", what), 2, f"There is no list of {what!r}")
    for what in lists.WHAT:
        assert call("list", what).out.strip()
    measured = {line.split()[0] for line in call("list", "targets").out.splitlines() if "run, export" in line}
    assert measured == {
        "ort-cpu",
        "onnx",
        "openvino",
        "openvino-cpu",
        "openvino-cpu-bf16",
        "triton-cuda",
        "tensorrt",
        "onnx-tensorrt",
        "packed",
    }
    assert set(call("list", "tasks").out.split()) >= {"classification", "embedding", "span"}
    assert call("list", "samplers").out.split() == ["greedy_mp", "mpsearch", "nsga2", "random", "tpe"]


def test_a_task_is_compared_as_it_says(place, call):
    result = call(
        "run",
        "--budget",
        "5bits",
        *QUICK,
        "--target",
        "packed",
        "--objective",
        "weight_mse",
        "--task",
        "embedding",
        "--format",
        "json",
    )
    assert result.code == 0, result.err
    metrics = json.loads(result.out)["best"]["metrics"]
    assert metrics["top1"] is None and 0.5 < metrics["scores"]["cosine"] <= 1


def test_profile_measures_the_kernels_of_a_target(place, call, monkeypatch):
    asked = []

    def measured(config, progress, at_most, models):
        asked.append((config.target, at_most, models))
        backend = config.deployment.backend()
        return LatencyTable(
            DeviceIdentity("Imaginary", "x86_64", 1, (), "Linux"), backend.name, "1", 1
        ), place / "t.csv"

    monkeypatch.setattr("mpsearch.pipeline.profile_model", measured)
    assert (
        call(
            "profile", *SETTINGS[:2], "--data", "images.npz", "--target", "openvino-cpu", "--at-most", "2"
        ).code
        == 0
    )
    assert asked == [("openvino-cpu", 2, 0)]
    refused(call("profile", *SETTINGS[:2], "--data", "images.npz", "--models", "-1"), 2, "--models is -1")
    refused(call("profile", *SETTINGS[:2], "--data", "images.npz", "--at-most", "-1"), 2, "--at-most is -1")
    refused(call("profile", *SETTINGS[:2], "--data", "images.npz", "--target", "packed"), 2, "has no runtime")


def test_what_new_processes_took_is_told():
    best = {
        "artifact": {
            "latency": {
                "latency_readings_us": [2400.0, 2300.0, 2350.0],
                "latency_high_us": 2480.0,
                "latency_high_share": 0.95,
            }
        }
    }
    said = _in_new_processes(Budget.parse("2.5ms"), best)
    assert said == " in 3 new processes (2.300 ms to 2.400 ms); 95% of further ones stay below 2.480 ms"
    assert (
        _in_new_processes(Budget.parse("15MB"), best)
        == _in_new_processes(Budget.parse("2.5ms"), {"artifact": {}})
        == ""
    )


def test_class_folders_are_never_shifted(place, call):
    pixels = np.load(place / "images.npz")["x_train"]
    for k, name in enumerate(("k9", "k10", "k11", "k12")):
        (place / "folders" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(pixels[10 * k + i]).save(place / "folders" / name / f"{i}.png")
    asked = [
        "run",
        "--budget",
        "5bits",
        "--model",
        "net.py:net",
        "--data",
        "folders",
        "--trials",
        "2",
        "--polish",
        "0",
    ]
    asked += ["--iterations", "0", "--target", "packed", "--objective", "weight_mse"]
    refused(call(*asked), 2, "stand in another order", "--class-map FILE")
    (place / "classes.csv").write_text("k9,0\nk10,1\nk11,2\nk12,3\n")
    result = call(*asked, "--class-map", "classes.csv")
    assert result.code == 0, result.err
    assert (
        "folders has few images: 20 calibrate, 10 judge bit-widths, 10 are for what is reported"
        in " ".join(result.err.split())
    )
    shutil.rmtree(place / "folders" / "k9")
    refused(
        call(*asked, "--name", "y"),
        2,
        "folders has 3 class folders and the model 4 classes",
        "--class-map FILE",
    )
    (place / "classes.csv").write_text("k10,1\nk11,2\nk12,7\n")
    refused(
        call(*asked, "--class-map", "classes.csv", "--name", "x"),
        2,
        "'k12' has the label 7; the model has 4 classes, 0 to 3",
    )


def test_labels_the_model_has_no_output_for_are_told_with_file_label_and_classes(place, call):
    with np.load(place / "images.npz") as arrays:
        np.savez(place / "odd.npz", x=arrays["x_train"], y=np.arange(40) % 9 + 2)
    refused(
        call("run", "--budget", "5bits", "--model", "net.py:net", "--data", "odd.npz"),
        2,
        "odd.npz[x], image 2 has the label 4",
        "4 classes, 0 to 3",
    )
    assert not (place / "studies").exists()


def test_flags_are_named_as_they_are_typed(place, call):
    for flag, value in (
        ("--trials", "-3"),
        ("--search-images", "0"),
        ("--first-last-bits", "1"),
        ("--reconstruction-memory", "3ms"),
        ("--workers", "-1"),
    ):
        refused(call("run", "--budget", "5bits", *SETTINGS, f"{flag}={value}"), 2, f"Error: {flag} is ")
    refused(
        call("run", "--budget", "5bits", *SETTINGS[:6], "--calibration-images", "50"),
        2,
        "Lower --calibration-images, --search-images or --evaluation-images",
    )
