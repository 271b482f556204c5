"""`mpsearch list`."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from mpsearch.cli._app import app
from mpsearch.errors import OptionError, UnknownNameError

_REGISTRIES = {
    "objectives": ("mpsearch.objectives", "OBJECTIVES"),
    "interacting": ("mpsearch.objectives.interacting", "INTERACTING"),
    "methods": ("mpsearch.reconstruct", "METHODS"),
    "tasks": ("mpsearch.evaluate", "TASKS"),
    "backends": ("mpsearch.hardware", "BACKENDS"),
    "targets": ("mpsearch.deploy.targets", "TARGETS"),
    "importers": ("mpsearch.deploy.imports", "IMPORTERS"),
}
"""What can be listed -> module and name of its registry; a test holds it against every registry that an
option takes names of.
"""
_BUDGETS = (
    "15MB   10^6 bytes",
    "15MiB  2^20 bytes",
    "40%    of the float model",
    "5bits  a weight, on average",
    "2.5ms  latency",
    "3mJ    energy; with --target triton-cuda, and in `solve` of a problem that has it",
    "512MiB peak  memory, the most that any layer needs",
    "20GBOPs  bit operations",
)
WHAT = (*_REGISTRIES, "samplers", "budgets", "models")


@app.command(name="list")
def list_members(
    what: Annotated[
        str,
        typer.Argument(
            help=(
                f"{', '.join(WHAT[:-1])} or {WHAT[-1]}; interacting are objectives with interactions, "
                "targets the --target of run and export."
            )
        ),
    ],
    pattern: Annotated[str, typer.Argument(help="Names of the models, such as 'resnet*'.")] = "*",
) -> None:
    """What can be named on the command line."""
    print("\n".join(_members(what, pattern)))


def _members(what: str, pattern: str) -> list[str]:
    if what == "targets":
        return _targets()
    if what in _REGISTRIES:
        module, name = _REGISTRIES[what]
        return list(getattr(importlib.import_module(module), name).names())
    if what == "samplers":
        from mpsearch.study import SAMPLERS, WALKS

        return sorted([*SAMPLERS, *WALKS.names()])
    if what == "budgets":
        return list(_BUDGETS)
    if what == "models":
        import timm

        found = list(timm.list_models(pattern))
        if not found:
            raise UnknownNameError("timm model", pattern, timm.list_models())
        return found
    raise OptionError(f"There is no list of {what!r}. It may be {', '.join(WHAT[:-1])} or {WHAT[-1]}.")


def _targets() -> list[str]:
    """Every name of a target, which commands take it, and what it is short for."""
    from mpsearch.deploy.targets import TARGETS

    names = {**dict.fromkeys(TARGETS.names(), ""), **TARGETS.aliases()}
    rows = []
    for name, text in sorted(names.items()):
        use = "run, export" if TARGETS.create(name).in_run else "export"
        rows.append(f"{name:<18} {use}{f' (short for {text})' if text else ''}")
    return rows
