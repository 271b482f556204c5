"""Studies in a database: the storage that Optuna keeps there, and the server's own lock for the process that
leads one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from mpsearch.errors import MissingExtraError, OptionError, StudyError
from mpsearch.study.sharing.pace import Pace, storage_kind

_ALIVE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""libpq's settings; a host that fell silent is noticed after a minute instead of hours."""
_FORGET_S = 90.0
"""After which a server has noticed that our own last connection is gone."""


class DatabaseStorage(RDBStorage):
    """Optuna's storage, which can be closed."""

    def close(self) -> None:
        """End every connection of this process."""
        self.remove_session()
        self.engine.dispose()

    def names(self) -> list[str]:
        """Names of all studies, oldest first; Optuna's own listing reads every attribute of every study."""
        try:
            with self.engine.connect() as connection:
                return list(
                    connection.execute(text("SELECT study_name FROM studies ORDER BY study_id")).scalars()
                )
        except DBAPIError as error:
            raise StorageInternalError("The studies could not be listed.") from error


def connect(url: str, pace: Pace) -> DatabaseStorage:
    """Optuna's storage, its tables made where they are missing, with heartbeats on.

    Raises:
        OptionError: The URL cannot be read.
        MissingExtraError: No driver for PostgreSQL is installed.
        StudyError: The server cannot be reached, or refuses.
    """
    address = _address(url)
    options: dict[str, Any] = {"pool_pre_ping": True, "connect_args": _connect_args(address)}
    if storage_kind(url) == "sqlite":
        database_file(url).parent.mkdir(parents=True, exist_ok=True)
    try:
        with _Turn(address), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return DatabaseStorage(
                address.render_as_string(hide_password=False),
                engine_kwargs=options,
                heartbeat_interval=pace.beat_s,
                grace_period=pace.grace_s,
            )
    except (DBAPIError, RuntimeError) as error:  # RuntimeError: tables of another version of Optuna
        raise StudyError(
            f"{without_password(url)} cannot be used ({_reason(error)}). Start the server, or correct "
            "--storage."
        ) from error


def without_password(url: str) -> str:
    """The URL without its password."""
    return _address(url).render_as_string(hide_password=True)


def database_file(url: str) -> Path:
    """SQLite's file. Raises OptionError where the URL names none."""
    database = make_url(url).database
    if not database or database == ":memory:":
        raise OptionError(f"{url!r} names no file. Write sqlite:///FILE.")
    return Path(database)


class ServerHold:
    """PostgreSQL's advisory lock of a study's name: let go of by the server when the connection of its holder
    ends.

    A server that is restarted forgets it; `check` takes it again on a new connection, unless another process
    was faster.

    Args:
        url: Address of the server.
        name: Name of the study.

    Raises:
        StudyError: On entry, where another process holds it or the server cannot be reached.
    """

    def __init__(self, url: str, name: str) -> None:
        self._engine, self._name = _engine(_address(url)), name
        self._connection: Connection | None = None
        self._lost_at: float | None = None

    def __enter__(self) -> ServerHold:
        try:
            self.check()
        except StorageInternalError as error:
            raise StudyError(
                f"{self._engine.url!r} cannot be used ({_reason(error.__cause__)}). Start the server, or "
                "correct --storage."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()

    def check(self) -> None:
        """Hold the lock still, or again."""
        try:
            if self._connection is not None:
                self._connection.execute(text("SELECT 1"))
                return
            self._connection = self._engine.connect()
            self._connection.execute(
                text("SET tcp_keepalives_idle = 30")
            )  # a holder whose host vanished must not block the next one for hours
            taken = self._connection.execute(
                text("SELECT pg_try_advisory_lock(:key)"), {"key": _key(self._name)}
            ).scalar()
        except DBAPIError as error:
            if self._connection is not None and self._lost_at is None:
                self._lost_at = time.monotonic()
            self._drop()
            raise StorageInternalError("The connection that holds the study was lost.") from error
        if taken:
            self._lost_at = None
            return
        self._drop()
        if self._lost_at is not None and time.monotonic() - self._lost_at < _FORGET_S:
            raise StorageInternalError(
                "The server has not noticed yet that the connection that held the study is gone."
            )
        raise StudyError(
            f"Another process is running the study {self._name!r} in {self._engine.url!r}. "
            "Wait until it ends, help it with `mpsearch worker`, or name another study with --name."
        )

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()


class _Turn:
    """One process at a time makes tables: two at once fail in PostgreSQL."""

    def __init__(self, address: URL) -> None:
        self._engine = _engine(address) if address.get_backend_name() == "postgresql" else None
        self._connection: Connection | None = None

    def __enter__(self) -> None:
        if self._engine is not None:
            self._connection = self._engine.connect()
            self._connection.execute(
                text("SELECT pg_advisory_lock(:key)"), {"key": _key("mpsearch makes tables", own=False)}
            )

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()  # not pooled: the server lets go of the lock


def _engine(address: URL) -> Engine:
    return create_engine(
        address, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=_connect_args(address)
    )


def _connect_args(address: URL) -> dict[str, Any]:
    return (
        {k: v for k, v in _ALIVE.items() if k not in address.query}
        if address.get_backend_name() == "postgresql"
        else {}
    )


def _address(url: str) -> URL:
    try:
        address = make_url(url)
    except ArgumentError:
        raise OptionError(
            f"{url!r} is no URL of a database. Write postgresql://USER@HOST/DATABASE."
        ) from None
    if address.drivername == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
    if address.drivername == "postgresql+psycopg" and importlib.util.find_spec("psycopg") is None:
        raise MissingExtraError("psycopg", "postgresql", "A study in PostgreSQL")
    return address


def _key(name: str, *, own: bool = True) -> int:
    """64 bits, signed; studies and the rest do not share keys."""
    return int.from_bytes(
        hashlib.sha256(f"{'study' if own else 'other'}:{name}".encode()).digest()[:8], "big", signed=True
    )


def _reason(error: BaseException | None) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
