"""Who measures the trials of a run: this process, processes that it starts, or workers on any number of
hosts.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from mpsearch import files
from mpsearch.errors import MpsearchError, OptionError, StudyError
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.study.sharing.pace import Pace, storage_kind
from mpsearch.study.sharing.queue import JOB, Sharing
from mpsearch.study.sharing.storage import Studies, check_sharing, hold_run, shown

_STORAGE = "storage.json"
_FAREWELL_S = 2.0


@dataclass(frozen=True)
class Crew:
    """Where the trials of a run are kept, and who measures them. The result does not depend on it.

    Args:
        storage: `postgresql://...`, which workers on other hosts reach too, or `sqlite:///FILE`; None for a
            journal in the study's folder.
        workers: Processes of this machine that measure. 1: the run's own; more: so many that it starts; 0: it
            leaves all to `mpsearch worker`.
        pace: Intervals and patience of all of them.
    """

    storage: str | None = None
    workers: int = 1
    pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise OptionError(f"workers is {self.workers}; it must be 0 or more.", ("workers",))
        if self.storage is not None and storage_kind(self.storage) == "journal":
            raise OptionError(
                f"{self.storage!r} is no URL. Give postgresql://USER@HOST/DATABASE, or leave --storage "
                "out for a journal in the study's folder."
            )
        if self.workers != 1 and self.storage is not None:
            check_sharing(self.storage)

    def studies(self, study: Study) -> Studies:
        """Where the trials of a run are."""
        return Studies(self.storage or str(study.path), study.path.name, self.pace)

    def team(self, study: Study, progress: Progress) -> Team:
        """The processes that measure for a run, to be entered while it searches."""
        return Team(self, study, progress)

    @contextlib.contextmanager
    def held(self, study: Study, config: RunConfig) -> Iterator[None]:
        """Be the only run of this name in the storage, with these settings.

        Raises:
            StudyError: Another process runs it; it has other settings there; or its trials are in another
                storage than this one.
        """
        self._remember(study)
        if self.storage is None:
            yield
            return
        with hold_run(self.storage, study.path.name), contextlib.closing(self.studies(study)) as studies:
            for job in (s.user_attrs.get(JOB) for s in studies.found()):
                if (
                    job is not None
                    and replace(RunConfig.from_json(job["config"]), budgets=config.budgets) != config
                ):
                    raise StudyError(
                        f"{shown(self.storage)} holds a study {study.path.name!r} with other settings. "
                        "Give this one another name with --name."
                    )
            yield

    def _remember(self, study: Study) -> None:
        """A run that went on without its trials would measure them all again."""
        path, now = study.path / _STORAGE, None if self.storage is None else shown(self.storage)
        held = json.loads(path.read_text())["storage"] if path.is_file() else None
        if held is not None and held != now:
            raise StudyError(
                f"The trials of {study.path} are in {held}. Give it with --storage, or start another "
                "study with --name."
            )
        if held is None and now is not None:
            files.write_json(path, {"storage": now})


class Team:
    """The worker processes that a run starts; they end with it, however it ends.

    Args:
        crew: How many, and where they find the trials.
        study: Study of the run; `workers/` below it keeps what they say.
        progress: Where progress goes.
    """

    def __init__(self, crew: Crew, study: Study, progress: Progress) -> None:
        self._crew, self._study, self._progress = crew, study, progress
        self._count = crew.workers if crew.workers > 1 else 0
        self._replaced = 0
        self._running: dict[int, tuple[subprocess.Popen[str], IO[str]]] = {}

    def __enter__(self) -> Team:
        for number in range(self._count):
            self._start(number)
        return self

    def __exit__(self, *_: object) -> None:
        for process, _log in self._running.values():
            if process.stdin is not None:
                process.stdin.close()  # tells it to end
        for number in list(self._running):
            self._end(number)

    def _end(self, number: int) -> int:
        process, log = self._running.pop(number)
        if process.stdin is not None:
            process.stdin.close()
        try:
            code = process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            process.kill()  # still importing, perhaps: nothing that it holds counts any more
            code = process.wait()
        log.close()
        return code

    def sharing(self, job: dict[str, Any] | None) -> Sharing:
        """For `explore`."""
        return Sharing(self._crew.workers == 1, job, self.watch, self._crew.pace, self._progress.say)

    def watch(self) -> None:
        """Replace a worker that was killed. Raises MpsearchError where one failed, or too many were
        killed.
        """
        for number in [n for n, (process, _) in self._running.items() if process.poll() is not None]:
            code = self._end(number)
            if code > 0 or self._replaced >= 3 * self._count:
                raise MpsearchError(
                    f"Worker {number + 1} ended with code {code}: {self._last_words(number)} More in "
                    f"{self._log(number)}."
                )
            self._replaced += 1
            self._progress.say(f"Worker {number + 1} was killed (signal {-code}); another takes its place.")
            self._start(number)

    def _start(self, number: int) -> None:
        threads = str(max(1, (os.cpu_count() or 1) // self._count))
        self._log(number).parent.mkdir(parents=True, exist_ok=True)
        log = self._log(number).open("a")
        process = subprocess.Popen(
            [sys.executable, "-m", "mpsearch.pipeline.workers.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            env={
                "OMP_NUM_THREADS": threads,
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        self._running[number] = process, log
        order = {
            "where": self._crew.storage or str(self._study.path),
            "run": self._study.path.name,
            "pace": asdict(self._crew.pace),
        }
        if process.stdin is not None:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()

    def _log(self, number: int) -> Path:
        return self._study.path / "workers" / f"worker-{number + 1}.log"

    def _last_words(self, number: int) -> str:
        lines = self._log(number).read_text().strip().splitlines()
        return lines[-1] if lines else "it said nothing."
