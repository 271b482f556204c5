"""`mpsearch finetune`: from a width or a study's assignment to an artifact, interrupted and gone on with."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mpsearch.cli import finetune as command
from mpsearch.cli._app import app
from mpsearch.data import has_parts
from mpsearch.deploy.artifact import open_artifact
from mpsearch.deploy.input_codes import encode
from mpsearch.deploy.packed_reading import open_packed
from mpsearch.errors import MpsearchError, OptionError, UnknownNameError, UserError
from mpsearch.evaluate import predict
from mpsearch.models import load_model
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs import finetune as job
from mpsearch.pipeline.jobs.imported import open_subject
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.steps import tuning
from mpsearch.pipeline.steps.plan import Step
from mpsearch.quant import LogParams, install

SHORT = "--steps 12 --batch-size 8 --learning-rate 3e-4 --step-learning-rate 1e-3"
APART = """
import torch
from nets import make as small


def make():
    model = small()
    with torch.no_grad():
        model.head.weight.mul_(20)
        model.head.bias.zero_()
    return model
"""


@pytest.fixture
def called(place, tmp_path, monkeypatch):
    """`called(words)`: what a command of mpsearch prints; its error is raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def of(words):
        result = CliRunner().invoke(app, words.split())
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return of


@pytest.fixture(scope="module")
def factory(place):
    """The small net with outputs that are further apart, so that a few bits do some damage."""
    (place / "apart.py").write_text(
        APART.replace("from nets import", f"import sys\nsys.path.insert(0, {str(place)!r})\nfrom nets import")
    )
    return f"{place / 'apart.py'}:make"


@pytest.fixture
def net(place, factory):
    """The options of that net, and of images that judge it."""
    data = f"--data {place / 'images.npz'} --evaluation-images 24 --calibration-images 16"
    return f"--model {factory} {data} --target packed"


def tuned(text):
    return json.loads(text)


def test_a_uniform_width_learns_and_is_read_back(called, net, factory, place, tmp_path):
    result = tuned(
        called(f"finetune {net} {SHORT} --bits 2 --a-bits 3 --method nearest --name t --format json")
    )
    before, after = result["rows"][1:]
    assert [row["label"] for row in result["rows"]] == ["float", "W2A3 before", "W2A3 fine-tuned"]
    assert set(result["assignment"].values()) == {"W2A3"} and result["data"]["images"] == 48
    assert after["metrics"]["kl"] < before["metrics"]["kl"] and result["settings"]["steps"] == 12
    artifact = open_artifact(tmp_path / "studies/t/finetuned/W2A3")
    assert artifact.manifest["finetuned"] == {
        "steps": 12,
        "images": 48,
        "source": str(place / "images.npz"),
    }
    module, states = open_packed(artifact.folder / "model.safetensors", load_model(factory).module)
    subject, _ = open_subject(Study(tmp_path / "studies/t").config(), Study(tmp_path / "studies/t"), Silent())
    logits = predict(install(module, states), subject.splits.evaluation)
    floats = predict(subject.module, subject.splits.evaluation)
    found = subject.task.compare(logits, floats, subject.splits.evaluation.labels)
    assert found.kl == pytest.approx(after["metrics"]["kl"], rel=1e-9)
    both = called(
        f"finetune {net} {SHORT} --bits 8 --method nearest --name t"
    )  # another width lies beside it
    assert "W8A8 fine-tuned" in both and {p.name for p in (tmp_path / "studies/t/finetuned").iterdir()} == {
        *("W2A3", "W2A3.json", "W8A8", "W8A8.json")
    }


def test_the_artifact_is_like_any_other(called, net, factory, place):
    result = tuned(called(f"finetune {net} {SHORT} --bits 2 --a-bits 3 --name t --format json"))
    judged = json.loads(
        called(f"eval studies/t/finetuned/W2A3 --data {place / 'images.npz'} --model {factory} --format json")
    )
    assert judged["artifact"] == "W2A3" and judged["finite"]
    exported = json.loads(called("export studies/t --point finetuned:W2A3 --no-references --format json"))
    assert exported[0]["fake_quantized"]["kl"] == pytest.approx(result["rows"][2]["metrics"]["kl"], rel=1e-3)
    assert exported[0]["runtime"]["cosine_mean"] > 0.99
    assert exported[0]["target"] == "onnx" and Path(exported[0]["folder"], "model.onnx").is_file()


def test_killed_it_goes_on_to_the_same_result(called, net, monkeypatch, tmp_path):
    words = (
        f"finetune {net} {SHORT} --bits 3 --a-bits 4 --augment flip,shift --label-weight 0.3 --format json"
    )
    calm = tuned(called(f"{words} --name calm"))
    learn, counted = job.finetune, []

    def killed(*args, on_step, **more):
        def stop(step, total, loss):
            counted.append(step)
            on_step(step, total, loss)
            if step == 5:
                raise KeyboardInterrupt

        return learn(*args, on_step=stop, every=0.0, **more)

    monkeypatch.setattr(job, "finetune", killed)
    with pytest.raises(AssertionError):  # the exit code of an interruption
        called(f"{words} --name killed")
    assert counted == [1, 2, 3, 4, 5]
    assert not (tmp_path / "studies/killed/finetuned").exists()
    again = tuned(called(f"{words} --name killed"))
    assert counted[5:] == list(range(6, 13))
    same = [(row["metrics"], row["size_bytes"]) for row in again["rows"]]
    assert same == [(row["metrics"], row["size_bytes"]) for row in calm["rows"]]
    files = [
        (tmp_path / f"studies/{n}/finetuned/W3A4/model.safetensors").read_bytes() for n in ("calm", "killed")
    ]
    assert files[0] == files[1]


def test_the_best_of_a_study_learns(called, settings, factory, place, tmp_path):
    study = Study(tmp_path / "mixed")
    best = run(
        settings(
            model=factory,
            trials=0,
            polish=0,
            bits=(2, 4),
            a_bits=(3,),
            fix=("head=W4A3",),
            method="nearest",
            search_states="nearest",
            budgets=("3bits",),
        ),
        study,
    )["best"]
    result = tuned(called(f"finetune mixed --data {place / 'images.npz'} {SHORT} --format json"))
    assert result["label"] == "best" and result["assignment"] == best["assignment"]
    assert len(set(result["assignment"].values())) == 2
    before, after = result["rows"][1:]
    assert before["metrics"]["kl"] == pytest.approx(best["metrics"]["kl"], rel=1e-6)
    assert after["metrics"]["kl"] < before["metrics"]["kl"]
    assert before["size_bytes"] == after["size_bytes"] == best["measured"]["size_bytes"]
    with pytest.raises(OptionError, match="--bits"):
        called(f"finetune mixed --data {place / 'images.npz'} --bits 4")


def test_what_judges_is_never_learned_from(called, net, tmp_path, monkeypatch):
    seen = []
    learn = job.finetune
    monkeypatch.setattr(job, "finetune", lambda *a, **k: seen.append(a[2]) or learn(*a, **k))
    called(f"finetune {net} --bits 4 --steps 1 --batch-size 8 --name t")
    held, _ = open_subject(Study(tmp_path / "studies/t").config(), Study(tmp_path / "studies/t"), Silent())
    assert len(seen[0]) == 48
    assert not set(seen[0].sample_hashes) & set(held.splits.evaluation.sample_hashes)


def test_a_time_limit_shortens_the_learning_and_is_kept(called, net, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "began", time.monotonic)
    monkeypatch.setattr(tuning, "_beside", lambda *_: (Step("before", 0, 1.0), Step("after", 0, 1.0)))
    monkeypatch.setattr(tuning, "seconds_of_step", lambda *_: 100.0)
    words = f"finetune {net} --bits 4 --epochs 50 --batch-size 8 --name t --time-limit 1h --format json"
    steps = tuned(called(words))["settings"]["steps"]
    assert 20 <= steps <= 28
    monkeypatch.setattr(tuning, "seconds_of_step", lambda *_: 0.001)
    assert tuned(called(words))["settings"]["steps"] == steps
    monkeypatch.setattr(tuning, "seconds_of_step", lambda *_: 5000.0)
    shutil.rmtree(tmp_path / "studies")
    with pytest.raises(OptionError, match="single step"):
        called(words)


@pytest.mark.parametrize("grids", ["symmetric", "sensitive:0.0"])
def test_grids_of_inputs(called, net, factory, tmp_path, grids):
    called(f"finetune {net} --bits 4 --steps 1 --batch-size 8 --name t --input-grids {grids}")
    packed = tmp_path / "studies/t/finetuned/W4A8/model.safetensors"
    _, states = open_packed(packed, load_model(factory).module)
    middle = {int(state.activation.zero_point) in (0, 128) for state in states.values()}
    assert (middle == {True}) == (grids == "symmetric")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("", OptionError, "--bits 4"),
        ("--bits 2-8", OptionError, "one width"),
        ("--bits 4 --point best", OptionError, "--point"),
        ("--bits 4 --augment rotate", UnknownNameError, "rotate"),
        ("--bits 4 --input-grids even", UnknownNameError, "even"),
        ("--bits 4 --input-grids sensitive:much", OptionError, "sensitive:0.001"),
        ("--bits 4 --input-grids sensitive --input-observer opt_m", OptionError, "--input-observer"),
        ("--bits 4 --label-weight 2", OptionError, "label_weight"),
        ("--bits 4 --preset mptq-vit", OptionError, "mpsearch run"),
        ("--bits 4 --preset q-mpl", UnknownNameError, "q-mlp"),
        ("--bits 4 --label a/b", OptionError, "--label"),
        ("--bits 4 --time-limit soon", OptionError, "soon"),
        ("--bits 4 --quantize full --target ort-cpu", OptionError, "--target packed"),
        ("--bits 4 --task outputs", OptionError, "--task"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    called, net, monkeypatch, words, error, message
):
    def never(*_, **__):
        raise AssertionError("something was computed")

    monkeypatch.setattr(job, "calibrate_subject", never)
    with pytest.raises(error, match=message):
        called(f"finetune {net} {words}")
    assert not Path("studies").exists()


def test_without_images_that_judge_it_is_refused(called, factory, place):
    assert not has_parts(str(place / "images.npz")) and has_parts("digits")
    with pytest.raises(OptionError, match="--evaluation-data"):
        called(f"finetune --model {factory} --data {place / 'images.npz'} --bits 4")


def test_points_that_are_not_there(called, net, tmp_path):
    called(f"finetune {net} --bits 4 --steps 1 --batch-size 8 --name t")
    with pytest.raises(UserError, match="It has W4A8"):
        called("export studies/t --point finetuned:W5A8")
    with pytest.raises(OptionError, match="--point float"):
        called(f"finetune studies/t --point float --data {tmp_path}")
    damaged = tmp_path / "studies/t/finetuned/W4A8/model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises(MpsearchError):
        called("export studies/t --point finetuned:W4A8 --target packed --no-references")
    assert torch.is_grad_enabled()


def test_every_tensor_of_a_transformer_learns_its_step(called, vit, place, tmp_path):
    model, data = vit, f"--data {place / 'images.npz'} --evaluation-images 24"
    words = (
        f"finetune --model {model} {data} --calibration-images 16 --target packed --quantize full --bits 4"
    )
    words += " --a-bits 4 --softmax log2 --steps 2 --batch-size 8 --step-learning-rate 1e-2 --method nearest"
    called(f"{words} --name still --learning-rate 0 --step-learning-rate 0")
    called(f"{words} --name moved")
    still, moved = (
        open_packed(tmp_path / f"studies/{n}/finetuned/W4A4/model.safetensors", load_model(vit).module)[1]
        for n in ("still", "moved")
    )
    assert {unit.rpartition(".")[2] for unit in moved} >= {
        "softmax0",
        "gelu0",
        "layer_norm0",
        "add0",
        "matmul0",
    }
    for unit, state in moved.items():
        same = torch.equal(encode(state.activation), encode(still[unit].activation))
        assert same == isinstance(state.activation, LogParams), unit
