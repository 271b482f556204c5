"""What every command prints with: tables on stdout, talk and progress on stderr."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from mpsearch.errors import OptionError
from mpsearch.pipeline.progress import Lines

talk = Console(stderr=True)


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"
    csv = "csv"


TOLD_EVERY = 20.0
"""Seconds between two lines of a task where there is no terminal to draw a bar on; a tenth with --verbose."""


class _Manner:
    """How much is said: by `--quiet` and `--verbose`."""

    quiet = False
    verbose = False


def talk_as(*, quiet: bool, verbose: bool) -> None:
    """Say nothing but results and errors, or more than usual. Raises OptionError where both are asked for."""
    if quiet and verbose:
        raise OptionError("--quiet and --verbose were given at once. Give one of them.")
    _Manner.quiet, _Manner.verbose = quiet, verbose


def is_verbose() -> bool:
    """Whether `--verbose` was given."""
    return _Manner.verbose


class _Lines(Lines):
    def say(self, text: str) -> None:
        say(text)


class ProgressBars:
    """Progress bars with the remaining time on stderr; plain lines where it is no terminal."""

    @contextlib.contextmanager
    def task(self, label: str) -> Iterator[Any]:
        """A bar while the task runs."""
        if not talk.is_terminal:
            with _Lines(TOLD_EVERY / 10 if _Manner.verbose else TOLD_EVERY).task(label) as advance:
                yield advance
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<52}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
        )
        with Bars(*columns, console=talk, disable=_Manner.quiet) as bars:
            bar = bars.add_task(label, total=None)
            yield lambda done, total=None: bars.update(bar, completed=done, total=total)

    def say(self, text: str) -> None:
        """A line."""
        say(text)


def say(text: str) -> None:
    """One line on stderr, as it is: not wrapped, not coloured, no markup read."""
    if not _Manner.quiet:
        talk.print(text, highlight=False, markup=False, soft_wrap=True)


def say_more(text: str) -> None:
    """One line that is for `--verbose` alone."""
    if _Manner.verbose:
        say(text)


def print_rows(header: tuple[str, ...], rows: list[tuple[Any, ...]], output: Format) -> None:
    if output is Format.table:
        table = Table(*header)
        for row in rows:
            table.add_row(*(Text(str(value)) for value in row))
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    elif output is Format.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([header, *rows])
    else:
        print(json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1))
