"""Names of the members of every registry, read from its source files: a slip on the command line is told, and
`mpsearch list` answers, without importing torch.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mpsearch.errors import UnknownNameError

SAMPLERS = ("mpsearch", "tpe", "nsga2", "random")
"""Who may propose assignments; the last three are baselines."""


@dataclass(frozen=True)
class Place:
    """Where the members of a registry are.

    Args:
        module: That has the registry; its source files, and those below, register members.
        constant: Name of the registry there.
        group: Entry-point group of members from outside: the registry's package.
    """

    module: str
    constant: str
    group: str


PLACES = {
    "objectives": Place("mpsearch.objectives", "OBJECTIVES", "mpsearch.objectives"),
    "interacting": Place("mpsearch.objectives.interacting", "INTERACTING", "mpsearch.objectives.interacting"),
    "methods": Place("mpsearch.reconstruct", "METHODS", "mpsearch.reconstruct"),
    "tasks": Place("mpsearch.evaluate", "TASKS", "mpsearch.evaluate.tasks"),
    "backends": Place("mpsearch.hardware", "BACKENDS", "mpsearch.hardware.backends"),
    "targets": Place("mpsearch.deploy.targets", "TARGETS", "mpsearch.deploy.targets"),
    "importers": Place("mpsearch.deploy.imports", "IMPORTERS", "mpsearch.deploy.imports"),
}
"""What can be listed -> where it is; a test holds it against every registry that an option takes names of."""
_OBSERVERS = Place("mpsearch.quant", "OBSERVERS", "mpsearch.quant")
_WALKS = Place("mpsearch.study", "WALKS", "mpsearch.study")


def names_at(place: Place) -> tuple[str, ...]:
    """Names of a registry's members, without further names of theirs (`aliases_at`); sorted.

    They are those that its source files and installed packages give and, where it is imported, what it holds.
    """
    names = {name for name, _ in _registered(place)}
    names |= {entry.name for entry in importlib.metadata.entry_points(group=place.group)}
    module = sys.modules.get(place.module)
    return tuple(sorted(names if module is None else names.union(getattr(module, place.constant).names())))


def aliases_at(place: Place) -> tuple[str, ...]:
    """Further names of the members, sorted."""
    return tuple(sorted(alias for _, aliases in _registered(place) for alias in aliases))


def sampler_names() -> list[str]:
    """Names that --sampler takes, sorted."""
    return sorted({*SAMPLERS, *names_at(_WALKS)})


def observer_names() -> list[str]:
    """Names of observers, sorted."""
    return list(names_at(_OBSERVERS))


def require_name(kind: str, text: str, known: Iterable[str]) -> None:
    """Raises UnknownNameError where a text, such as `fisher:images=64`, begins with no known name."""
    name, names = text.partition(":")[0].strip(), set(known)
    if name not in names:
        raise UnknownNameError(kind, name, names)


@functools.cache
def _registered(place: Place) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Name of each member, and its further names."""
    folder = Path(__file__).parent.joinpath(*place.module.split(".")[1:])
    decorator = re.compile(
        rf'^@{place.constant}\.register\(\s*"([^"]+)"(?:,\s*(?:aliases=)?\{{(.*?)\}})?', re.M | re.S
    )
    found = []
    for path in sorted(folder.rglob("*.py")):
        for match in decorator.finditer(path.read_text(encoding="utf-8")):
            found.append((match[1], tuple(re.findall(r'"([^"]+)":', match[2] or ""))))
    return tuple(found)
