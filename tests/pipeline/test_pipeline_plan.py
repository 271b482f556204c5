"""The plan of a run: named efforts, the pace of a machine, and what a time limit leaves room for."""

import dataclasses
import json
import time

import pytest

import mpsearch
from mpsearch.efforts import EFFORTS, format_duration, parse_duration
from mpsearch.errors import OptionError, UnknownNameError
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.steps.clock import Clock
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.pace import Pace, measure_pace
from mpsearch.pipeline.steps.plan import FEWEST, decided, make_plan

PACE = Pace(0.01, 1e-9, 1e-11, 10**6, 20, 10**6, 5000, 10**9, 10**9)


class Told:
    """Progress that remembers what was said."""

    def __init__(self):
        self.lines = []

    def task(self, label):
        return mpsearch.pipeline.Silent().task(label)

    def say(self, text):
        self.lines.append(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5 h", 5400), ("2m", 120)])
def test_times_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["10", "ten minutes", "3s", "-5min", "10 MB"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(OptionError):
        parse_duration(text)


def test_times_are_told_in_units_that_people_use():
    assert [format_duration(s) for s in (0.2, 95, 600, 9000)] == ["1 s", "95 s", "10 min", "2.5 h"]


def test_an_unknown_effort_is_refused(settings):
    with pytest.raises(UnknownNameError, match="quick"):
        settings(effort="fast")


def test_without_a_limit_the_effort_decides(settings):
    config = settings(trials=None, polish=None, effort="thorough")
    found = decided(PACE, config, (100, 200, 300), None)
    wanted = EFFORTS["thorough"]
    assert found["kept_images"] == [100, 200, 300] and found["finalists"] == 6
    assert (found["trials"], found["polish"], found["iterations"]) == (wanted.trials, wanted.polish, 20)


@pytest.mark.parametrize("seconds", [60, 120, 300])
def test_a_limit_is_kept_by_the_plan_and_no_more_is_given_up_than_needed(settings, seconds):
    config = settings(trials=None, polish=None)
    there = (512, 256, 2000)
    found = decided(PACE, config, there, seconds)
    tried = dataclasses.replace(config, trials=found["trials"], polish=found["polish"])
    plan = make_plan(PACE, tried, tuple(found["kept_images"]), finalists=found["finalists"])
    assert 0.5 * seconds < plan.seconds <= seconds
    assert all(least <= n <= most for least, n, most in zip(FEWEST, found["kept_images"], there, strict=True))


def test_a_method_that_learns_is_planned_for_and_takes_fewer_steps_under_a_limit(settings):
    there = (256, 256, 500)
    closed, learned = (
        settings(trials=None, polish=None, method=name, iterations=1000) for name in ("gptq", "qdrop")
    )
    assert make_plan(PACE, learned, there).seconds > 2 * make_plan(PACE, closed, there).seconds
    found = decided(PACE, learned, there, 600)
    assert 20 <= found["iterations"] < 1000
    assert decided(PACE, closed, there, 600)["iterations"] == 1000


def test_many_evaluation_images_do_not_starve_the_search(settings):
    calibration, search, evaluation = decided(PACE, settings(), (256, 256, 50_000), 300)["kept_images"]
    assert calibration == search == 256 and 64 <= evaluation < 5_000


def test_what_cannot_fit_is_refused_with_what_it_takes(settings):
    with pytest.raises(OptionError, match=r"--time-limit 10s leaves 8 s"):
        decided(dataclasses.replace(PACE, forward=1.0), settings(time_limit="10s"), (512, 256, 2000), 8.0)


def test_the_pace_counts_what_the_model_has(settings):
    subject = load_subject(settings(), mpsearch.pipeline.Silent())
    pace = measure_pace(subject.module, subject.graph, subject.splits.calibration)
    layers = [layer for layer in subject.graph.layers if layer.weight_shape]
    assert pace.units == len(layers) and pace.weights == sum(layer.weight_numel for layer in layers)
    assert min(pace.forward, pace.copy, pace.multiply) > 0


def test_quick_measures_no_trials_and_tells_its_plan(settings, tmp_path):
    told = Told()
    found = run(
        settings(trials=None, polish=None, effort="quick", target="packed"), Study(tmp_path / "s"), told
    )
    labels = [row["label"] for row in found["rows"]]
    assert labels[0] == "float" and labels[-1].startswith("exact optimum") and len(labels) <= 3
    assert json.loads((tmp_path / "s" / "front.json").read_text())["measured"] == []
    (plan,) = [line for line in told.lines if line.startswith("Plan")]
    assert "in all" in plan and "trials" not in plan
    assert found["plan"]["took_s"] > 0 and found["plan"]["seconds"] > 0


def test_a_limited_run_keeps_fewer_images_and_says_so_in_the_study(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mpsearch.pipeline.steps.plan.measure_pace", lambda *_: dataclasses.replace(PACE, forward=0.06)
    )
    monkeypatch.setattr("mpsearch.pipeline.steps.plan.FEWEST", (8, 8, 8))
    study = Study(tmp_path / "s")
    config = settings(target="packed", time_limit="60s")
    found = run(config, study)
    kept = study.settled().kept_images
    splits = json.loads((study.path / "study.json").read_text())["splits"]["parts"]
    assert [splits[name]["images"] for name in ("calibration", "search", "evaluation")] == list(kept)
    assert study.config() == config and found["best"]["metrics"]["images"] == kept[2]
    assert (
        load_subject(study.settled(), mpsearch.pipeline.Silent()).hashes["search"]
        == splits["search"]["content_hash"]
    )


def test_when_time_is_up_the_first_finalist_is_what_is_delivered(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "allows", lambda self, seconds: False)
    told, study = Told(), Study(tmp_path / "s")
    found = run(settings(target="packed", time_limit="10min"), study, told)
    assert found["best"]["label"].startswith("exact optimum")
    assert sum("reconstructed" in row for row in found["rows"]) == 1
    assert any("no room" in line for line in told.lines)
    assert (study.artifact / "model.safetensors").stat().st_size == found["best"]["measured"]["size_bytes"]


def test_what_was_asked_for_is_delivered_however_little_time_there_is(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "allows", lambda self, seconds: False)
    asked = {"budgets": (), "assign": "coding_length", "bits": (3, 4, 5, 6)}
    found = run(settings(target="packed", time_limit="10min", **asked), Study(tmp_path / "s"))
    assert found["best"]["reason"].startswith("asked for by --assign")
    assert (tmp_path / "s" / "artifact" / "model.safetensors").is_file()


def test_the_first_finalist_is_on_disk_before_the_second_is_begun(settings, tmp_path, monkeypatch):
    study, seen = Study(tmp_path / "s"), []
    before = mpsearch.pipeline.steps.workshop.Workshop.reconstructed

    def watched(self, *args, **kwargs):
        seen.append((study.artifact / "artifact.json").is_file())
        return before(self, *args, **kwargs)

    monkeypatch.setattr(mpsearch.pipeline.steps.workshop.Workshop, "reconstructed", watched)
    run(settings(target="packed", time_limit="10min"), study)
    assert seen[0] is False and all(seen[1:]) and len(seen) > 1


def test_a_clock_adds_what_a_step_takes_and_knows_its_limit():
    clock = Clock(100.0, time.monotonic() - 90.0)
    assert clock.allows(5.0) and not clock.allows(20.0) and Clock().allows(1e9)
    for _ in range(2):
        with clock.step("one"):
            time.sleep(0.01)
    assert clock.took["one"] >= 0.02
