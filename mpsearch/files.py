"""Writing so that nothing is ever half-written: beside the target first, then a rename; and the system's
locks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mpsearch.errors import MpsearchError

_unix: Any = None
with contextlib.suppress(ImportError):  # Windows has no such module, and locks of its own
    import fcntl

    _unix = fcntl

_AGAIN_S = 0.01
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room there, or name another folder."),
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f).",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "Give the right to write there, or name another folder."
    ),
    **dict.fromkeys(
        (errno.ENOLCK, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENAMETOOLONG, errno.ENOTDIR),
        "Name another folder.",
    ),
}
"""What the system says of a disk, a limit or a permission -> what to do about it."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one message what could not be written, where the system refuses. Raises MpsearchError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise MpsearchError(refusal(error, path)) from None


def refusal(error: OSError, path: Path | None = None) -> str:
    """One sentence on what the system refused, and what to do."""
    place = path or error.filename or tempfile.gettempdir()
    remedy = _REMEDIES.get(error.errno or 0, "Check the path, and the disk.")
    return f"{place} cannot be written or read ({error.strerror or error}). {remedy}"


def lock(file: IO[Any], *, wait: bool = False, by_process: bool = False) -> bool:
    """Take the system's lock of an open file, of which the system lets go when the process dies, however it
    dies.

    Args:
        file: Open for writing.
        wait: Wait for another holder to let go.
        by_process: Whether the process holds it (`lockf`), not the open file (`flock`). Windows has one kind.

    Returns: Whether it was free; always, where it waits.

    Raises: MpsearchError: The file system has no locks.
    """
    try:
        if _unix is None:
            _lock_on_windows(file, wait)
        else:
            by = _unix.lockf if by_process else _unix.flock
            by(file, _unix.LOCK_EX | (0 if wait else _unix.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise MpsearchError(
            f"{file.name} cannot be locked ({error.strerror}), and without locks two processes could "
            "write the same study or "
            "table at once. Use a folder on a file system that has locks, such as a local disk."
        ) from None
    return True


def _lock_on_windows(file: IO[Any], wait: bool) -> None:
    """Lock the first byte, which may be beyond the end. Raises OSError where another holds it."""
    msvcrt = importlib.import_module("msvcrt")  # type checkers know it on Windows alone
    file.seek(0)
    while True:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if not wait or error.errno not in (errno.EACCES, errno.EDEADLK):
                raise
            time.sleep(_AGAIN_S)
        else:
            return


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; renamed to `path` if the body succeeds, removed if not.

    Raises: MpsearchError: The disk is full, a limit is reached, or it may not be written there; says where.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        with _renamed(Path(name), path) as beside:
            yield beside


@contextlib.contextmanager
def _renamed(beside: Path, path: Path) -> Iterator[Path]:
    try:
        yield beside
        with beside.open("rb+") as written:  # Windows writes out what may be written alone
            os.fsync(written.fileno())
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file whole or not at all. NaN and infinity are refused: JSON has none."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def digest(data: Any) -> str:
    """First 16 hex digits of the SHA-256 of canonical JSON: the name of a step's inputs."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
