"""The exact solver beside the tools' own solver classes, on the same tables.

    python -m benchmarks.peers.solvers > benchmarks/results/peers_solvers.md

59 equally spaced budgets between the least and the greatest total cost. ModelOpt's class and MCT's class run
in their own environments (see `python -m benchmarks.peers --help`), on the scores as they are and on the same
scores times 1e6: a tool's scores have whatever scale its images and loss give them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.environments import interpreter
from benchmarks.peers.networks import ROOT
from mpsearch.problem import Budget, Candidate, Layer, Problem
from mpsearch.solvers import reachable, solve

GOLDEN = ROOT / "tests" / "golden" / "solver_resnet18.json"
WORKER = Path(__file__).with_name("solver_worker.py")
BUDGETS = 59
THREE = ("size_bytes", "latency_us", "bops")


def problem_of(scores: Any, costs: dict[str, Any]) -> Problem:
    """A problem of `L x C` tables; the names mean nothing."""
    rows = {name: tuple(map(tuple, np.asarray(table).tolist())) for name, table in costs.items()}
    proxy = tuple(map(tuple, np.asarray(scores).tolist()))
    layers = [Layer(f"l{i}", "linear", (1, 1), ((1, 1),), (1, 1), 1, "block") for i in range(len(proxy))]
    some = tuple(Candidate(w, a) for a in range(8, 1, -1) for w in range(8, 1, -1))[: len(proxy[0])]
    return Problem(tuple(layers), (some,) * len(proxy), {"proxy": proxy}, rows)


def drawn(layers: int, choices: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """Scores and three costs: damage falls by four with each bit, latency follows the wider operand."""
    rng = np.random.default_rng(seed)
    numel = np.exp(rng.normal(11, 1.2, (layers, 1)))
    pairs = [(w, a) for a in range(8, 1, -1) for w in range(8, 1, -1)][:choices]
    w, a = (np.array([pair[k] for pair in pairs], dtype=float) for k in (0, 1))
    noise = np.exp(rng.normal(0, 1, (layers, 1)) + rng.normal(0, 0.4, (layers, choices)))
    damage = noise * np.sqrt(numel) * (4**-w + 0.3 * 4**-a)
    latency = numel**0.7 * (np.maximum(w, a) + rng.random(damage.shape)) / 1e3
    return damage, {"size_bytes": np.floor(numel * w / 8) + 256, "latency_us": latency, "bops": numel * w * a}


def by_peer(peer: str, problems: list[dict[str, Any]], environments: Path) -> list[dict[str, Any]]:
    """What a tool's solver class answers, in one process.

    Args:
        peer: `modelopt` or `mct`.
        problems: `scores` and `costs` (`L x C` lists) and `limits`.
        environments: Where the tools' environments are.

    Returns: For each problem `choices` at each limit, None where none was found, and CPU `seconds`.
    """
    ran = subprocess.run(
        [interpreter(peer, environments), WORKER],
        input=json.dumps({"peer": peer, "problems": problems}),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(ran.stderr[-600:])
    found: list[dict[str, Any]] = json.loads(ran.stdout.strip().splitlines()[-1])
    return found


@dataclass(frozen=True)
class Table:
    """Scores and sizes, `L x C`, with the optimum of each of its budgets."""

    title: str
    scores: np.ndarray[Any, Any]
    size: np.ndarray[Any, Any]
    limits: list[float]
    least: list[float]
    proven: int
    seconds: float

    @classmethod
    def of(cls, title: str, scores: np.ndarray[Any, Any], size: np.ndarray[Any, Any]) -> Table:
        """Solve all budgets."""
        problem = problem_of(scores, {"size_bytes": size})
        low, high = reachable(problem)["size_bytes"]
        limits = np.linspace(low, high, BUDGETS).tolist()
        start = time.process_time()
        best = [solve(problem, "proxy", [Budget("size_bytes", limit, "")]) for limit in limits]
        spent = time.process_time() - start
        least = [_total(scores, found.indices) for found in best]
        return cls(title, scores, size, limits, least, sum(b.status == "optimal" for b in best), spent)

    def given(self, factor: float) -> dict[str, Any]:
        """What a tool's solver is given."""
        return {
            "scores": (self.scores * factor).tolist(),
            "costs": self.size.tolist(),
            "limits": self.limits,
        }


def _total(table: Any, choices: Any) -> float:
    return float(sum(row[i] for row, i in zip(table, choices, strict=True)))


def compared(tables: list[Table], environments: Path) -> str:
    """Markdown: a part for each table, a row for each solver."""
    factors = (1.0, 1e6)
    problems = [table.given(factor) for table in tables for factor in factors]
    answers = {peer: iter(by_peer(peer, problems, environments)) for peer in ("modelopt", "mct")}
    parts = []
    for table in tables:
        parts += [
            f"## {table.title}\n\n{BUDGETS} equally spaced budgets of size; gaps are in predicted damage.\n",
            "| solver | scores | optimal | gap in %: p90, most | broke the budget or failed | CPU s |",
            "|---|---|---|---|---|---|",
            f"| mpsearch | as they are | {table.proven} of {BUDGETS}, proven | 0, 0 | 0 | {table.seconds:.2f} |",
        ]
        parts += [row_of(peer, f, next(answers[peer]), table) for peer in answers for f in factors]
        parts.append("")
    return "\n".join(parts)


def row_of(peer: str, factor: float, found: dict[str, Any], table: Table) -> str:
    """How far a tool's answers are from the optimum."""
    gaps, broken = [], 0
    for choices, limit, least in zip(found["choices"], table.limits, table.least, strict=True):
        if choices is None or _total(table.size, choices) > limit * (1 + 1e-9):
            broken += 1
            continue
        total = _total(table.scores, choices)
        gaps.append(100 * (total - least) / least if least > 0 else 100.0 * (total > 1e-15))
    right = sum(gap < 1e-6 for gap in gaps)
    name = {"modelopt": "ModelOpt 0.47 `LPS`", "mct": "MCT 2.6.1 `MixedPrecisionIntegerLPSolver`"}[peer]
    scale = "as they are" if factor == 1 else "x 1e6"
    spread = f"{np.percentile(gaps, 90):.1f}, {max(gaps):.0f}" if gaps else ""
    return f"| {name} | {scale} | {right} of {len(table.limits)} | {spread} | {broken} | {found['seconds']:.1f} |"


def scaled(layers: int, choices: int, share: float, seconds: float) -> str:
    """One solve under three budgets at once, each the same share of its range."""
    scores, costs = drawn(layers, choices)
    problem = problem_of(scores, costs)
    ends = reachable(problem)
    budgets = [Budget(r, ends[r][0] + share * (ends[r][1] - ends[r][0]), "") for r in THREE]
    wall, cpu = time.perf_counter(), time.process_time()
    found = solve(problem, "proxy", budgets, time_limit_s=seconds)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    total = _total(scores, found.indices)
    bound = found.bound if found.bound is not None else total
    gap = max(0.0, 100 * (total - bound) / total)  # the sums are not taken in the same order
    return f"| {layers} x {choices} | {share:.0%} | {found.status} | {gap:.4f} % | {cpu:.1f} | {wall:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.solvers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--environments", type=Path, default=ROOT / "studies" / "peers" / "environments")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of one solve of the scale test")
    parser.add_argument("--scale-only", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("# The solver beside the tools' own solver classes\n")
    print(
        "Command: `python -m benchmarks.peers.solvers > benchmarks/results/peers_solvers.md`, one thread.\n"
    )
    golden = json.loads(GOLDEN.read_text())["layers"]
    if not arguments.scale_only:
        scores, size = (np.array([layer[key] for layer in golden]) for key in ("scores", "costs"))
        random, costs = drawn(54, 7)
        title = "21 layers x 4 widths, Fisher-type scores of a ResNet18 (tests/golden/solver_resnet18.json)"
        tables = [
            Table.of(title, scores, size),
            Table.of("54 layers x 7 widths, drawn, scores times 1e-3", random * 1e-3, costs["size_bytes"]),
        ]
        print(compared(tables, arguments.environments), flush=True)
    print("## Scale: three budgets at once (size, latency, bit operations), mpsearch\n")
    print("| layers x choices | share of each range | status | gap to the bound | CPU s | wall s |")
    print("|---|---|---|---|---|---|")
    for layers, choices in ((100, 49), (300, 49), (1000, 49)):
        for share in (0.3, 0.6):
            print(scaled(layers, choices, share, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
