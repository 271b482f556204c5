"""What another package raises becomes one message with exit code 1, and the other targets of an export still
work.
"""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch
from odd_nets import job_of
from onnx import helper
from torch import nn

from mpsearch.cli import export as cli
from mpsearch.cli._show import Format
from mpsearch.deploy.artifact import MANIFEST, open_artifact, write_artifact
from mpsearch.deploy.openvino import quantize_openvino
from mpsearch.deploy.process import run_apart
from mpsearch.deploy.targets import TARGETS
from mpsearch.errors import MpsearchError, UserError
from mpsearch.foreign import one_message, reason_of
from mpsearch.hardware.qdq import OPSET
from mpsearch.pipeline.jobs.export import export_points
from mpsearch.pipeline.jobs.points import Point
from mpsearch.problem import Assignment

PAGES = """Exception from src/inference/src/cpp/core.cpp:105:
Check 'false' failed at src/frontends/report.cpp:151:
FrontEnd API failed with OpConversionFailure:
Model wasn't fully converted. Failed operations detailed log:
-- Pad-20 with a message:
While validating ONNX node '<Node(Pad): node_pad>': Exception from src/pad.cpp:32:
Unsupported padding mode: [wrap]

Summary:
-- Conversion is failed for: Conv-20, Pad-20
"""
SIGNATURE = (
    "[ONNXRuntimeError] : 1 : FAIL : /src/model.cc:256 "
    "onnxruntime::Model::Model(onnx::ModelProto&&, const Options&) Unsupported model version: 14\n"
)


class Circular(nn.Module):
    """A padding that OpenVINO does not read."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (PAGES, "Unsupported padding mode: [wrap]."),
        (SIGNATURE, "[ONNXRuntimeError] : 1 : FAIL : Unsupported model version: 14."),
        ("first\nsecond", "first."),
        ("", "RuntimeError."),
        ("x" * 5000, "x" * 300 + "."),
    ],
    ids=["pages", "signature", "lines", "nothing", "long"],
)
def test_the_reason_is_one_sentence(text, wanted):
    assert reason_of(RuntimeError(text)) == wanted


def test_errors_of_our_own_and_of_the_file_system_pass():
    for error in (UserError("ours"), OSError(28, "No space left on device")):
        with pytest.raises(type(error)) as caught, one_message("Something failed"):
            raise error
        assert caught.value is error


def _is_one_message(error, *parts):
    assert type(error) is MpsearchError and error.exit_code == 1
    assert "\n" not in str(error) and len(str(error)) < 500 and all(part in str(error) for part in parts)


def test_what_openvino_cannot_read_is_one_message(tmp_path):
    pytest.importorskip("openvino")
    job, _ = job_of("circular", Circular)
    with pytest.raises(MpsearchError) as caught:
        quantize_openvino(job.float_onnx(OPSET), job.states)
    _is_one_message(
        caught.value,
        "OpenVINO cannot read the model: ",
        "Unsupported padding mode: [wrap]",
        "--target packed",
    )
    with pytest.raises(MpsearchError):
        write_artifact(tmp_path / "a", "openvino", job, {})
    assert list(tmp_path.iterdir()) == []
    assert write_artifact(tmp_path / "b", "onnx", job, {}).size_bytes > 0


@pytest.mark.parametrize("name", TARGETS.names())
def test_whatever_a_target_raises_is_one_message_and_leaves_the_earlier_artifact(name, tmp_path, monkeypatch):
    job, _ = job_of("circular", Circular)
    held = write_artifact(tmp_path / "a", "packed", job, {})

    def fails(self, job, folder):
        (folder / "half").write_bytes(b"half")
        raise RuntimeError(PAGES)

    monkeypatch.setattr(type(TARGETS.create(name)), "write", fails)
    with pytest.raises(MpsearchError) as caught:
        write_artifact(tmp_path / "a", name, job, {})
    _is_one_message(
        caught.value, f"The target {name} cannot write this model: Unsupported padding mode: [wrap]."
    )
    assert open_artifact(tmp_path / "a").manifest == held.manifest and [
        p.name for p in tmp_path.iterdir()
    ] == ["a"]


def test_what_cannot_be_run_is_one_message(tmp_path):
    job, images = job_of("circular", Circular)
    artifact = write_artifact(tmp_path / "a", "onnx", job, {})
    from mpsearch.deploy.artifact import _sha256

    path = tmp_path / "a" / "model.onnx"
    graph = job.float_onnx(OPSET)
    odd = helper.make_graph(
        [helper.make_node("Nowhere", [graph.graph.input[0].name], ["y"], domain="elsewhere")],
        "g",
        graph.graph.input,
        [],
    )
    odd.output.append(helper.make_tensor_value_info("y", 1, ["rows"]))
    path.write_bytes(
        helper.make_model(
            odd,
            opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)],
            ir_version=10,
        ).SerializeToString()
    )
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    manifest["files"]["model.onnx"]["sha256"] = _sha256(path)
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(MpsearchError) as caught:
        run_apart(open_artifact(artifact.folder), images)
    _is_one_message(caught.value, str(artifact.folder), "ONNX Runtime cannot open", "Nowhere")


class FakeDeployer:
    """Exports to every target but those that fail."""

    def __init__(self, folder, failing):
        self.folder, self.failing, self.written, self.workshop = folder, failing, [], self
        self.subject = SimpleNamespace(file=SimpleNamespace(size_bytes=lambda assignment: 5))

    def states_of(self, point):
        return {}

    def export(self, point, text):
        if text in self.failing:
            raise self.failing[text]
        row = {
            "point": point.label,
            "target": text,
            "predicted_bytes": 5,
            "packed_bytes": 5,
            "artifact_bytes": 5,
        }
        row |= {"fake_quantized": {"top1": 0.5}, "runtime": {}}
        return row | {"notes": [], "mean_bits": 8.0, "folder": "f", "measure": "kl"}


def test_one_target_that_fails_does_not_keep_the_others(tmp_path, monkeypatch):
    deployer = FakeDeployer(tmp_path, {"openvino": MpsearchError("one"), "torchao": UserError("two")})
    monkeypatch.setattr(
        "mpsearch.pipeline.jobs.export.write_assignment",
        lambda _, folder, *rest: deployer.written.append(folder.name),
    )
    points = [Point(label, Assignment(()), False) for label in ("best", "float")]
    rows, failed = export_points(deployer, points, ["openvino", "onnx", "torchao", "packed"])
    wanted = [(label, text) for label in ("best", "float") for text in ("onnx", "packed")]
    assert [(row["point"], row["target"]) for row in rows] == wanted
    assert [str(error) for error in failed] == ["one", "two"] * 2 and deployer.written == ["best", "float"]
    kept = json.loads((tmp_path / "exports.json").read_text())["exports"]
    assert [(row["point"], row["target"]) for row in kept] == wanted


@pytest.mark.parametrize("count", [1, 2])
def test_the_command_shows_what_was_written_and_fails(tmp_path, monkeypatch, capsys, count):
    rows = [{"point": "best", "target": "onnx"}]
    failed = [MpsearchError("OpenVINO cannot read the model: why."), UserError("torchao is not there.")][
        :count
    ]

    class Folder:
        def __init__(self, folder):
            pass

        def settled(self):
            return None

        def busy(self):
            return contextlib.nullcontext()

    monkeypatch.setattr("mpsearch.pipeline.folder.Study", Folder)
    monkeypatch.setattr("mpsearch.pipeline.jobs.imported.open_workshop", lambda *_: None)
    monkeypatch.setattr("mpsearch.pipeline.jobs.export.export_points", lambda *_: (rows, failed))
    with pytest.raises(MpsearchError) as caught:
        cli._export(tmp_path, ["onnx", "openvino"], lambda _: [], Format.json)
    said = capsys.readouterr()
    assert json.loads(said.out) == rows and caught.value.exit_code == 1
    if count == 1:
        assert caught.value is failed[0]
    else:
        assert str(caught.value) == "2 of 3 exports failed for the reasons above; the others are written."
        assert "why." in said.err and "not there." in said.err
