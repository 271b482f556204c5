"""Where a study lies, and how it is opened: by the one process that leads it, or by those that work for
it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.study import Study

from mpsearch.errors import OptionError, StudyError
from mpsearch.study.sharing.journal import busy_file, join_journal, open_journal
from mpsearch.study.sharing.pace import Pace, storage_kind

STUDY_NAME = "mpsearch"
"""Name of the one study in a journal file."""
FINISHED = "finished"
"""Attribute of a study: nothing more will come, its workers may go."""


@dataclass(frozen=True)
class Place:
    """One Optuna study.

    Args:
        url: `postgresql://...`, `sqlite:///FILE`, or the path of a journal file.
        name: Name of the study.
    """

    url: str
    name: str = STUDY_NAME


class Hold(Protocol):
    """Being the only process that leads a study."""

    def check(self) -> None:
        """Raises StudyError where another process leads by now, StorageInternalError where that cannot be
        found out.
        """


@runtime_checkable
class Listed(Protocol):
    """A storage that lists names without reading what they name."""

    def names(self) -> list[str]:
        """Names of all studies, oldest first."""


class FileHold:
    """Held by the system for as long as the process lives."""

    def check(self) -> None:
        """Nothing can have taken it."""


def check_sharing(url: str) -> None:
    """Raises OptionError for a storage that several processes must not share."""
    if storage_kind(url) == "sqlite":
        raise OptionError(
            "SQLite is for one process alone: Optuna hands one waiting trial to two workers there. "
            "Leave --storage out, which keeps a journal file that processes of one machine may share, or "
            "give postgresql://USER@HOST/DATABASE."
        )


@contextlib.contextmanager
def lead(place: Place, pace: Pace) -> Iterator[tuple[BaseStorage, Hold]]:
    """The storage of a study that no other process leads meanwhile.

    Raises:
        StudyError: Another process leads it, or the storage cannot be reached or is none.
        MissingExtraError: A driver is not installed.
    """
    kind = storage_kind(place.url)
    if kind == "journal":
        with open_journal(Path(place.url)) as storage:
            yield storage, FileHold()
        return
    from mpsearch.study.sharing.database import (
        ServerHold,
        connect,
        database_file,
    )  # SQLAlchemy is imported where a database is asked for

    held = busy_file(database_file(place.url)) if kind == "sqlite" else ServerHold(place.url, place.name)
    with held as hold, contextlib.closing(connect(place.url, pace)) as storage:
        yield storage, hold or FileHold()


def join(url: str, pace: Pace) -> BaseStorage:
    """The storage for a process that works for the study's leader; its `close`, if it has one, ends its
    connections. Raises as `lead`, but for another.
    """
    if storage_kind(url) == "journal":
        return join_journal(Path(url))
    from mpsearch.study.sharing.database import connect

    return connect(url, pace)


class Studies:
    """The studies of one run: journals in its folder, or those in a database whose name is the run's and a
    hash.

    A run makes one for each set of limits that it searches under.

    Args:
        where: Folder, or URL of a database.
        run: Name of the run.
        pace: Intervals and patience of its processes.
    """

    def __init__(self, where: str, run: str, pace: Pace) -> None:
        self.where, self.run, self._pace = where, run, pace
        self._opened: dict[str, BaseStorage] = {}
        self._studies: dict[tuple[str, str], Study] = {}

    def close(self) -> None:
        """End connections."""
        opened, self._opened = self._opened, {}
        self._studies.clear()
        for storage in opened.values():
            getattr(storage, "close", storage.remove_session)()

    def place(self, digest: str) -> Place:
        """Where the study of these inputs lies, 16 hex digits."""
        if storage_kind(self.where) == "journal":
            return Place(str(Path(self.where) / f"optuna-{digest}.log"))
        return Place(self.where, f"{self.run}-{digest}")

    def found(self) -> list[Study]:
        """Those that are there by now, oldest first; the same object for the same study."""
        if storage_kind(self.where) == "journal":
            journals = sorted(Path(self.where).glob("optuna-*.log"), key=lambda p: p.stat().st_ctime)
            return [study for path in journals for study in self._named(str(path), re.escape(STUDY_NAME))]
        return self._named(self.where, re.escape(self.run) + "-[0-9a-f]{16}")

    def finish(self, but: Place | None = None) -> None:
        """Let the workers of these studies go; all, or all but one."""
        kept = None if but is None else (but.url, but.name)
        self.found()
        for place, study in self._studies.items():
            if place != kept and not study.user_attrs.get(FINISHED):
                study.set_user_attr(FINISHED, True)

    def _join(self, url: str) -> BaseStorage:
        """As `join`, but a server that is away is waited for like one that goes away later: it may be
        starting again.
        """
        try:
            return join(url, self._pace)
        except StudyError as error:
            if storage_kind(url) != "journal" and not isinstance(
                error.__cause__, RuntimeError
            ):  # that is another version's tables
                raise StorageInternalError(str(error)) from error.__cause__
            raise

    def _named(self, url: str, pattern: str) -> list[Study]:
        storage = self._opened.get(url) or self._opened.setdefault(url, self._join(url))
        every = (
            storage.names()
            if isinstance(storage, Listed)
            else [study.study_name for study in storage.get_all_studies()]
        )
        names = [name for name in every if re.fullmatch(pattern, name)]
        for name in names:
            if (url, name) not in self._studies:  # a study keeps the finished trials that it has read
                with quiet():
                    self._studies[url, name] = optuna.load_study(study_name=name, storage=storage)
        return [self._studies[url, name] for name in names]


@contextlib.contextmanager
def hold_run(url: str, run: str) -> Iterator[None]:
    """Be the only run of this name in a database. Raises as `lead`."""
    if storage_kind(url) == "postgresql":
        from mpsearch.study.sharing.database import ServerHold

        with ServerHold(url, run):
            yield
    else:  # a file of this machine, held while it is searched
        yield


def shown(where: str) -> str:
    """A URL without its password; anything else as it is."""
    if storage_kind(where) == "journal":
        return where
    from mpsearch.study.sharing.database import without_password

    return without_password(where)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's own lines below a warning."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
