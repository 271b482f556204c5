"""Objects from a user's Python file, written `path/to/file.py:name`: models, data, metrics, tasks."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from mpsearch.errors import UserError
from mpsearch.foreign import first_line

OBJECT = "python:"
"""How settings name a function that was given as an object."""


def names_code(text: str) -> bool:
    """Whether a text names something in a Python file."""
    return text.endswith(".py") or text.rpartition(":")[0].endswith(".py")


def require_code(text: str, kind: type[UserError] = UserError) -> tuple[Path, str]:
    """The file and the name, without running the file. Raises `kind` where there is no such file, or no
    name.
    """
    path, _, name = (text, "", "") if text.endswith(".py") else text.rpartition(":")
    if not name:
        raise kind(f"{text!r} names no function. Write path/to/file.py:function.")
    if not Path(path).is_file():
        raise kind(f"There is no file {path}. Write path/to/file.py:function.")
    return Path(path), name


def load_code(text: str, what: str, kind: type[UserError] = UserError) -> Any:
    """What a file holds under a name; the file is run.

    Args:
        text: `path/to/file.py:name`.
        what: What it should be, for messages, such as `a function that returns an nn.Module`.
        kind: Raised where there is none, or the file cannot be imported.
    """
    path, name = require_code(text, kind)
    found = getattr(_imported(path, kind), name, None)
    if not callable(found):
        raise kind(f"{path} has no function {name!r}. Write path/to/file.py:function with {what}.")
    return found


def call_code(text: str, what: str, kind: type[UserError] = UserError, /, **arguments: Any) -> Any:
    """What the function of a file returns. Args and Raises: As `load_code`; and where it fails."""
    function = load_code(text, what, kind)
    try:
        return function(**arguments)
    except Exception as error:  # the user's own code may raise anything
        given = f" with {arguments}" if arguments else ""
        raise kind(
            f"{text} failed{given}: {type(error).__name__}: {first_line(error)} Mend the function or its "
            "arguments."
        ) from error


def _imported(path: Path, kind: type[UserError]) -> ModuleType:
    """Import a file under a name of its own, so that two files of one name, or of an installed package's
    name, do not meet; once, so that one file's model and metric share their classes.
    """
    name = f"_mpsearch_file_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    stamp = (path.stat().st_mtime_ns, path.stat().st_size)
    held = sys.modules.get(name)
    if held is not None and getattr(held, "__mpsearch_stamp__", None) == stamp:
        return held
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise kind(f"{path} cannot be imported as Python. Write path/to/file.py:function.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code may raise anything
        del sys.modules[name]
        raise kind(
            f"{path} cannot be imported: {type(error).__name__}: {first_line(error)} Mend the file."
        ) from error
    module.__dict__["__mpsearch_stamp__"] = stamp
    return module
