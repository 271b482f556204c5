"""Accuracy against size as SVG: one panel a network, KL on a logarithmic axis over bits a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 330, 250, 52, 34, 28
COLOURS = ("#1f4e9c", "#d1495b", "#e09f3e", "#4f772d", "#7b4fa3", "#888888", "#2a9d8f", "#b5651d", "#444444")
COLUMNS = 3


def chart(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], titles: Mapping[str, str]) -> str:
    """The picture.

    Args:
        rows: With `network`, `peer`, `mean_bits`, `kl` and `a_bits`; those of 8-bit inputs are drawn.
        names, titles: How tools and networks are printed.
    """
    drawn = [row for row in rows if row["a_bits"] == 8 and row["mean_bits"] <= 8.05]
    compared = {row["network"] for row in drawn if row["peer"] != "mpsearch"}
    networks = [network for network in titles if network in compared]
    peers = [peer for peer in names if any(row["peer"] == peer for row in drawn)]
    colours = dict(zip(peers, COLOURS, strict=False))
    lines = math.ceil(len(networks) / COLUMNS)
    across = max(1, min(COLUMNS, len(networks))) * WIDTH
    parts = [
        panel([r for r in drawn if r["network"] == network], titles[network], colours, i)
        for i, network in enumerate(networks)
    ]
    height = lines * HEIGHT + 18 * math.ceil(len(peers) / 3) + 12
    legend = []
    for i, peer in enumerate(peers):
        x, y = 20 + (i % 3) * (across / 3), lines * HEIGHT + 14 + 18 * (i // 3)
        legend.append(f'<circle cx="{x:.0f}" cy="{y - 4:.0f}" r="4" fill="{colours[peer]}"/>')
        legend.append(f'<text x="{x + 9:.0f}" y="{y:.0f}">{escape(names[peer])}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{across}" height="{height}" '
        f'viewBox="0 0 {across} {height}" font-family="sans-serif" font-size="12" role="img" '
        'aria-label="KL to the float network over bits a weight, one panel a network">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}{"".join(legend)}</svg>\n'
    )


def panel(rows: Sequence[Mapping[str, Any]], title: str, colours: Mapping[str, str], place: int) -> str:
    """One network: points of a tool are joined in the order of their bits."""
    x0, y0 = (place % COLUMNS) * WIDTH, (place // COLUMNS) * HEIGHT
    low = min(math.floor(math.log10(max(row["kl"], 1e-6))) for row in rows)
    high = max(low + 1, max(math.ceil(math.log10(max(row["kl"], 1e-6))) for row in rows))
    bits = [row["mean_bits"] for row in rows]
    least, most = math.floor(min(bits) * 2) / 2 - 0.25, math.ceil(max(bits) * 2) / 2 + 0.25

    def x(value: float) -> float:
        return x0 + LEFT + (value - least) / (most - least) * (WIDTH - LEFT - 14)

    def y(value: float) -> float:
        share = (math.log10(max(value, 1e-6)) - low) / (high - low)
        return y0 + HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    found = [f'<text x="{x0 + LEFT}" y="{y0 + 17}" font-weight="bold">{escape(title)}</text>']
    for power in range(low, high + 1):
        level = y(10.0**power)
        found.append(
            f'<line x1="{x0 + LEFT}" x2="{x0 + WIDTH - 14}" y1="{level:.1f}" y2="{level:.1f}" stroke="#ddd"/>'
        )
        found.append(
            f'<text x="{x0 + LEFT - 5}" y="{level + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
        )
    for tick in range(math.ceil(least), math.floor(most) + 1):
        found.append(
            f'<text x="{x(tick):.1f}" y="{y0 + HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick}</text>'
        )
    found.append(
        f'<text x="{x0 + WIDTH - 14}" y="{y0 + HEIGHT - 4}" text-anchor="end" fill="#555">bits a weight; '
        "KL to float, log scale</text>"
    )
    for peer, colour in colours.items():
        points = sorted((row["mean_bits"], row["kl"]) for row in rows if row["peer"] == peer)
        if len(points) > 1:
            path = " ".join(f"{x(b):.1f},{y(kl):.1f}" for b, kl in points)
            found.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        found += [f'<circle cx="{x(b):.1f}" cy="{y(kl):.1f}" r="4" fill="{colour}"/>' for b, kl in points]
    return "".join(found)
