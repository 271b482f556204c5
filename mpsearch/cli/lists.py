"""`mpsearch list`."""

from __future__ import annotations

import difflib
import fnmatch
from typing import Annotated

import typer

from mpsearch.cli._app import command
from mpsearch.efforts import EFFORTS
from mpsearch.errors import OptionError
from mpsearch.members import PLACES, names_at, sampler_names
from mpsearch.named import OWN, timm_listed
from mpsearch.presets import PRESETS

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
WHAT = (*PLACES, "efforts", "presets", "samplers", "budgets", "models")


@command(
    "mpsearch list targets",
    "mpsearch list models 'resnet*'",
    name="list",
)
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
    if what in PLACES:
        return list(names_at(PLACES[what]))
    if what == "models":
        return [*timm_listed(pattern), *fnmatch.filter(OWN, pattern)]
    lists = {"samplers": sampler_names(), "budgets": _BUDGETS, "efforts": EFFORTS, "presets": PRESETS}
    if what in lists:
        return list(lists[what])
    close = difflib.get_close_matches(what, WHAT, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    raise OptionError(f"There is no list of {what!r}.{meant} It may be {', '.join(WHAT[:-1])} or {WHAT[-1]}.")


def _targets() -> list[str]:
    """Every name of a target, which commands take it, and what it is short for."""
    from mpsearch.deploy.targets import TARGETS

    names = {**dict.fromkeys(TARGETS.names(), ""), **TARGETS.aliases()}
    rows = []
    for name, text in sorted(names.items()):
        use = "run, export" if TARGETS.create(name).in_run else "export"
        rows.append(f"{name:<18} {use}{f' (short for {text})' if text else ''}")
    return rows
