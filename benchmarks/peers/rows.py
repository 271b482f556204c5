"""Rows of the comparison: read, appended, and those of benchmarks/few_bits.py on the same images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.peers.networks import ROOT

ROWS = ROOT / "benchmarks" / "results" / "peers.jsonl"
FEW_BITS = ROOT / "benchmarks" / "results" / "few_bits.jsonl"
KEY = ("peer", "network", "bits", "a_bits", "seed")


def read(path: Path) -> list[dict[str, Any]]:
    """All rows, oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def append(row: dict[str, Any], path: Path) -> None:
    """One line more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def find(key: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The last row of a job."""
    found = [row for row in read(path) if {name: row[name] for name in KEY} == key]
    return found[-1] if found else None


def latest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row of each job, in the order of the first."""
    return list({tuple(row[name] for name in KEY): row for row in rows}.values())


def few_bits(path: Path = FEW_BITS) -> list[dict[str, Any]]:
    """mpsearch's rows of benchmarks/few_bits.py: the same draw of the same images, judged by the same code.

    Its logits are not kept, so differences from them are not paired. It has no column for peak memory.
    """
    found = []
    for row in read(path):
        bits, _, a_bits = row["case"].partition("x")
        chosen = row["chosen"]
        error = (row["float_top1"] * (1 - row["float_top1"]) / row["images"]) ** 0.5
        found.append(
            {
                "peer": "mpsearch",
                "network": row["model"],
                "bits": float(bits),
                "a_bits": int(a_bits),
                "seed": row["seed"],
                "float_top1": row["float_top1"],
                "images": row["images"],
                "top1": chosen["top1"],
                "top1_error": round(error, 4),
                "kl": chosen["kl"],
                "kl_error": chosen["kl_error"],
                "mean_bits": chosen["bits"],
                "artifact_bytes": chosen["size_bytes"],
                "cpu_seconds": row["cpu_seconds"],
                "device": row["device"],
                "versions": row["versions"],
                "threads": row["threads"],
                "source": path.name,
            }
        )
    return found


def joined(rows: list[dict[str, Any]], more: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The latest rows, and of `more` those whose job has none."""
    held = latest(rows)
    there = {tuple(row[name] for name in KEY) for row in held if "failed" not in row}
    return held + [row for row in latest(more) if tuple(row[name] for name in KEY) not in there]
