"""The folder of a study: whose it is, who holds it, and what it keeps."""

import json
import subprocess
import sys

import pytest

from mpsearch.errors import DataError, StudyError
from mpsearch.pipeline import RunConfig, run
from mpsearch.pipeline.folder import Study

HOLD = (
    "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
    "print('held', flush=True); time.sleep(60)"
)


def test_other_settings_are_refused_and_another_budget_is_not(settings, tmp_path):
    study, config = Study(tmp_path / "study"), settings()
    study.claim(config)
    study.cached("step", [], int)
    assert study.holds(config)
    for change in (
        {"seed": 1},
        {"trials": 7},
        {"target": "ort-cpu"},
        {"bits": (4, 8)},
        {"calibration_images": 17},
    ):
        with pytest.raises(StudyError, match=next(iter(change))) as caught:
            study.claim(settings(**change))
        assert "--name" in str(caught.value)
    assert study.config() == config
    assert not study.holds(settings(budgets=("3bits",)))
    study.claim(settings(budgets=("3bits",)))
    assert study.config().budgets == ("3bits",)


def test_settings_that_ended_a_run_before_its_first_step_bind_nobody(settings, tmp_path):
    study = Study(tmp_path / "study")
    with pytest.raises(DataError):
        run(settings(data=str(tmp_path / "nothere")), study)
    assert not study.holds(settings(data=str(tmp_path / "nothere")))
    study.claim(settings())
    assert study.config() == settings()


def test_settings_survive_their_file(settings):
    config = settings(model_args={"a": [1, 2]}, bits=(2, 8))
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_second_process_is_refused_until_the_first_dies(settings, tmp_path):
    study = Study(tmp_path / "study")
    study.path.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(study.path / ".busy")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StudyError, match="Another process is running"):
            run(settings(), study)
        assert sorted(p.name for p in study.path.iterdir()) == [".busy"]
    finally:
        holder.kill()
        holder.communicate()
    with study.busy():
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": 1}',
        '{"schema": 1, "config": {"budgets": ["1MB"]}}',
        '{"schema": 7, "config": {}}',
    ],
)
def test_a_damaged_study_is_one_error(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(StudyError, match=r"damaged|schema|another version"):
        Study(tmp_path).config()


def test_a_missing_study_is_named(tmp_path):
    with pytest.raises(StudyError, match=str(tmp_path / "none")):
        Study(tmp_path / "none").config()


def test_a_step_is_computed_once_for_its_inputs_and_again_when_its_file_is_damaged(tmp_path):
    study, calls = Study(tmp_path), []

    def compute():
        calls.append(1)
        return {"value": len(calls)}

    assert study.cached("step", [1], compute) == study.cached("step", [1], compute) == {"value": 1}
    assert study.cached("step", [2], compute) == {"value": 2}
    study.step_path("step", [1], ".json").write_text('{"value"')
    assert study.cached("step", [1], compute) == {"value": 3}
