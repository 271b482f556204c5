"""Every error that mpsearch raises on purpose.

MpsearchError                      exit code 1: something failed that was not the user's doing
+-- UserError                      2: what was asked cannot be read or does not exist
|   +-- BudgetError                a budget without a unit, of an unknown resource, or not positive
|   +-- UnknownNameError           a name that no registry, model or layer has
|   +-- OptionError                an option of an objective, solver, ... that it does not have
|   +-- ModelError                 a model that cannot be built, traced, or has NaN weights
|   +-- DataError                  images that are missing, unreadable or too few
|   +-- TableError                 a latency table that is malformed
|   |   +-- DeviceMismatchError    ... or that was measured on another device
|   +-- CheckpointError            a packed checkpoint that is not one, or is damaged
|   +-- StudyError                 a study folder that is missing, busy, or of another run
|   +-- MissingExtraError          an optional dependency that is not installed
+-- InfeasibleError                3: no assignment fits the budgets

Each message says what is wrong with its value, what would be right, and what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping


class MpsearchError(Exception):
    """Root of the tree; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(MpsearchError):
    """What was asked cannot be read or does not exist.

    Args:
        message: What is wrong, what would be right, and what to do.
        fields: Settings that the message names as Python does; `as_flags` names them as the command line
            does.
    """

    exit_code = 2

    def __init__(self, message: str, fields: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.fields = tuple(fields)

    def as_flags(self) -> str:
        """The message with `--calibration-images` for `calibration_images`."""
        text = str(self)
        for field in self.fields:
            text = re.sub(rf"(?<![\w-]){field}(?!\w)", f"--{field.replace('_', '-')}", text)
        return text


class BudgetError(UserError):
    """A budget that cannot be read, or on what nothing measures."""


class UnknownNameError(UserError):
    """A name that nothing has; lists the known ones and the closest."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        shown = ", ".join(known[:12]) + (f", ... ({len(known)} in all)" if len(known) > 12 else "")
        super().__init__(
            f"No {kind} is called {name!r}.{meant} Known: {shown or 'none'}.{' ' + hint if hint else ''}"
        )
        self.kind, self.name, self.known = kind, name, known


class OptionError(UserError):
    """An option that a registered member does not have, or a value it cannot take."""


class ModelError(UserError):
    """A model that cannot be built, traced or trusted."""


class DataError(UserError):
    """Images that are missing, unreadable or too few."""


class TableError(UserError):
    """A latency table that is malformed."""


class DeviceMismatchError(TableError):
    """A latency table that was measured on another device."""


class CheckpointError(UserError):
    """A packed checkpoint that is not one, or is damaged."""


class StudyError(UserError):
    """A study folder that is missing, busy, or belongs to another run."""


class MissingExtraError(UserError):
    """An optional dependency that is not installed, or cannot be imported; `cause` is what its import said,
    for packages that need others.
    """

    def __init__(self, package: str, extra: str, purpose: str, cause: ImportError | None = None) -> None:
        why = "which is not installed" if cause is None else f"which cannot be imported ({cause})"
        super().__init__(
            f"{purpose} needs the package {package!r}, {why}. Run: pip install 'mpsearch[{extra}]'"
        )


class InfeasibleError(MpsearchError):
    """No assignment fits; `least` holds the least reachable value of each resource."""

    exit_code = 3

    def __init__(self, message: str, least: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.least = dict(least or {})
