"""`run --target tensorrt`: searched with a table of engines that were timed elsewhere. ResNet18 by the published A100
table, and a small net whose table is made up here, so that the answer is known.
"""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpsearch.cli import app
from mpsearch.errors import DeviceMismatchError, InfeasibleError, OptionError, TableError
from mpsearch.hardware import LatencyTable
from mpsearch.hardware.rows import ModelRun, Row, row_key
from mpsearch.hardware.trtexec import card_identity
from mpsearch.pipeline import RunConfig, run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.costs import sized_problem
from mpsearch.pipeline.steps.engines import Engines, add_engines
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.network import network_of
from mpsearch.problem import Budget
from mpsearch.report import write_report

ROOT = Path(__file__).parents[2]
A100 = ROOT / "latency_tables" / "published" / "nvidia-a100-80gb-pcie-108c-sm80__tensorrt__unknown.csv"
CHEAP = {
    "trials": 2,
    "polish": 0,
    "search_states": "nearest",
    "method": "nearest",
    "objectives": ("sketch",),
    "calibration_images": 8,
    "search_images": 8,
    "evaluation_images": 16,
}


def engines_of(**more):
    return {**CHEAP, "target": "tensorrt", "allow_estimate": True, **more}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A study of ResNet18 (random weights) by the published table, and its results."""
    config = RunConfig(
        ("0.7ms",),
        model="resnet18",
        data="digits",
        pretrained=False,
        table=str(A100),
        **engines_of(calibration_images=2, search_images=2, evaluation_images=2),
    )
    study = Study(tmp_path_factory.mktemp("published") / "study")
    result = run(config, study)
    write_report(study.path)
    return study.path, result


def test_the_fastest_point_of_the_front_is_the_residual_form(published):
    path, _ = published
    front = json.loads((path / "front.json").read_text())
    assert front["resource"] == "latency_us"
    fastest, *others = front["points"]
    held = {
        layer["name"]: layer["candidates"][i]
        for layer, i in zip(front["layers"], fastest["indices"], strict=True)
    }
    assert [c for name, c in held.items() if name.endswith(".output")] == ["W8A8"] * 10
    assert fastest["latency_us"] == pytest.approx(500, rel=0.02)
    costs, damages = ([point[key] for point in front["points"]] for key in ("latency_us", "score"))
    assert others and costs == sorted(costs) and damages == sorted(damages, reverse=True)


def test_the_plain_engine_is_a_row_and_units_alone_lose_to_it(published):
    rows = {row["label"]: row["predicted"]["latency_us"] for row in published[1]["rows"]}
    assert rows["float (fp16 engine)"] == pytest.approx(862, rel=0.04)
    assert rows["uniform W8A8 at unit inputs alone"] > rows["float (fp16 engine)"] > rows["uniform W8A8"]


def test_every_figure_says_that_the_table_is_published_and_its_batch(published):
    path, result = published
    said = (
        "ESTIMATED by a PUBLISHED table (https://github.com/NVIDIA/TensorRT @93842ac9; NVIDIA A100 80GB PCIe"
    )
    assert result["latencies"].startswith(said) and result["latencies"].endswith("for 32 images in a call")
    assert "latency_us" not in result["best"]["measured"]
    page = (path / "report.html").read_text()
    assert page.count("PUBLISHED table") >= 4  # verdict, table, axes, provenance
    study = json.loads((path / "study.json").read_text())["hardware"]
    assert study["estimated"] and study["published"]["licence"] == "Apache-2.0"


def test_what_is_written_is_the_input_of_the_engine(published):
    artifact = published[0] / "artifact"
    assert {"model.onnx", "build.sh", "builds.json", "model.safetensors"} <= {
        p.name for p in artifact.iterdir()
    }
    assert "--optShapes=x:32x3x224x224" in (artifact / "build.sh").read_text()


def test_an_impossible_budget_tells_the_least(published):
    path, _ = published
    config = replace(Study(path).config(), budgets=("0.3ms",))
    subject = load_subject(config, Silent(), labelled=False)
    table = LatencyTable.load(A100, None, allow_estimate=True)
    engines = Engines(table, A100, network_of(subject))
    with pytest.raises(
        InfeasibleError, match=r"below the least reachable latency, 0.500 ms, ESTIMATED"
    ) as error:
        add_engines(sized_problem(subject, config), [Budget.parse("0.3ms")], config, engines, Silent())
    assert error.value.exit_code == 3


def test_a_published_table_is_refused_unless_estimates_are_welcome(tmp_path):
    config = RunConfig(("1ms",), target="tensorrt", table=str(A100))
    with pytest.raises(DeviceMismatchError, match=r"published by others .*--allow-estimate"):
        run(config, Study(tmp_path / "study"))
    assert not (tmp_path / "study").exists()


def test_without_a_table_it_is_told_how_to_get_one(tmp_path):
    asked = ["run", "--target", "tensorrt", "--budget", "1ms", "--name", "study"]
    result = CliRunner().invoke(app, asked)
    assert isinstance(result.exception, TableError)
    assert "profile --target tensorrt --write DIR" in str(result.exception)
    with pytest.raises(TableError, match=r"table of the backend ort-cpu"):
        other = next((ROOT / "latency_tables").glob("*ort-cpu*.csv"))
        run(RunConfig(("1ms",), target="tensorrt", table=str(other)), Study(tmp_path / "study"))


def test_bits_that_it_does_not_multiply_are_refused():
    with pytest.raises(OptionError, match=r"multiplies 8 bits alone"):
        RunConfig(("1ms",), target="tensorrt", table=str(A100), bits=(4, 6))


@pytest.fixture
def small(settings, tmp_path):
    """The net's settings, and a table by which a unit takes 10 us in float and 4 in int8, and each change of precision
    1 us for 256 elements.
    """
    config = settings(budgets=("1ms",), table=str(tmp_path / "t.csv"), **engines_of())
    network = network_of(load_subject(config, Silent(), labelled=False))
    device = card_identity("NVIDIA H200", 132, 2.0**37, "9.0")
    table = LatencyTable(device, "tensorrt", "10.9", 1, batch=4)
    took = {"float": 10.0, "W8A8": 4.0}
    for layer in network.layers:
        for kernel, us in took.items() if layer.weight_shape else ():
            key = row_key(layer, 4)
            table.rows[key, kernel] = Row(
                key, kernel, "ok", us, 0, 100, layer.weight_numel, "k", 0, "", clock="gpu"
            )

    edge = "edge 4x8x8x8 fp16>int8"
    table.rows[edge, "quantize"] = Row(
        edge, "quantize", "ok", 2.0, 0, 100, 0, "q", 0, "", "edge", clock="gpu"
    )

    def us(kernels):
        rows = sum(took[k] for k, layer in zip(kernels, network.layers, strict=True) if layer.weight_shape)
        return rows + sum(w.numel for w in network.wires if kernels[w.source] != kernels[w.target]) / 256

    def timed(kernels, factor=1.0):
        passes = (us(kernels) * factor,) * 2
        made = ModelRun(network.key, 4, tuple(kernels), passes, 0.0, 0.0, "ok", "gpu", "")
        table.models[made.key] = made
        files = table.save(tmp_path)
        for file in tmp_path.glob(f"{files.stem}*"):
            file.rename(tmp_path / file.name.replace(files.stem, "t"))
        return made

    draw = random.Random(0)
    for share in [0.0, 1.0, *[draw.random() for _ in range(30)]]:
        timed(["W8A8" if draw.random() < share else "float" for _ in network.layers])
    return config, network, us, timed


def test_tensors_are_searched_and_the_table_of_ones_own_is_no_estimate(small, tmp_path):
    config, network, us, _ = small
    result = run(replace(config, budgets=("25us",), allow_estimate=False), Study(tmp_path / "study"))
    best = result["best"]
    assert result["latencies"] == "by engines timed on NVIDIA H200, tensorrt 10.9, for 4 images in a call"
    assert {"stem.output", "down.output"} <= set(best["assignment"])
    kernels = [best["assignment"][layer.name] for layer in network.layers]
    assert best["predicted"]["latency_us"] == pytest.approx(us(kernels), rel=0.1)
    assert best["predicted"]["latency_us"] <= 25


def test_an_engine_that_was_timed_is_measured_and_its_budget_repaired(small, tmp_path):
    """What was chosen takes longer when it is built: the next run knows, and takes another."""
    config, network, us, timed = small
    config = replace(config, budgets=("30us",))
    study = Study(tmp_path / "study")
    first = run(config, study)["best"]
    assert "latency_us" not in first["measured"]
    kernels = [first["assignment"][layer.name] for layer in network.layers]
    timed(kernels, 40 / us(kernels))
    second = run(config, study)["best"]
    assert second["assignment"] != first["assignment"]
    assert second["measured"].get("latency_us", 0) <= 30
