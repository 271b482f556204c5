"""A process that measures for a run, on this host or any other: the same model, images and quantisers, or
none.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mpsearch
from mpsearch.accelerator import exact_float32, find_device
from mpsearch.errors import MpsearchError, StudyError
from mpsearch.evaluate import FastEvaluator
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress, Silent
from mpsearch.pipeline.steps.learned import searched_calibration, states_digest
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Problem
from mpsearch.study.sharing.pace import Pace
from mpsearch.study.sharing.queue import JOB, Measure, Worker
from mpsearch.study.sharing.storage import Studies, check_sharing, shown

LOCATIONS = ("model", "weights", "data", "calibration_data", "class_map")
"""Settings that may differ from host to host; what is found there may not."""
_ADVICE = {
    "weights": "Give the same weights with --model or --weights",
    "calibration": "Give the same images with --data or --calibration-data",
    "search": "Give the same images with --data or --calibration-data",
}


@exact_float32()
def work(
    where: str,
    run: str,
    locations: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    pace: Pace | None = None,
    wait_s: float | None = None,
    on_trial: Callable[[int], None] | None = None,
) -> int:
    """Measure trials of a run until it is finished.

    Args:
        where: `postgresql://...`, or the run's folder where its trials are in a journal.
        run: Name of the run.
        locations: Settings of `LOCATIONS` that differ on this host, and `device` where it is another one.
        progress: Where progress goes.
        pace: Intervals and patience, the same as the run's.
        wait_s: Seconds in which the run must have begun to search; None for ever.
        on_trial: Called with how many were measured.
    Returns: How many trials it measured.

    Raises:
        OptionError: A storage that must not be shared.
        StudyError: No such run, or another model, other images or another version here.
    """
    progress, pace = progress or Silent(), pace or Pace()
    check_sharing(where)
    with contextlib.closing(Studies(where, run, pace)) as studies:
        _wait(studies, pace, wait_s, progress)
        return Worker(
            studies.found,
            _Bench(locations or {}, Path(where) if Path(where).is_dir() else None, progress).prepare,
            pace,
            progress.say,
        ).run(on_trial)


def _wait(studies: Studies, pace: Pace, wait_s: float | None, progress: Progress) -> None:
    since = time.monotonic()
    while not any(JOB in study.user_attrs for study in pace.patiently(studies.found, progress.say)):
        if wait_s is not None and time.monotonic() - since > wait_s:
            raise StudyError(
                f"No search of a study {studies.run!r} has begun in {shown(studies.where)} within "
                f"{wait_s:.0f} s. "
                "Start it with `mpsearch run`, or correct --study and --storage; --wait waits longer."
            )
        time.sleep(pace.poll_s)


class _Bench:
    """The evaluator of a run, made once.

    Args:
        locations: See `work`.
        folder: Folder of the run, whose learned states are read from it; None: they are learned here again,
            which must give the same.
        progress: Where progress goes.
    """

    def __init__(self, locations: Mapping[str, str], folder: Path | None, progress: Progress) -> None:
        self._locations, self._folder, self._progress = locations, folder, progress
        self._made: tuple[Workshop, FastEvaluator] | None = None

    def prepare(self, job: Mapping[str, Any]) -> Measure:
        """The loss of L choices, as the run would measure it."""
        if job["version"] != mpsearch.__version__:
            raise StudyError(
                f"The study was started by mpsearch {job['version']}; here is {mpsearch.__version__}. "
                "Install the same version here."
            )
        problem = Problem.from_json(job["problem"])
        _, evaluator = self._made = self._made or self._make(job, problem)
        return lambda indices: evaluator.measure(problem.assignment(indices))

    def _make(self, job: Mapping[str, Any], problem: Problem) -> tuple[Workshop, FastEvaluator]:
        config = RunConfig.from_json({**job["config"], **self._locations})
        _require_same_device(job["config"]["device"], config.device)
        subject = load_subject(config, self._progress)
        for part, advice in _ADVICE.items():
            if subject.hashes[part] != job["hashes"][part]:
                what = "weights" if part == "weights" else f"{part} images"
                raise StudyError(
                    f"The {what} here have the hash {subject.hashes[part]}, those of the study "
                    f"{job['hashes'][part]}. {advice}."
                )
        with contextlib.ExitStack() as stack:
            folder = self._folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            study = Study(folder)
            made = calibrate_subject(subject, config, self._progress, study)
            workshop = Workshop(subject, made, config, study, self._progress)
            calibration = searched_calibration(problem, workshop)
        if states_digest(calibration) != job["states"]:
            raise StudyError(
                "What was learned here for the search is not what the run learned; another processor or "
                "library adds in another order. "
                "Give the run --search-states nearest, or let this worker read the run's folder."
            )
        here = subject.placed
        return workshop, FastEvaluator(here.module, calibration, here.search, task=workshop.task)


def _require_same_device(theirs: str, ours: str) -> None:
    """Raises StudyError where this worker would compute on another kind of device than the run."""
    kind = find_device(ours).type
    if kind != theirs.partition(":")[0]:
        raise StudyError(
            f"The run computes on {theirs}, and this worker would on {kind}, which adds in another order, so "
            f"the losses would differ. Give the worker --device {theirs.partition(':')[0]}, or the run "
            f"--device {kind}."
        )


def _serve_parent() -> int:
    """For a run that starts its workers itself: one line on stdin says where, and its end is that of the
    run.
    """
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(order["where"], order["run"], pace=Pace(**order["pace"]))
    except MpsearchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)  # a trial that is being measured is tried again by whoever goes on


if __name__ == "__main__":
    sys.exit(_serve_parent())
