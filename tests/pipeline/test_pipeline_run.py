"""Runs of a small net: what is written agrees, budgets are kept on disk, and what cannot be is refused
early.
"""

import csv
import importlib.util
import json
import math

import numpy as np
import pytest
import torch

import mpsearch.pipeline.steps.measurement as measurement
import mpsearch.pipeline.steps.scores as scores
from mpsearch.data import load_images, make_splits
from mpsearch.deploy import load_packed, read_description
from mpsearch.deploy.artifact import open_artifact
from mpsearch.errors import BudgetError, InfeasibleError, StudyError
from mpsearch.evaluate import FastEvaluator
from mpsearch.hardware.new_process import PROCESSES
from mpsearch.pipeline import flow, run, search
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.results import Results
from mpsearch.pipeline.steps.costs import limited
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.problem import Assignment, Candidate, Problem
from mpsearch.solvers import problem_front


@pytest.fixture
def net(place):
    spec = importlib.util.spec_from_file_location("small_nets", place / "nets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make()


def _json(study, name):
    return json.loads((study.path / name).read_text())


@pytest.fixture(scope="session")
def held():
    """Finished runs, shared by the tests that only read."""
    return {}


@pytest.fixture
def finished(held, settings, place):
    """`finished("packed")`: config, study and result of a run."""

    def make(target):
        if target not in held:
            config, study = settings(target=target), Study(place / f"study-{target}")
            held[target] = (config, study, run(config, study))
        return held[target]

    return make


@pytest.mark.parametrize("target", ["packed", "ort-cpu"])
def test_the_files_are_there_and_agree(finished, target):
    config, study, result = finished(target)
    best, problem, front = (
        _json(study, "best.json"),
        Problem.load(study.path / "problem.json"),
        _json(study, "front.json"),
    )
    assert _json(study, "results.json") == json.loads(json.dumps(result)) and result["best"] == best
    assert Results.from_json(_json(study, "results.json")).to_json() == _json(study, "results.json")
    assert study.config() == config

    packed = study.artifact / "model.safetensors"
    assert read_description(packed)["assignment"] == best["assignment"]
    assert problem.assignment(best["indices"]).to_json() == best["assignment"]
    assert problem.cost(best["indices"]).to_json() == best["predicted"]
    assert _json(study, "artifact/assignment.json")["assignment"] == best["assignment"]
    assert best["artifact"]["top1"] == best["metrics"]["top1"]
    assert {p.name for p in study.artifact.iterdir()} == {
        "artifact.json",
        "model.safetensors",
        "assignment.json",
        "assignment.csv",
    } | ({"model.onnx"} if target == "ort-cpu" else set())

    file = study.artifact / config.deployment.budgeted
    assert file == study.artifact / ("model.onnx" if target == "ort-cpu" else "model.safetensors")
    assert file.stat().st_size == best["predicted"]["size_bytes"] == best["measured"]["size_bytes"]
    assert file.stat().st_size <= best["budgets"][0]["limit"] and best["artifact"]["file"] == str(file)
    assert best["measured"]["packed_bytes"] == packed.stat().st_size
    assert all(row["searched"]["size_bytes"] == row["predicted"]["size_bytes"] for row in result["rows"][1:])

    artifact = open_artifact(study.artifact)
    assert artifact.target == config.deployment and set(artifact.manifest["files"]) == {
        config.deployment.file
    }
    assert artifact.size_bytes == best["artifact"]["onnx_bytes" if target == "ort-cpu" else "size_bytes"]

    with (study.path / "front.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    exact = problem_front(problem, "output_mse")
    assert header == ["size_bytes", "output_mse"]
    assert [(float(a), float(b)) for a, b in rows] == [
        (float(a), float(b)) for a, b in zip(exact.costs, exact.scores, strict=True)
    ]
    assert len(rows) == front["points_in_all"] and front["points"][0]["size_bytes"] == int(rows[0][0])
    assert [t["number"] for t in front["measured"]] == list(range(config.trials + config.polish))
    assert len({tuple(t["indices"]) for t in front["measured"]}) == config.trials + config.polish
    for point in front["points"]:
        assert problem.cost(point["indices"]).size_bytes == point["size_bytes"]


def test_the_best_is_the_finalist_of_least_search_loss_but_the_uniform_one_wins_a_tie(finished):
    _, _, result = finished("packed")
    done = [row for row in result["rows"] if "reconstructed" in row]
    assert len(done) >= 2
    least = min(done, key=lambda row: row["reconstructed"]["search_kl"])
    chosen = next(row for row in done if row["label"] == result["best"]["label"])
    assert result["best"]["indices"] == chosen["indices"] and chosen["fits"]
    if chosen is not least:
        assert chosen["label"].startswith("uniform") and result["best"]["reason"].startswith(least["label"])
    assert result["rows"][0]["label"] == "float"


def test_beside_the_optimum_and_the_uniform_one_the_best_of_the_study_is_a_row(finished):
    _, study, result = finished("packed")
    rows = {row["label"]: tuple(row["indices"]) for row in result["rows"] if "indices" in row}
    uniform, optimum = (
        next(
            tuple(row["indices"]) for row in result["rows"] if kind in row["label"] and "reconstructed" in row
        )
        for kind in ("uniform", "optimum")
    )
    ranked = [
        tuple(t["indices"])
        for t in sorted(_json(study, "front.json")["measured"], key=lambda t: (t["loss"], t["number"]))
        if t["fits"]
    ]
    other = next(i for i in ranked if i not in (uniform, optimum))
    label = "best of the study" if other == ranked[0] else "best other of the study"
    assert rows[label] == other and len({other, uniform, optimum}) == 3


def test_the_artifact_computes_what_was_reported(finished, net, place):
    _, study, result = finished("packed")
    description = read_description(study.artifact / "model.safetensors")
    splits = _json(study, "study.json")["splits"]["parts"]
    images = load_images(str(place / "images.npz"), {**description["data_config"]})
    with torch.no_grad():
        logits = load_packed(study.artifact / "model.safetensors", net)(images.inputs())
    assert logits.shape == (72, 4) and torch.isfinite(logits).all()
    assert splits["evaluation"]["images"] == 72 - 32
    assert result["best"]["artifact"]["reloaded_bit_for_bit"]


@pytest.mark.parametrize("budget", ["2.2bits", "3bits", "60%", "20GBOPs", "2800B"])
def test_a_budget_is_kept_on_disk(settings, tmp_path, budget):
    study = Study(tmp_path / "study")
    result = run(settings(budgets=(budget,), trials=3, iterations=0), study)
    best = result["best"]
    assert (
        (study.artifact / "model.safetensors").stat().st_size
        == best["predicted"]["size_bytes"]
        == best["measured"]["size_bytes"]
    )
    resource, limit = best["budgets"][0]["resource"], best["budgets"][0]["limit"]
    assert best["predicted"][resource] <= limit
    for trial in _json(study, "front.json")["measured"]:
        assert trial["fits"] == (trial["predicted"][resource] <= limit)


def test_shares_and_bits_are_of_the_file_of_the_target(settings):
    """`packed` by its checkpoint, `ort-cpu` by its ONNX file: 95% of the float file, the file at 5 bits."""
    for target in ("packed", "ort-cpu"):
        config = settings(budgets=("95%", "5bits"), target=target)
        subject = load_subject(config, Silent())
        share, bits = limited(subject, config)[1]
        units = subject.layout.units
        sizes = [
            subject.file.size_bytes(Assignment(tuple((unit, Candidate.parse(text)) for unit in units)))
            for text in ("float", "W5A8")
        ]
        assert (share.limit, bits.limit) == pytest.approx((0.95 * sizes[0], sizes[1]), rel=1e-12)
        assert sizes[0] - subject.file.constant_bytes >= 4 * sum(
            math.prod(shape) for shape in subject.layout.weights.values()
        )


@pytest.mark.parametrize("target", ["packed", "ort-cpu"])
def test_an_impossible_size_is_refused_before_anything_is_measured(settings, tmp_path, monkeypatch, target):
    def never(*_, **__):
        raise AssertionError("work was done for a budget that cannot be kept")

    for step in ("calibrate_subject", "latency_table", "add_scores", "search_assignments"):
        monkeypatch.setattr(flow, step, never)
    with pytest.raises(InfeasibleError, match=r"least reachable [\d,]+ B") as caught:
        run(settings(budgets=("100B",), target=target), Study(tmp_path / "study"))
    assert caught.value.exit_code == 3
    least = caught.value.least["size_bytes"]
    monkeypatch.undo()
    asked = settings(budgets=(f"{least}B",), target=target, trials=1, iterations=0)
    result = run(asked, Study(tmp_path / "least"))
    assert result["best"]["measured"]["size_bytes"] == least
    with pytest.raises(InfeasibleError):
        run(settings(budgets=(f"{least - 1}B",), target=target), Study(tmp_path / "less"))


def test_a_budget_that_cannot_be_read_is_refused(settings, tmp_path):
    with pytest.raises(BudgetError, match=r"no unit\. Write 15MB"):
        settings(budgets=("15",))  # before the model is read
    with pytest.raises(BudgetError, match=r"measures no energy.* Least reachable: size"):
        run(settings(budgets=("3mJ",)), Study(tmp_path / "study"))


def test_an_impossible_latency_is_infeasible(settings, tmp_path):
    with pytest.raises(InfeasibleError) as caught:
        run(settings(budgets=("0.0001ms",), target="ort-cpu", allow_estimate=True), Study(tmp_path / "study"))
    assert caught.value.exit_code == 3 and caught.value.least["latency_us"] > 0.1


@pytest.mark.timeout(900)  # a machine whose clock moves is asked again and again
@pytest.mark.parametrize("share", [0.9, 50.0])
def test_a_latency_budget_is_kept_when_measured_or_refused(finished, settings, place, tmp_path, share):
    float_us = finished("ort-cpu")[2]["rows"][0]["searched"]["latency_us"]
    (table,) = (place / "tables").glob("*ort-cpu*.csv")
    rows, budgets = table.read_text(), (f"{float_us * share / 1e3:.6f}ms", "6bits")
    try:
        best = run(
            settings(budgets=budgets, target="ort-cpu", trials=2, iterations=0, allow_estimate=True),
            Study(tmp_path / "study"),
        )["best"]
    except InfeasibleError as error:
        assert share < 1 and error.least  # a small net on a busy machine may miss the tight one
        return
    for budget in best["budgets"]:
        assert best["measured"][budget["resource"]] <= budget["limit"]
    assert (
        0
        < best["measured"]["latency_us"]
        <= best["measured"]["latency_high_us"]
        <= best["budgets"][0]["limit"]
    )
    assert len(best["artifact"]["latency"]["latency_readings_us"]) == 2 * PROCESSES
    assert table.read_text() == rows  # every row was there already


def test_onnx_agrees_with_the_checkpoint(finished):
    best = finished("ort-cpu")[2]["best"]
    assert best["artifact"]["onnx_agreement"] >= 0.9
    assert (
        finished("ort-cpu")[1].artifact.joinpath("model.onnx").stat().st_size
        == best["artifact"]["onnx_bytes"]
        == best["measured"]["onnx_bytes"]
    )


def test_another_budget_reuses_the_scores(settings, tmp_path, monkeypatch):
    calls = []
    real = scores.score
    monkeypatch.setattr(
        scores,
        "score",
        lambda objective, context: (calls.append(objective.name), real(objective, context))[1],
    )
    study = Study(tmp_path / "study")
    first = run(settings(trials=2, iterations=0), study)
    assert calls == ["output_mse", "weight_mse"]
    second = run(settings(trials=2, iterations=0, budgets=("3bits",)), study)
    assert calls == ["output_mse", "weight_mse"]
    assert second["best"]["measured"]["size_bytes"] < first["best"]["measured"]["size_bytes"]
    run(settings(trials=2, iterations=0, seed=1), Study(tmp_path / "other"))
    assert calls == ["output_mse", "weight_mse"] * 2


def test_a_finished_study_run_again_gives_the_same_and_measures_nothing(finished, monkeypatch):
    config, study, result = finished("packed")
    before = {
        p.name: p.read_bytes()
        for p in (study.path / "front.csv", study.path / "best.json", study.artifact / "model.safetensors")
    }

    def never(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(FastEvaluator, "measure", never)
    monkeypatch.setattr(measurement.Measurement, "_measure", never)
    monkeypatch.setattr(scores, "score", never)
    again = run(config, study)
    steps = [
        [(s["step"], s["passes"]) for s in plan["steps"]] for plan in (again.pop("plan"), result["plan"])
    ]
    assert steps[0] == steps[1]  # how long they take is measured anew
    assert again == {name: value for name, value in result.items() if name != "plan"}
    assert {
        name: (study.artifact if "safetensors" in name else study.path).joinpath(name).read_bytes()
        for name in before
    } == before


def test_the_same_seed_gives_the_same_files_elsewhere(finished, tmp_path):
    config, study, _ = finished("packed")
    other = Study(tmp_path / "twin")
    run(config, other)
    for name in ("front.csv", "front.json", "artifact/model.safetensors"):
        assert (other.path / name).read_bytes() == (study.path / name).read_bytes()


def test_search_takes_a_module_and_images(net, place, tmp_path):
    images = load_images(str(place / "images.npz"), net.pretrained_cfg)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    asked = {
        "budgets": ["4bits"],
        "calibration_images": 16,
        "search_images": 16,
        "trials": 2,
        "iterations": 0,
        "target": "packed",
    }
    result = search(net, images, study=tmp_path / "one", objectives=("weight_mse",), **asked)
    packed = tmp_path / "one/artifact/model.safetensors"
    assert (
        packed.stat().st_size
        == result["best"]["predicted"]["size_bytes"]
        <= result["best"]["budgets"][0]["limit"]
    )
    with torch.no_grad():
        assert load_packed(packed, net)(images.inputs([0, 1])).shape == (2, 4)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not any(
        m._forward_hooks for m in net.modules()
    )

    held_out, rest = images.subset(range(30)), images.subset(range(30, 72))
    result = search(
        net, rest, evaluation=held_out, study=tmp_path / "two", objectives=("weight_mse",), **asked
    )
    parts = _json(Study(tmp_path / "two"), "study.json")["splits"]["parts"]
    splits = make_splits(held_out, calibration=rest, calibration_images=16, search_images=16)
    assert set(splits.evaluation.sample_hashes) == set(held_out.sample_hashes)
    assert {name: part["content_hash"] for name, part in parts.items()} == {
        name: part.content_hash for name, part in splits.parts.items()
    }
    with pytest.raises(StudyError, match="seed"):
        search(
            net,
            rest,
            evaluation=held_out,
            study=tmp_path / "two",
            objectives=("weight_mse",),
            seed=3,
            **asked,
        )


def test_labels_are_not_needed(settings, place, tmp_path):
    np.savez(tmp_path / "bare.npz", x=np.load(place / "images.npz")["x"])
    best = run(settings(data=str(tmp_path / "bare.npz"), trials=2, iterations=0), Study(tmp_path / "study"))[
        "best"
    ]
    assert best["metrics"]["top1"] is None and best["metrics"]["kl"] >= 0
