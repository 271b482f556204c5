"""Rules for single units in a run, and the smallest assignment within a measured drop of accuracy."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from mpsearch.cli import main
from mpsearch.errors import BudgetError, InfeasibleError, OptionError, StudyError, UnknownNameError
from mpsearch.evaluate import FastEvaluator, compare
from mpsearch.pipeline import Silent
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.floor import within_floor
from mpsearch.pipeline.jobs.score import score_model
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.problem import Assignment, Budget, Drop, Problem
from mpsearch.solvers import problem_front


@pytest.fixture(scope="session")
def kept():
    return {}


@pytest.fixture
def scored(kept, settings, place):
    """A small net's scores, in a folder that `solve` reads."""
    if not kept:
        config = settings(objectives=("weight_mse",), search_images=40)
        study = Study(place / "floor")
        problem = score_model(config, study).problem
        (study.path / "problem.json").write_text(json.dumps(problem.to_json()))
        kept["it"] = (config, study, problem)
    return kept["it"]


FIVE = Drop.parse("5")
"""Points of top-1."""


def names(problem):
    return {
        layer.name: [str(c) for c in row]
        for layer, row in zip(problem.layers, problem.candidates, strict=True)
    }


def test_rules_for_single_units_decide_the_candidates_of_a_study(settings, place):
    config = settings(
        objectives=("weight_mse",),
        bits=(2, 4),
        layer_bits=("body.*=6..8", "down.0=A4..5"),
        fix=("head=W8A6",),
    )
    study = Study(place / "ruled")
    found = names(score_model(config, study).problem)
    assert found["stem.0"] == ["W4A8", "W2A8"] and found["head"] == ["W8A6"]
    assert found["body.0"] == found["body.2"] == ["W8A8", "W7A8", "W6A8"]
    assert found["down.0"] == ["W4A5", "W4A4", "W2A5", "W2A4"]
    assert study.config() == config
    with pytest.raises(StudyError, match=r"other settings \(fix\)"):
        score_model(replace(config, fix=()), study)
    with pytest.raises(UnknownNameError, match=r"'heads'.*--fix heads=W8A8 is about none"):
        score_model(replace(config, fix=("heads=W8A8",)), Study(place / "wrong"))
    with pytest.raises(OptionError, match="bits are 2 to 8"):
        replace(config, layer_bits=("head=1..3",))


def test_the_smallest_within_a_drop_was_measured_to_keep_it(scored):
    config, study, problem = scored
    subject = load_subject(config, Silent())
    calibration = calibrate_subject(subject, config, Silent())
    evaluator = FastEvaluator(subject.module, calibration, subject.splits.search)
    labels = subject.splits.search.labels
    top1 = compare(evaluator.float_logits, evaluator.float_logits, labels).top1

    def drop(indices):
        return (
            top1 - compare(evaluator.logits(problem.assignment(indices)), evaluator.float_logits, labels).top1
        )

    front = problem_front(problem, "weight_mse")
    found = within_floor(study.path, problem, "weight_mse", [], FIVE, "size_bytes", Silent())
    assert (
        found["search"]["drop"] == pytest.approx(drop(found["indices"])) and found["search"]["drop"] <= 0.05
    )
    assert found["predicted"]["size_bytes"] == problem.cost(found["indices"]).size_bytes < front.costs[-1]
    assert found["assignment"] == problem.assignment(found["indices"]).to_json() and found["evaluation"][
        "images"
    ] == len(subject.splits.evaluation)
    assert 3 <= len(found["trail"]) <= 2 + len(front).bit_length()
    tried = [t for t in found["trail"] if t["cost"]["size_bytes"] < found["predicted"]["size_bytes"]]
    assert all(t["drop"] > 0.05 for t in tried)
    assert within_floor(study.path, problem, "weight_mse", [], FIVE, "size_bytes", Silent()) == found
    bops = Budget("bops", problem.cost(front.indices(len(front) - 1)).bops, "")
    both = within_floor(study.path, problem, "weight_mse", [bops], FIVE, "size_bytes", Silent())
    assert both["search"]["drop"] <= 0.05 and both["predicted"]["bops"] <= bops.limit
    assert all(drop(problem.indices(Assignment.from_json(f["assignment"]))) <= 0.05 for f in (found, both))


def test_a_drop_that_nothing_keeps_and_other_mistakes(scored, place):
    _, study, problem = scored
    tiny = [Budget("size_bytes", problem_front(problem, "weight_mse").costs[0], "")]
    with pytest.raises(InfeasibleError, match="is below the least reachable"):
        within_floor(
            study.path, problem, "weight_mse", tiny, Drop("-100", -100.0, False), "size_bytes", Silent()
        )
    with pytest.raises(OptionError, match="no costs latency_us"):
        within_floor(study.path, problem, "weight_mse", [], Drop.parse("10"), "latency_us", Silent())
    with pytest.raises(StudyError, match="There is no study"):
        within_floor(place / "nowhere", problem, "weight_mse", [], Drop.parse("10"), "size_bytes", Silent())
    assert Drop.parse("0.5%").floor(0.8, 0.01) == pytest.approx(0.796)  # of the float model's score
    assert Drop.parse("0.5").floor(0.8, 0.01) == pytest.approx(0.795)  # points
    assert Drop.parse("0.5 points").floor(-30.0, 1.0) == -30.5 and Drop.parse("10%").floor(-30.0, 1.0) == -33
    for text in ("0", "2ms", "150%", "-1", "nan"):
        with pytest.raises(BudgetError, match="is no drop"):
            Drop.parse(text)


def test_without_labels_the_share_of_changed_classes_counts(scored, monkeypatch):
    _, study, problem = scored
    monkeypatch.setattr(
        "mpsearch.pipeline.jobs.floor.load_subject",
        lambda config, progress, metric: _without_labels(load_subject(config, progress)),
    )
    found = within_floor(study.path, problem, "weight_mse", [], Drop.parse("20"), "size_bytes", Silent())
    assert (
        found["score"] == "agreement"
        and found["search"]["drop"] == pytest.approx(1 - found["search"]["score"])
        and "agreement" in found["told"]
    )


def _without_labels(subject):
    splits = replace(
        subject.splits,
        **{part: replace(getattr(subject.splits, part), labels=None) for part in ("search", "evaluation")},
    )
    return replace(subject, splits=splits, hashes={**subject.hashes, "search": "unlabelled"})


def test_the_command_line_asks_for_it(scored, monkeypatch, capsys):
    _, study, _ = scored
    monkeypatch.setattr(
        sys,
        "argv",
        ["mpsearch", "solve", str(study.path), "--max-drop", "5%", "--fix", "head=W8A8", "--format", "json"],
    )
    main()
    found = json.loads(capsys.readouterr().out)
    assert found["search"]["drop"] <= 0.05 and found["assignment"]["head"] == "W8A8"
    assert Problem.load(study.path / "problem.json")
