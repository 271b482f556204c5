"""One cell of a table: built, checked and timed, here or in a process of its own."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

from mpsearch.errors import MpsearchError, UserError
from mpsearch.hardware.backends import Backend, Bench, Cell, Measured
from mpsearch.hardware.measure import Timing
from mpsearch.hardware.rows import Row, row_key
from mpsearch.problem import Candidate, Layer

_NOTHING = Measured(Timing(0.0, 0.0, 0, "cpu"), 0.0, True)


class CellTimer:
    """Measures cells in this process.

    Args:
        backend: The runtime.
        batch: Images in a call.
        seconds: Seconds of measuring for each cell.
    """

    def __init__(self, backend: Backend, batch: int = 1, seconds: float = 0.25) -> None:
        self.backend, self.batch, self.seconds = backend, batch, seconds
        self._bench: Bench | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def measure(self, layer: Layer, kernel: Candidate) -> tuple[Row, bool]:
        """The row of a unit in a kernel, and whether the machine held still. A kernel that raises is a row of
        status `crash`.
        """
        if self._bench is None:
            self._bench = self.backend.bench(self.seconds)
        try:
            cell = self.backend.build(layer, kernel, self.batch)
            measured = self._bench.measure(cell)
        except MpsearchError:
            raise
        except (
            Exception
        ) as error:  # a runtime has no common base class for what its kernels raise; the row says what it was
            first = (str(error).strip().splitlines() or [""])[0]
            return self.failed(layer, kernel, f"{type(error).__name__}: {first}"[:160]), True
        return self._row(layer, kernel, cell, measured), measured.steady

    def failed(self, layer: Layer, kernel: Candidate, why: str) -> Row:
        """The row of a kernel that did not come back."""
        none = Cell(lambda: None, (why,), False, math.nan, 0.0)
        return self._row(layer, kernel, none, _NOTHING, "crash")

    def _row(
        self, layer: Layer, kernel: Candidate, cell: Cell, measured: Measured, status: str | None = None
    ) -> Row:
        timing = measured.timing
        found = (
            "wrong" if not cell.relative_error <= cell.tolerance else "ok" if cell.as_asked else "fallback"
        )
        return Row(
            row_key(layer, self.batch),
            str(kernel),
            status or found,
            timing.median_us,
            timing.iqr_us,
            timing.repeats,
            self.backend.packed_bytes(layer, kernel),
            " ".join(cell.executed),
            cell.relative_error
            if math.isfinite(cell.relative_error)
            else sys.float_info.max,  # a table holds finite numbers
            datetime.now(UTC).isoformat(timespec="seconds"),
            min_us=timing.min_us,
            rounds=" ".join(f"{p:.6g}" for p in timing.passes_us),
            anchor_us=measured.anchor_us,
            clock=timing.clock,
            energy_mj=measured.energy_mj,
        )


class IsolatedTimer(CellTimer):
    """Measures cells in a child process.

    A child that dies or fails at a cell leaves a row of status `crash`, and another takes its place: after an
    illegal access every later call of a CUDA process fails too.
    """

    _child: subprocess.Popen[bytes] | None = None
    _pipe: Connection | None = None

    def measure(self, layer: Layer, kernel: Candidate) -> tuple[Row, bool]:
        """As in `CellTimer`."""
        pipe = self._start() if self._pipe is None else self._pipe
        try:
            pipe.send((layer, kernel))
            answer = pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return self.failed(layer, kernel, f"the process died: {self._stop()}"), True
        if isinstance(answer, BaseException):
            raise answer
        row, steady = answer
        if row.status == "crash":
            self._stop()
        return row, steady

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> Connection:
        """A module of the package, not a copy of this program: the user's own script is never imported by
        it.
        """
        if os.name == "nt":
            raise UserError(
                "Single units are timed on Linux and macOS alone: Windows hands no pipe to a new process in "
                "this way. Use --target packed, or --table with a table of another machine and "
                "--allow-estimate."
            )
        self._pipe, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "mpsearch.hardware.cell_process", str(theirs.fileno())]
        with theirs:  # what it prints is not for the standard output of this program
            self._child = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), stdout=subprocess.DEVNULL, env=environment
            )
        self._pipe.send((self.backend, self.batch, self.seconds))
        self._pipe.send(self.backend.shared())
        return self._pipe

    def _stop(self) -> str:
        """End the child. Returns how it ended."""
        if self._pipe is None or self._child is None:
            return "it had not started"
        self._pipe.close()
        try:
            code = self._child.wait(2.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        self._child, self._pipe = None, None
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def serve(pipe: Connection) -> None:
    """Answer cells with rows until the pipe closes; what comes first is the backend, the batch and the
    seconds, then what the backend of the other process shares.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and closes the pipe
    try:
        timer = CellTimer(*pipe.recv())
        timer.backend.join(pipe.recv())
    except (EOFError, OSError):
        return
    while True:
        try:
            layer, kernel = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(timer.measure(layer, kernel))
        except MpsearchError as error:
            pipe.send(error)
