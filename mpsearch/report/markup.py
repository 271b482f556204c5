"""Small pieces of HTML. Text goes through `text`, which escapes: names of layers, models and files are untrusted."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any


def text(value: Any) -> str:
    """Escaped for text and for attributes."""
    return html.escape(str(value), quote=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], css: str = "") -> str:
    """A table from cells that are HTML already; scrolls sideways on a narrow screen."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{text(css)}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def two_sizes(size: float) -> str:
    """Exact bytes, and below them MB and MiB."""
    return f"{size:,.0f} B<small>{size / 1e6:.2f} MB · {size / 2**20:.2f} MiB</small>"


def share(p: float, images: int) -> str:
    """A share of images with its standard error sqrt(p (1 - p) / N)."""
    return f"{p:.2%} ± {100 * standard_error(p, images):.2f}"


def share_cell(p: float, images: int) -> str:
    """The same on two lines, for a narrow column."""
    return f"{p:.2%}<small>± {100 * standard_error(p, images):.2f}</small>"


def standard_error(p: float, images: int) -> float:
    """sqrt(p (1 - p) / N)."""
    return math.sqrt(max(0.0, p * (1 - p)) / images)
