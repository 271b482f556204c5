"""Errors of other packages as one message: runtimes raise what they like, some of them pages of C++."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from mpsearch.errors import MpsearchError

_LONGEST = 300
_FRAME = re.compile(
    r"Exception from |Check '|FrontEnd API failed|Model wasn't fully|While validating|-- |.*\.[ch]pp:\d+"
)
"""Lines that say where in OpenVINO's sources something was noticed, not what."""
_SIGNATURE = re.compile(r"/\S+\.(?:cc|cpp|h):\d+ .*\) (?=\S)")
"""Where in its sources ONNX Runtime noticed something: file, line and C++ function."""


def first_line(error: Exception) -> str:
    """First line with text of an error's message, or its class where it has none; ends with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def reason_of(error: Exception) -> str:
    """What an error says, on one line: all messages where lines between them name source files, else its
    first line.
    """
    text = _SIGNATURE.sub("", str(error).partition("\nSummary:")[0])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not _FRAME.match(line)]
    if kept and len(kept) < len(lines):
        return first_line(Exception("; ".join(dict.fromkeys(kept))[:_LONGEST]))
    return first_line(Exception(lines[0][:_LONGEST])) if lines else first_line(error)


@contextlib.contextmanager
def one_message(what: str, advice: str = "") -> Iterator[None]:
    """Raise whatever the body raises as one MpsearchError; those of mpsearch and of the file system pass.

    Args:
        what: Beginning of the message, such as `OpenVINO cannot read the model`.
        advice: Its end: what to do.
    """
    try:
        yield
    except (MpsearchError, OSError):
        raise
    except Exception as error:  # packages have no common base class for their errors
        raise MpsearchError(f"{what}: {reason_of(error)} {advice}".rstrip()) from error
