"""A journal file that one explorer at a time writes, opened in good order whatever became of the last one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from mpsearch.errors import StudyError

GRACE_S = 5
_STALE_S = 2.0  # a writer holds the lock for milliseconds


@contextlib.contextmanager
def open_journal(path: Path) -> Iterator[JournalStorage]:
    """The storage of a study that nobody else explores meanwhile; a torn last line and a lock left by a dead process are removed.

    Raises:
        StudyError: Another process explores the study, or the file is not a journal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".busy").open("w") as busy:
        try:
            fcntl.lockf(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when the process dies, however it dies
        except OSError:
            raise StudyError(f"Another process is exploring {path}. Wait until it ends, stop it, or name another study.") from None
        _remove_stale_lock(path)
        _cut_torn_line(path)
        yield JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path), grace_period=GRACE_S)))


def _remove_stale_lock(path: Path) -> None:
    lock = path.with_name(path.name + ".lock")
    with contextlib.suppress(FileNotFoundError):
        if time.time() - lock.stat().st_mtime > _STALE_S:
            lock.unlink()


def _cut_torn_line(path: Path) -> None:
    """A line is written with its newline last, so only the last can be torn; what follows the last newline never counted."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        lines = file.readlines()
        for number, line in enumerate(lines, start=1):
            whole = _is_record(line)
            if not whole and number < len(lines):
                raise StudyError(f"Line {number} of {path} is not a record of Optuna's journal. Name another study, or remove the line if the file is one.")
            if not whole:
                file.truncate(sum(map(len, lines[:-1])))
                os.fsync(file.fileno())


def _is_record(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False
