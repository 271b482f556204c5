"""Real engines of NVIDIA's engine explorer against the graphs of the models: which form wins, and whose files are
refused.
"""

import json

import pytest
from trtexec_files import real_files
from typer.testing import CliRunner

from mpsearch.cli import app
from mpsearch.errors import OptionError, TableError
from mpsearch.hardware.trtexec import fit_network, import_builds, read_builds, source_folder
from mpsearch.pipeline import RunConfig
from mpsearch.pipeline.jobs.trtexec import import_trtexec
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.network import network_of

DATE = "2026-01-02T03:04:05+00:00"
A100 = ("examples", "pytorch", "resnet", "A100")


def config(model):
    few = {f"{what}_images": 1 for what in ("calibration", "search", "evaluation")}
    return RunConfig(("8bits",), model=model, data="digits", pretrained=False, target="packed", **few)


@pytest.fixture(scope="module")
def resnet18():
    """ResNet18's graph and its five engines on an A100, by the last word of their names."""
    builds = read_builds(real_files(*A100))
    network = network_of(load_subject(config("resnet18"), Silent()))
    found = import_builds(builds, network, date=DATE, allow_estimate=True)
    return network, found, {name.partition("/")[0]: run for name, run in found.runs.items()}


def test_tensors_are_those_of_the_engines(resnet18):
    network, _, runs = resnet18
    places = [i for i, layer in enumerate(network.layers) if not layer.weight_shape]
    assert [network.layers[i].op for i in places] == ["pool", *["residual"] * 8, "pool"]
    assert {runs["qat"].kernels[i] for i in places} == {"float"}
    assert [runs["qat-residual"].kernels[i] for i in places] == ["W8A8"] * 8 + ["float"] * 2
    assert {runs["qat-residual-qgap"].kernels[i] for i in places} == {"W8A8"}


def test_resnet18_is_reproduced_within_the_stated_error(resnet18):
    network, found, runs = resnet18
    model = fit_network(network.layers, network.wires, found.table, list(runs.values()))
    medians = {"fp16": 862, "qat": 883, "qat-residual": 546, "qat-residual-qgap": 500}
    assert model.error is not None and model.error.worst < 0.1
    for name, median in medians.items():
        assert runs[name].latency_us == pytest.approx(median, abs=1)
        assert abs(model.predict(runs[name].kernels) - median) / median <= model.error.mape


@pytest.mark.parametrize(
    ("held_out", "wins"), [("qat", False), ("qat-residual", True), ("qat-residual-qgap", True)]
)
def test_a_form_that_no_run_has_shown_is_told_from_fp16(resnet18, held_out, wins):
    """Q/DQ at unit inputs alone is predicted to lose to plain fp16, and the residual form to win."""
    network, found, runs = resnet18
    kept = [run for name, run in runs.items() if name != held_out]
    model = fit_network(network.layers, network.wires, found.table, kept)
    assert (model.predict(runs[held_out].kernels) < model.predict(runs["fp16"].kernels)) == wins


def test_mobilenet_v2_is_imported_by_the_command(tmp_path):
    folder = real_files("tests", "inputs")
    asked = ["--model", "mobilenetv2_100", "--data", "digits", "--tables", str(tmp_path), "--format", "json"]
    result = CliRunner().invoke(app, ["profile", "--from", f"trtexec:{folder}", *asked])
    assert result.exit_code == 0, result.output
    plain, residual = (json.loads(result.stdout)[i] for i in (0, 1))
    assert (plain["median_ms"], residual["median_ms"]) == ("0.351", "0.258")
    assert float(residual["predicted_ms"]) == pytest.approx(0.258, rel=0.02)
    assert float(plain["predicted_ms"]) == pytest.approx(0.351, rel=0.02)
    for row in (plain, residual):
        parts = [float(row[f"{part}_ms"]) for part in ("units", "groups", "edges", "other")]
        assert sum(parts) == pytest.approx(float(row["layers/whole"]) * float(row["median_ms"]), rel=0.01)
    assert "Whole engines are predicted within" in result.stderr


def test_a_single_iteration_is_refused(tmp_path):
    with pytest.raises(TableError, match=r"is of one iteration.*--allow-estimate"):
        import_trtexec(real_files(*A100), read_builds(real_files(*A100)), None, tmp_path, Silent())
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.parametrize("text", ["engines", "trtexec:", "nsys:engines"])
def test_what_is_imported_is_named_with_its_kind(text):
    with pytest.raises(OptionError, match=r"write trtexec:DIR"):
        source_folder(text)
