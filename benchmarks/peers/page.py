"""docs/results.md: the parts between its markers are written from the rows; prose around them stays."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.peers.chart import chart
from benchmarks.peers.networks import NETWORKS, ROOT

PAGE = ROOT / "docs" / "results.md"
PICTURE = ROOT / "docs" / "results-size.svg"
NAMES = {
    "mpsearch": "mpsearch",
    "mct": "Sony MCT",
    "mct+gptq": "Sony MCT, gradient-based",
    "modelopt": "NVIDIA ModelOpt",
    "modelopt+mse": "NVIDIA ModelOpt, MSE ranges",
    "nncf": "NNCF",
    "nncf+weights": "NNCF, weights alone",
    "onnxruntime": "ONNX Runtime",
    "torchao": "torchao, weights alone",
    "aimet": "AIMET AdaRound, uniform",
}
TITLES = {
    "resnet20": "ResNet20",
    "resnet56": "ResNet56",
    "vit": "ViT",
    "resmlp": "ResMLP",
    "mobilenet": "MobileNetV1-0.75",
    "lite0": "EfficientNet-Lite0",
}


def write(rows: list[dict[str, Any]]) -> None:
    """The tables, the verdicts, the machines and the picture."""
    text = PAGE.read_text()
    parts = {
        "table": tables(rows),
        "verdict": verdicts(rows),
        "failed": failures(rows),
        "machine": machines(rows),
    }
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{PAGE} has no {begin} ... {end}.")
        text = re.sub(
            f"{begin}.*?{end}", lambda _, p=part, b=begin, e=end: f"{b}\n{p}\n{e}", text, flags=re.S
        )
    PAGE.write_text(text)
    PICTURE.write_text(
        chart([row for row in rows if "failed" not in row and row["seed"] == 0], NAMES, TITLES)
    )


def name_of(peer: str) -> str:
    """As it is printed; a variant without a name of its own after a comma."""
    base, _, variant = peer.partition("+")
    return NAMES.get(peer) or f"{NAMES[base]}, {variant}"


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table for each network, a row for each tool and budget."""
    found = []
    for network in NETWORKS:
        some = [row for row in rows if row["network"] == network and "failed" not in row]
        if not any(row["peer"] != "mpsearch" for row in some):
            continue  # nothing to compare yet
        plain = some[0]
        found += [
            f"**{TITLES[network]}**, float top-1 {plain['float_top1']:.1%} on {plain['images']:,} judged images",
            "",
            "| bits a weight x input | tool | bits used | KL to float | top-1 | KL less mpsearch's | CPU s | MiB |",
            "|---|---|---|---|---|---|---|---|",
        ]
        cases = sorted({(row["bits"], row["a_bits"], row["seed"]) for row in some}, reverse=True)
        for case in cases:
            group = [row for row in some if (row["bits"], row["a_bits"], row["seed"]) == case]
            found += [line(row, group) for row in sorted(group, key=lambda row: row["kl"])]
        found.append("")
    return "\n".join(found).rstrip()


def line(row: dict[str, Any], group: list[dict[str, Any]]) -> str:
    """One row; the least KL of its group is bold where no other is within two standard errors."""
    budget = f"{row['bits']:g} x {row['a_bits']}" + (f", seed {row['seed']}" if row["seed"] else "")
    ours = next((other for other in group if other["peer"] == "mpsearch"), None)
    apart = difference(row, ours)
    clear = all(other is row or beyond(other, row) for other in group) and len(group) > 1
    kl = f"{row['kl']:.4f} ± {row['kl_error']:.4f}"
    cells = [
        budget,
        name_of(row["peer"]) + (" †" if "source" in row else ""),
        f"{row['mean_bits']:.2f}",
        f"**{kl}**" if clear else kl,
        f"{row['top1']:.1%}",
        "" if apart is None else f"{apart[0]:+.4f} ± {apart[1]:.4f}",
        f"{row['cpu_seconds']:.0f}",
        str(row.get("peak_mib", "")),
    ]
    return f"| {' | '.join(cells)} |"


def difference(row: dict[str, Any], ours: dict[str, Any] | None) -> tuple[float, float] | None:
    """KL less mpsearch's with a standard error: paired where both have logits, else of two means."""
    if ours is None or row is ours:
        return None
    if "less_mpsearch" in row and "source" not in ours:
        return tuple(row["less_mpsearch"]["kl"])  # type: ignore[return-value]
    return row["kl"] - ours["kl"], (row["kl_error"] ** 2 + ours["kl_error"] ** 2) ** 0.5


def beyond(worse: dict[str, Any], better: dict[str, Any]) -> bool:
    """Whether the first's KL is greater by more than two standard errors."""
    if better["peer"] == "mpsearch":
        apart = difference(worse, better)
    else:
        other = difference(better, worse) if worse["peer"] == "mpsearch" else None
        apart = (-other[0], other[1]) if other is not None else None
    if apart is None:
        apart = worse["kl"] - better["kl"], (worse["kl_error"] ** 2 + better["kl_error"] ** 2) ** 0.5
    return apart[0] > 2 * apart[1]


def verdicts(rows: list[dict[str, Any]]) -> str:
    """For each network and budget that others ran too: who is ahead by more than two standard errors."""
    found, cases = [], {}
    for row in rows:
        if "failed" not in row:
            cases.setdefault((row["network"], row["bits"], row["a_bits"], row["seed"]), []).append(row)
    won = lost = level = 0
    for (network, bits, a_bits, _seed), group in cases.items():
        ours = next((row for row in group if row["peer"] == "mpsearch"), None)
        others = [row for row in group if row["peer"] != "mpsearch"]
        if ours is None or not others:
            continue
        best = min(others, key=lambda row: row["kl"])
        if beyond(best, ours):
            won += 1
        elif beyond(ours, best):
            lost += 1
            found.append(f"- {TITLES[network]}, {bits:g} x {a_bits}: behind {name_of(best['peer'])}.")
        else:
            level += 1
            found.append(f"- {TITLES[network]}, {bits:g} x {a_bits}: level with {name_of(best['peer'])}.")
    head = (
        f"Of {won + lost + level} cases (network, bits) that another tool finished too, mpsearch has the least KL "
        f"in {won}, is level with the best other in {level}, and behind it in {lost}, each beyond two standard "
        "errors."
    )
    return "\n".join([head, "", *found]).rstrip()


def failures(rows: list[dict[str, Any]]) -> str:
    """What could not be done, once for each tool and reason, with where."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "failed" in row:
            where = f"{TITLES[row['network']]} {row['bits']:g} x {row['a_bits']}"
            reasons.setdefault((row["peer"], row["failed"]), []).append(where)
    lines = ["| tool | where | reason |", "|---|---|---|"]
    for (peer, reason), where in reasons.items():
        text = reason.splitlines()[0].replace("|", "/")[:260] if reason else ""
        lines.append(f"| {name_of(peer)} | {', '.join(where)} | {text} |")
    return "\n".join(lines)


def machines(rows: list[dict[str, Any]]) -> str:
    """Processors, and versions of the tools."""
    devices: dict[str, list[str]] = {}
    versions: dict[str, str] = {}
    for row in rows:
        kind = "few_bits.jsonl (†)" if "source" in row else "peers.jsonl"
        held = devices.setdefault(row["device"], [])
        if kind not in held:
            held.append(kind)
        versions |= row.get("versions", {}) if "source" not in row else {}
    where = "; ".join(f"{device}: rows of {' and '.join(kinds)}" for device, kinds in devices.items())
    listed = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    return f"{where}. One thread, beside other work. {listed}."
