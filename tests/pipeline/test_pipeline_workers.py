"""A run whose trials other processes measure: the same result, and no worker with another model, other images
or another version.
"""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mpsearch
from mpsearch.errors import ModelError, MpsearchError, OptionError, StudyError
from mpsearch.pipeline import run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Silent
from mpsearch.pipeline.workers.crew import Crew, Team
from mpsearch.pipeline.workers.worker import work
from mpsearch.study.sharing.pace import Pace
from mpsearch.study.sharing.queue import JOB
from mpsearch.study.sharing.storage import FINISHED

PACE = Pace(poll_s=0.05, beat_s=1, grace_s=5, patience_s=30)


def outcome(study):
    best, front = (json.loads((study.path / name).read_text()) for name in ("best.json", "front.json"))
    return (
        best["assignment"],
        best["metrics"],
        [(t["number"], t["indices"], t["loss"], t["proposed_by"]) for t in front["measured"]],
    )


@pytest.fixture(scope="module")
def one_thread():
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # sums of floats depend on how many share them
    yield
    if before is None:
        del os.environ["OMP_NUM_THREADS"]


@pytest.fixture
def settled(settings, tmp_path):
    """A finished run, the run's folder being a study of its own: its journal holds a job."""
    study = Study(tmp_path / "alone")
    run(settings(iterations=0), study, crew=Crew(pace=PACE))
    return study


def job_of(study):
    with contextlib.closing(Crew(pace=PACE).studies(study)) as studies:
        (held,) = studies.found()
        return held.user_attrs


def change_job(study, **changes):
    with contextlib.closing(Crew(pace=PACE).studies(study)) as studies:
        (held,) = studies.found()
        held.set_user_attr(JOB, {**held.user_attrs[JOB], **changes})
        held.set_user_attr(FINISHED, False)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_factory_of_random_weights_is_refused_before_anything_is_shared(
    place, settings, tmp_path, monkeypatch, workers
):
    (place / "unseeded.py").write_text(
        (place / "nets.py").read_text().replace("torch.manual_seed(0)", "torch.seed()")
    )
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a worker was started"))
    study = Study(tmp_path / "unseeded")
    with pytest.raises(ModelError, match=r"random weights each time.*--weights"):
        run(settings(model=f"{place / 'unseeded.py'}:make"), study, crew=Crew(workers=workers, pace=PACE))
    assert not study.begun


@pytest.mark.slow
def test_two_workers_that_the_run_starts_give_what_it_gives_alone(one_thread, settings, settled, tmp_path):
    study = Study(tmp_path / "shared")
    killed = []

    class Killing(Silent):
        """Kills a worker as soon as a trial is done."""

        @contextlib.contextmanager
        def task(self, label):
            def advance(done, total=None):
                if label == "search on the measured loss" and not killed:
                    killed.append(_children()[0])
                    os.kill(killed[0], signal.SIGKILL)

            yield advance

    run(settings(iterations=0), study, Killing(), Crew(workers=2, pace=PACE))
    assert outcome(study) == outcome(settled)
    assert len(killed) == 1 and not _children()
    with contextlib.closing(Crew(pace=PACE).studies(study)) as studies:
        (held,) = studies.found()
        owners = {t.user_attrs["owner"]["pid"] for t in held.trials}
        assert held.user_attrs[FINISHED] and os.getpid() not in owners


def _children():
    """Processes that this one started as workers."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            ours = entry.name.isdigit() and f"PPid:\t{os.getpid()}\n" in (entry / "status").read_text()
            if ours and "mpsearch.pipeline.workers.worker" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return sorted(found)


def test_a_worker_joins_a_run_that_leaves_all_to_others(settings, settled, tmp_path):
    study, ended = Study(tmp_path / "joined"), []
    elsewhere = tmp_path / "elsewhere.npz"
    shutil.copy(settings().data, elsewhere)
    process = threading.Thread(
        target=lambda: ended.append(work(str(study.path), "joined", {"data": str(elsewhere)}, pace=PACE))
    )
    process.start()
    run(settings(iterations=0), study, crew=Crew(workers=0, pace=PACE))
    process.join(60)
    assert outcome(study) == outcome(settled)
    assert ended == [6]


def test_a_worker_with_something_else_is_refused(settings, settled, tmp_path):
    job = job_of(settled)[JOB]
    assert job["version"] == mpsearch.__version__ and job["hashes"]["weights"]
    other = tmp_path / "other.npz"
    pixels = np.load(settings().data)
    np.savez(other, x=255 - pixels["x"], y=pixels["y"])
    change_job(settled)
    with pytest.raises(
        StudyError, match=r"calibration images here have the hash .* Give the same images with --data"
    ):
        work(str(settled.path), "alone", {"data": str(other)}, pace=PACE)
    nets = tmp_path / "nets.py"
    nets.write_text(
        (tmp_path / settings().model.partition(":")[0])
        .read_text()
        .replace("manual_seed(0)", "manual_seed(1)")
    )
    with pytest.raises(
        StudyError, match=r"weights here have the hash .* Give the same weights with --model or --weights"
    ):
        work(str(settled.path), "alone", {"model": f"{nets}:make"}, pace=PACE)
    change_job(settled, version="0.0.9")
    with pytest.raises(StudyError, match=r"started by mpsearch 0\.0\.9; here is .* Install the same version"):
        work(str(settled.path), "alone", pace=PACE)


def test_a_worker_waits_for_its_run_and_says_so_in_the_end(tmp_path):
    with pytest.raises(StudyError, match=r"No search of a study 'none' has begun .* within 0 s.*--wait"):
        work(str(tmp_path), "none", pace=PACE, wait_s=0.1)
    with pytest.raises(OptionError, match="hands one waiting trial to two workers"):
        work(f"sqlite:///{tmp_path}/trials.db", "none", pace=PACE)


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_run_with_its_words(tmp_path):
    study = Study(tmp_path / "study")
    study.path.mkdir()
    (study.path / "optuna-0000000000000000.log").write_text("no journal\n" * 2)
    with (
        pytest.raises(
            MpsearchError,
            match=r"Worker \d ended with code 2: .* is not a journal .* More in .*worker-\d.log",
        ),
        Team(Crew(workers=2, pace=PACE), study, Silent()) as team,
    ):
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            team.watch()
            time.sleep(0.1)


def test_what_a_crew_cannot_be(tmp_path):
    with pytest.raises(OptionError, match="hands one waiting trial to two workers"):
        Crew(f"sqlite:///{tmp_path}/trials.db", workers=2)
    with pytest.raises(OptionError, match=r"mysql:/\.\.\. is not a storage"):
        Crew("mysql://host/database")
    with pytest.raises(OptionError, match="is no URL"):
        Crew("trials.log")
    with pytest.raises(OptionError, match="must be 0 or more"):
        Crew(workers=-1)


def test_sqlite_serves_a_run_that_measures_by_itself_and_is_asked_for_again(settings, settled, tmp_path):
    study, url = Study(tmp_path / "alone2"), f"sqlite:///{tmp_path}/trials.db"
    run(settings(iterations=0), study, crew=Crew(url, pace=PACE))
    assert outcome(study) == outcome(settled)
    with pytest.raises(
        StudyError, match=r"The trials of .*alone2 are in sqlite:///.*trials.db. Give it with --storage"
    ):
        run(settings(iterations=0), study)
    other = Study(tmp_path / "again" / "alone2")
    with pytest.raises(StudyError, match="holds a study 'alone2' with other settings"):
        run(replace(settings(iterations=0), seed=5), other, crew=Crew(url, pace=PACE))
