"""A journal file that one explorer at a time leads and any number of workers write, kept in good order
whatever becomes of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from mpsearch import files
from mpsearch.errors import StudyError

GRACE_S = 5
_STALE_S = 2.0  # a writer holds the lock for milliseconds
_BLOCK = 1 << 16


class JournalLock(JournalFileOpenLock):
    """Optuna's lock file, behind a lock of the system, which lets go of it when a process dies however it
    dies.

    With Optuna's lock alone, two processes that wait for a dead one's lock may both take it. Whoever holds
    the system's lock knows that no other process of ours writes: it removes a lock file that a dead one left,
    and what a dead one wrote of a line.

    Args:
        path: The journal.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), grace_period=GRACE_S)
        self._path = path
        self._held: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Wait for the lock, and leave the journal ending with a whole line."""
        held = self._path.with_name(self._path.name + ".writer").open("wb")
        try:
            files.lock(held, wait=True)
            _remove_stale_lock(self._path)
            super().acquire()  # against processes that know Optuna alone, such as its dashboard
            _cut_torn_tail(self._path)
        except BaseException:
            held.close()
            raise
        self._held = held
        return True

    def release(self) -> None:
        """Let go of it."""
        held, self._held = self._held, None
        try:
            super().release()
        finally:
            if held is not None:
                held.close()


def join_journal(path: Path) -> JournalStorage:
    """The storage for a process that works for the study's explorer, beside it and beside others. Raises
    StudyError where the file is no journal.
    """
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{path} is not a journal of Optuna ({error}). Name another study, or remove the file."
        ) from None


@contextlib.contextmanager
def open_journal(path: Path) -> Iterator[JournalStorage]:
    """The storage of a study that nobody else explores meanwhile; a torn last line and a lock left by a dead
    process are removed.

    Raises:
        StudyError: Another process explores the study, or the file is not a journal.
    """
    with busy_file(path):
        lock = JournalLock(path)
        lock.acquire()  # workers may be writing
        try:
            _check_lines(path)
        finally:
            lock.release()
        yield join_journal(path)


@contextlib.contextmanager
def busy_file(path: Path) -> Iterator[None]:
    """Be the only explorer of the study in a file of this machine. Raises StudyError where another process
    is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".busy").open("w") as busy:
        if not files.lock(busy, by_process=True):
            raise StudyError(
                f"Another process is exploring {path}. Wait until it ends, stop it, or name another study."
            )
        yield


def _remove_stale_lock(path: Path) -> None:
    lock = path.with_name(path.name + ".lock")
    with contextlib.suppress(FileNotFoundError):
        if time.time() - lock.stat().st_mtime > _STALE_S:
            lock.unlink()


def _cut_torn_tail(path: Path) -> None:
    """A line is written with its newline last; what follows the last newline never counted, and the next line
    would be glued to it.
    """
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())


def _check_lines(path: Path) -> None:
    """Every line must be a record; a last one that is none was torn, newline or not, and is cut."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        lines = file.readlines()
        for number, line in enumerate(lines, start=1):
            whole = _is_record(line)
            if not whole and number < len(lines):
                raise StudyError(
                    f"Line {number} of {path} is not a record of Optuna's journal. Name another study, "
                    "or remove the line if the file is one."
                )
            if not whole:
                file.truncate(sum(map(len, lines[:-1])))
                os.fsync(file.fileno())


def _is_record(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False
