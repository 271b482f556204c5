"""`mpsearch list`."""

from __future__ import annotations

from typing import Annotated

import typer

from mpsearch.cli._app import app
from mpsearch.errors import OptionError


@app.command(name="list")
def list_members(
    what: Annotated[
        str,
        typer.Argument(
            help="objectives, interacting (objectives with interactions), observers, backends, roundings, methods, targets, importers, budgets or models."
        ),
    ],
    pattern: Annotated[str, typer.Argument(help="Of the models, such as 'resnet*'.")] = "*",
) -> None:
    """What can be named on the command line."""
    print("\n".join(_members(what, pattern)))


def _members(what: str, pattern: str) -> list[str]:
    if what == "objectives":
        from mpsearch.objectives import OBJECTIVES

        return OBJECTIVES.names()
    if what == "interacting":
        from mpsearch.objectives.interacting import INTERACTING

        return INTERACTING.names()
    if what in ("observers", "roundings"):
        from mpsearch.quant.observers import OBSERVERS
        from mpsearch.quant.rounding import ROUNDINGS

        return OBSERVERS.names() if what == "observers" else ROUNDINGS.names()
    if what == "methods":
        from mpsearch.reconstruct import METHODS

        return METHODS.names()
    if what == "targets":
        from mpsearch.deploy.targets import TARGETS

        return TARGETS.names()
    if what == "importers":
        from mpsearch.deploy.imports import IMPORTERS

        return IMPORTERS.names()
    if what == "backends":
        from mpsearch.hardware import BACKENDS

        return BACKENDS.names()
    if what == "models":
        import timm

        return list(timm.list_models(pattern))
    if what == "budgets":
        return [
            "15MB   10^6 bytes",
            "15MiB  2^20 bytes",
            "40%    of the float model",
            "5bits  a weight, on average",
            "2.5ms  latency",
            "3mJ    energy",
            "512MiB peak  memory, the most that any layer needs",
            "20GBOPs  bit operations",
        ]
    raise OptionError(
        f"There is no list of {what!r}. It may be objectives, interacting, observers, backends, roundings, methods, targets, importers, budgets or models."
    )
