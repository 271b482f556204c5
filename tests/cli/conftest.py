"""The command line, called in this process."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest

from mpsearch.cli import _show, main


class Called(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command line, as with these arguments."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mpsearch", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return Called(code, printed.out, printed.err)

    yield run
    _show.talk_as(quiet=False, verbose=False)
