"""Threads that wait for each other: how long they do so at full speed before they sleep."""

from __future__ import annotations

import os
import sys

_SAID = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_TURNS = "1000"


def spin_briefly() -> bool:
    """Let threads of GNU's OpenMP, torch's on Linux, sleep after some microseconds of waiting; whether they
    were told.

    By default they spin for about a millisecond at the end of each of a network's thousands of small loops.
    That is well on cores of one's own, and where another process has one of the cores, every thread waits for
    the one that does not run. Measured, two threads on two cores, an epoch of training the embedded example:
    4.3 s with either on an idle machine; with two other processes on it 31 to 45 s by default, 13 to 17 so.

    It is read when torch is loaded, so it must be told before, and holds for processes that this one starts.
    Where a variable of the environment says how threads are to wait, nothing is changed.
    """
    if "torch" in sys.modules or any(name in os.environ for name in _SAID):
        return False
    os.environ["GOMP_SPINCOUNT"] = _TURNS
    return True
