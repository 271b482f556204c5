"""A study's folder: settings, the results of steps named by the hash of their inputs, and a lock that dies
with its holder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpsearch import files
from mpsearch.accelerator import describe_device, find_device
from mpsearch.errors import StudyError
from mpsearch.named import no_study
from mpsearch.pipeline.config import RunConfig

SCHEMA = 1
_RESULTS = ("artifact", "results.json", "report.html", "front.json", "front.csv", "best.json")
"""What a run has to show; best.json is moved last, as it says whose they are."""
_MAY_JOIN = ("budgets", "allow_estimate", "metric", "max_drop")
"""Settings that a study which has begun may be given anew; no step that it holds depends on them unseen."""


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
        """Name of the folder."""
        return self.path.name

    def config(self) -> RunConfig:
        """The settings it was started with. Raises StudyError where there are none."""
        try:
            data = json.loads((self.path / "study.json").read_text())
            if data["schema"] != SCHEMA:
                raise StudyError(
                    f"{self.path} has schema {data['schema']!r}; this version of mpsearch reads "
                    f"{SCHEMA}. Start a new study."
                )
            return RunConfig.from_json(data["config"])
        except OSError:  # no file, no folder, or one that may not be read
            raise no_study(self.path) from None
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise StudyError(
                f"{self.path / 'study.json'} is damaged ({type(error).__name__}: {error}). Start a new study."
            ) from None

    def settled(self) -> RunConfig:
        """The settings with what its plan decided of them. Raises as `config`."""
        given = self.config()
        held = json.loads((self.path / "study.json").read_text()).get("settled")
        return given if held is None else RunConfig.from_json(held)

    @property
    def begun(self) -> bool:
        """Whether some step was done; settings that ended a run before its first step, such as a slip, bind
        nobody.
        """
        return self._steps.is_dir() and (self.path / "study.json").is_file()

    def holds(self, config: RunConfig) -> bool:
        """Whether some step was done, and with these settings."""
        return self.begun and self.config() == config

    def claim(self, config: RunConfig) -> str:
        """Take the folder, which must be held, for these settings. Where steps were done another budget,
        drop or metric, going on with estimates, or another device, may join.

        Returns: Type of the device that did those steps, or of the one that will.

        Raises:
            StudyError: Steps were done with other settings; names them.
            OptionError: The device is not there.
        """
        device = describe_device(find_device(config.device))
        if not self.begun:
            self.describe(config, {"device": device})
            return device["type"]
        held, before = self.config(), self.device()
        self._require_same(config)
        if held != config or held.device != config.device or before != device:
            self.describe(config, {"device": device})
        return before["type"]

    def require_usable(self, config: RunConfig) -> None:
        """What a run would refuse of this folder, without taking it: nothing is written.

        Raises: StudyError: It is no folder, or steps were done in it with other settings.
        """
        blocking = next((p for p in (self.path, *self.path.parents) if p.exists() and not p.is_dir()), None)
        if blocking is not None:
            raise self._unusable(os.strerror(errno.EEXIST if blocking == self.path else errno.ENOTDIR))
        if self.begun:
            self._require_same(config)

    def _require_same(self, config: RunConfig) -> None:
        held = self.config()
        joined = {name: getattr(config, name) for name in _MAY_JOIN}
        if replace(held, **joined) != config:
            ours, theirs = config.to_json(), held.to_json()
            differ = [k for k in ours if ours[k] != theirs[k] and k not in (*_MAY_JOIN, "device")]
            raise StudyError(
                f"{self.path} holds a study with other settings ({', '.join(differ)}). Give this one "
                "another name with --name."
            )

    def _unusable(self, why: str | None) -> StudyError:
        return StudyError(f"{self.path} cannot be a study's folder ({why}). Name another with --name.")

    def describe(self, config: RunConfig, about: dict[str, Any]) -> None:
        """Write `study.json`: settings, versions, hashes."""
        files.write_json(self.path / "study.json", {"schema": SCHEMA, "config": config.to_json(), **about})

    def device(self) -> dict[str, str]:
        """What computed it, as `study.json` says: `type`, and the name of a GPU; a CPU where it does not."""
        try:
            found: dict[str, str] = json.loads((self.path / "study.json").read_text())["device"]
        except (OSError, ValueError, KeyError):  # none, or of a version that had the CPU alone
            return {"type": "cpu"}
        return found

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Hold the folder; released by the system when the process dies. Raises StudyError where another
        process holds it.
        """
        fresh = [place for place in (self.path, *self.path.parents) if not place.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = (self.path / ".busy").open("w")
        except OSError as error:
            raise self._unusable(error.strerror) from None
        with held as lock, files.writing(self.path):
            if not files.lock(lock):
                raise StudyError(
                    f"Another process is running the study in {self.path}. Wait for it, or start one "
                    "under another --name."
                )
            try:
                yield
            except Exception:
                if not self._steps.exists():
                    self._remove(fresh)
                raise

    def _remove(self, fresh: Sequence[Path]) -> None:
        """Leave nothing of a study that failed before its first step: the folders that were made for it, as
        long as nothing else is in them.
        """
        if fresh:
            shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            for place in fresh[1:]:
                place.rmdir()

    def set_aside(self, asked: Sequence[str]) -> Path | None:
        """Move the artifact, the results and the report of other budgets to `earlier/<budgets>/`, so that
        nothing is replaced without a word.

        Args:
            asked: Budgets of what is to be written now, as typed, and its drop (`RunConfig.asked`); results
                of the same are left to be replaced.

        Returns: Where they are now; None where there are none of other budgets.
        """
        try:
            best = json.loads((self.path / "best.json").read_text())
            before = [b["text"] for b in best["budgets"]]
            before += [f"{best['drop']['text']} drop"] if best.get("drop") else []
        except (OSError, ValueError, KeyError, TypeError):  # nothing finished, which nobody misses
            return None
        if before == list(asked):
            return None
        place = self.path / "earlier" / re.sub(r"[^A-Za-z0-9.%_-]+", "-", "-".join(before))
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for name in _RESULTS:
            if (self.path / name).exists():
                (self.path / name).rename(place / name)
        for name in ("best.json", "results.json", "report.html"):  # they name the files of the artifact
            if (place / name).is_file():
                files.write_text(
                    place / name,
                    (place / name)
                    .read_text(encoding="utf-8")
                    .replace(str(self.artifact), str(place / "artifact")),
                )
        return place

    def cached(self, step: str, inputs: Any, compute: Callable[[], Any]) -> Any:
        """The JSON result of a step, computed once for its inputs."""
        path = self.step_path(step, inputs, ".json")
        if path.is_file():
            with contextlib.suppress(
                json.JSONDecodeError
            ):  # only a damaged disk makes one: it is computed again
                return json.loads(path.read_text())
        result = compute()
        files.write_json(path, result)
        return result

    def step_path(self, step: str, inputs: Any, suffix: str) -> Path:
        """Where a step keeps its result: `steps/<step>-<hash of the inputs><suffix>`."""
        return self._steps / f"{step}-{files.digest(inputs)}{suffix}"
