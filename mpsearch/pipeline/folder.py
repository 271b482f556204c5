"""A study's folder: settings, the results of steps named by the hash of their inputs, and a lock that dies with its holder."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpsearch import files
from mpsearch.errors import StudyError
from mpsearch.pipeline.config import RunConfig

SCHEMA = 1


class Study:
    """One folder below `studies/`.

    Args:
        path: The folder; made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.artifact, self._steps = path / "artifact", path / "steps"

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.name

    def config(self) -> RunConfig:
        """The settings it was started with. Raises StudyError where there are none."""
        try:
            data = json.loads((self.path / "study.json").read_text())
            if data["schema"] != SCHEMA:
                raise StudyError(f"{self.path} has schema {data['schema']!r}; this version of mpsearch reads {SCHEMA}. Start a new study.")
            return RunConfig.from_json(data["config"])
        except OSError:  # no file, no folder, or one that may not be read
            raise StudyError(f"There is no study in {self.path}. Name a folder that `mpsearch run` made, such as studies/NAME.") from None
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise StudyError(f"{self.path / 'study.json'} is damaged ({type(error).__name__}: {error}). Start a new study.") from None

    @property
    def begun(self) -> bool:
        """Whether some step was done; settings that ended a run before its first step, such as a slip, bind nobody."""
        return self._steps.is_dir() and (self.path / "study.json").is_file()

    def holds(self, config: RunConfig) -> bool:
        """Whether some step was done, and with these settings."""
        return self.begun and self.config() == config

    def claim(self, config: RunConfig) -> None:
        """Take the folder, which must be held, for these settings. Where steps were done another budget, or going on with estimates, may join.

        Raises: StudyError: Steps were done with other settings; names them.
        """
        if not self.begun:
            self.describe(config, {})
            return
        held = self.config()
        if replace(held, budgets=config.budgets, allow_estimate=config.allow_estimate) != config:
            ours, theirs = config.to_json(), held.to_json()
            differ = [k for k in ours if ours[k] != theirs[k] and k not in ("budgets", "allow_estimate")]
            raise StudyError(f"{self.path} holds a study with other settings ({', '.join(differ)}). Give this one another name with --name.")
        if held != config:
            self.describe(config, {})

    def describe(self, config: RunConfig, about: dict[str, Any]) -> None:
        """Write `study.json`: settings, versions, hashes."""
        files.write_json(self.path / "study.json", {"schema": SCHEMA, "config": config.to_json(), **about})

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Hold the folder; released by the system when the process dies. Raises StudyError where another process holds it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = (self.path / ".busy").open("w")
        except OSError as error:
            raise StudyError(f"{self.path} cannot be a study's folder ({error.strerror}). Name another with --name.") from None
        with held as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StudyError(f"Another process is running the study in {self.path}. Wait for it, or start one under another --name.") from None
            yield

    def cached(self, step: str, inputs: Any, compute: Callable[[], Any]) -> Any:
        """The JSON result of a step, computed once for its inputs."""
        path = self.step_path(step, inputs, ".json")
        if path.is_file():
            with contextlib.suppress(json.JSONDecodeError):  # only a damaged disk makes one: it is computed again
                return json.loads(path.read_text())
        result = compute()
        files.write_json(path, result)
        return result

    def step_path(self, step: str, inputs: Any, suffix: str) -> Path:
        """Where a step keeps its result: `steps/<step>-<hash of the inputs><suffix>`."""
        return self._steps / f"{step}-{files.digest(inputs)}{suffix}"
