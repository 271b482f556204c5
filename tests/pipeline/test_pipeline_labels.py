"""A row says what it is: uniform bits beside fixed layers are not called uniform bits."""

import json

from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.steps.uniforms import uniforms
from mpsearch.problem import Candidate, Layer, Problem
from mpsearch.report import write_report

W8, W4, FLOAT = Candidate(8, 8), Candidate(4, 8), Candidate.parse("float")


def problem(*candidates):
    layers = tuple(
        Layer(f"l{i}", "linear", (4, 4), ((1, 4),), (1, 4), 16, "block") for i in range(len(candidates))
    )
    return Problem(layers, candidates)


def test_labels_tell_fixed_layers():
    assert [u.label for u in uniforms(problem((W8, W4), (W8, W4)), [W8, W4])] == [
        "uniform W8A8",
        "uniform W4A8",
    ]
    assert [u.label for u in uniforms(problem((W8, W4), (W8,)), [W8, W4])] == [
        "uniform W8A8",
        "uniform W4A8 but fixed layers",
    ]
    assert [u.label for u in uniforms(problem((W8, W4), (FLOAT,)), [W8])] == ["uniform W8A8 but fixed layers"]
    assert uniforms(problem((W8, W4), (W8, FLOAT)), [W4]) == []
    assert uniforms(problem((W8,), (W8,)), [W4]) == []


def test_a_run_with_a_fixed_layer_says_so_everywhere(tmp_path, settings):
    config = settings(
        fix=("head=W8A8",), bits=(4, 8), iterations=0, trials=2, polish=0, objectives=("weight_mse",)
    )
    study = Study(tmp_path / "study")
    result = run(config, study)
    labels = [row["label"] for row in result["rows"]]
    assert (
        "uniform W4A8 but fixed layers" in labels
        and "uniform W8A8" in labels
        and "uniform W4A8" not in labels
    )
    assert labels == [row["label"] for row in json.loads((study.path / "results.json").read_text())["rows"]]
    assert "uniform W4A8 but fixed layers" in write_report(study.path).read_text()
