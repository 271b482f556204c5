"""`mpsearch compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpsearch.cli._app import command
from mpsearch.cli._options import Output
from mpsearch.cli._show import Format, print_rows

if TYPE_CHECKING:
    from mpsearch.report.comparison import Comparison

WIDTH = 100
"""Columns that a table has at most."""
_NAME, _COLUMN = 24, 14
"""Columns of names, and the least of a study."""


@command(
    "mpsearch compare studies/resnet50-4bits studies/resnet50-5bits",
    "mpsearch compare studies/a studies/b --all-layers --format csv",
)
def compare(
    studies: Annotated[list[Path], typer.Argument(help="Folders of finished studies of one model.")],
    all_layers: Annotated[
        bool, typer.Option("--all-layers", help="Also list layers that have the same everywhere.")
    ] = False,
    output: Output = Format.table,
) -> None:
    """Put the choices of several studies beside each other: costs, metrics, and the bits of each layer."""
    from mpsearch.report.comparison import compare as compared
    from mpsearch.report.comparison import told

    found = compared(studies)
    if output is Format.json:
        print(json.dumps(found.to_json(), indent=1))
        return
    layers = found.bits if all_layers or output is Format.csv else found.differing
    rows = [*told(found), *((layer, *(text or "" for text in held)) for layer, held in layers.items())]
    if output is Format.csv:
        print_rows(("", *found.names), list(rows), output)
        return
    _print(found, told(found), layers)


def _print(
    found: Comparison, facts: Sequence[tuple[str, ...]], layers: dict[str, tuple[str | None, ...]]
) -> None:
    """As many studies in a table as fit into its width."""
    each = (WIDTH - _NAME) // (_COLUMN + 1)
    for start in range(0, len(found.names), each):
        window = slice(start, start + each)
        width = max(_COLUMN, (WIDTH - _NAME) // len(found.names[window]) - 1)
        lines = [("", *found.names[window]), *((name, *texts[window]) for name, *texts in facts), ()]
        same = len(found.bits) - len(found.differing)
        title = f"{same} of {len(found.bits)} layers have the same" if same else "bits"
        lines.append((title,))
        lines += [(layer, *(text or "-" for text in held[window])) for layer, held in layers.items()]
        for line in lines:
            print(_line(line, width))
        if start + each < len(found.names):
            print()


def _line(cells: Sequence[str], width: int) -> str:
    """A name and right-aligned cells; what is too long loses its beginning, which tells the least."""
    if len(cells) < 2:
        return "".join(cells)
    name, *texts = cells
    shown = "".join(" " + _cut(text, width).rjust(width) for text in texts)
    return (_cut(name, _NAME).ljust(_NAME) + shown).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]
