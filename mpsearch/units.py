"""Quantities as people write them: `15MB` is 15e6 bytes, `15MiB` is 15 * 2**20, `2.5ms` is 2500 microseconds.

Every resource has one unit inside mpsearch, named by the suffix of its field: bytes, microseconds,
millijoules, bit operations.
"""

from __future__ import annotations

import math
import re

from mpsearch.errors import BudgetError

SCALES: dict[str, tuple[str, float]] = {
    "B": ("bytes", 1.0),
    "kB": ("bytes", 1e3),
    "KB": ("bytes", 1e3),
    "MB": ("bytes", 1e6),
    "GB": ("bytes", 1e9),
    "KiB": ("bytes", 2.0**10),
    "MiB": ("bytes", 2.0**20),
    "GiB": ("bytes", 2.0**30),
    "us": ("us", 1.0),
    "ms": ("us", 1e3),
    "s": ("us", 1e6),
    "uJ": ("mj", 1e-3),
    "mJ": ("mj", 1.0),
    "J": ("mj", 1e3),
    "BOPs": ("bops", 1.0),
    "MBOPs": ("bops", 1e6),
    "GBOPs": ("bops", 1e9),
    "TBOPs": ("bops", 1e12),
    "%": ("fraction", 0.01),
    "bits": ("bits", 1.0),
}
"""Unit as written -> (dimension, factor to the unit used inside)."""

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)\s*([A-Za-z%]*)")


def parse_quantity(text: str) -> tuple[float, str]:
    """Value in the inner unit and its dimension (`bytes`, `us`, `mj`, `bops`, `fraction` or `bits`).

    Raises:
        BudgetError: No number, no unit, an unknown unit, or a value that is not positive and finite.

    Examples:
        >>> parse_quantity("2.5ms"), parse_quantity("1MiB")
        ((2500.0, 'us'), (1048576.0, 'bytes'))
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise BudgetError(
            f"{text!r} is not a quantity. Write a number and a unit, such as 15MB, 2.5ms, 3mJ, 20GBOPs "
            "or 40%."
        )
    number, unit = match.groups()
    if not unit:
        raise BudgetError(
            f"{text!r} has no unit. Write {number}MB (10^6 bytes), {number}MiB (2^20 bytes) or {number}ms."
        )
    if unit not in SCALES:
        raise BudgetError(f"{text!r} has the unknown unit {unit!r}. Known units: {', '.join(SCALES)}.")
    dimension, factor = SCALES[unit]
    value = float(number) * factor
    if not (math.isfinite(value) and value > 0):
        raise BudgetError(f"{text!r} is not a positive, finite quantity.")
    return value, dimension


def format_bytes(size: float) -> str:
    """`15.00 MB (14.31 MiB)`: both, because tools disagree on which they mean; below 0.1 MB `1,024 B`."""
    if size < 1e5:
        return f"{size:,.0f} B"
    return f"{size / 1e6:.2f} MB ({size / 2**20:.2f} MiB)"


def format_quantity(value: float, resource: str) -> str:
    """A value of a resource (a field of `Cost`) in a unit that people read."""
    if resource.endswith("_bytes"):
        return format_bytes(value)
    if resource == "latency_us":
        return f"{value / 1e3:.3f} ms"
    if resource == "energy_mj":
        return f"{value:.3f} mJ"
    return f"{value / 1e9:.3f} GBOPs" if resource == "bops" else f"{value:g}"


def format_pair(value: float, limit: float, resource: str) -> tuple[str, str]:
    """Two values of a resource beside each other: with all their digits where they would look alike and are
    not.
    """
    shown, beside = format_quantity(value, resource), format_quantity(limit, resource)
    if shown != beside or value == limit:
        return shown, beside
    if resource.endswith("_bytes"):
        return f"{value:,.0f} B", f"{limit:,.0f} B"
    unit, scale = {"latency_us": ("ms", 1e3), "energy_mj": ("mJ", 1.0), "bops": ("GBOPs", 1e9)}[resource]
    return f"{value / scale:.9g} {unit}", f"{limit / scale:.9g} {unit}"
