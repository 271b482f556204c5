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


def by_peer(peer: str, scores: Any, costs: Any, limits: list[float], environments: Path) -> dict[str, Any]:
    """Choices of a tool's solver class at each budget: `choices` (None where it found none) and `seconds`."""
    given = {"peer": peer, "scores": scores, "costs": costs, "limits": limits}
    ran = subprocess.run(
        [interpreter(peer, environments), WORKER],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(ran.stderr[-600:])
    found: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return found


def compared(scores: np.ndarray[Any, Any], size: np.ndarray[Any, Any], environments: Path) -> list[str]:
    """Rows of one table: budgets solved to the optimum, gaps, seconds."""
    problem = problem_of(scores, {"size_bytes": size})
    low, high = reachable(problem)["size_bytes"]
    limits = np.linspace(low, high, BUDGETS).tolist()
    start = time.process_time()
    best = [solve(problem, "proxy", [Budget("size_bytes", limit, "")]) for limit in limits]
    spent = time.process_time() - start
    totals = [sum(row[i] for row, i in zip(scores, found.indices, strict=True)) for found in best]
    proven = sum(found.status == "optimal" for found in best)
    rows = [f"| mpsearch | as they are | {proven} of {BUDGETS}, proven | 0, 0 | 0 | {spent:.2f} |"]
    for peer in ("modelopt", "mct"):
        for factor in (1.0, 1e6):
            found = by_peer(peer, (scores * factor).tolist(), size.tolist(), limits, environments)
            rows.append(row_of(peer, factor, found, (scores, size, limits, totals)))
    return rows


def row_of(peer: str, factor: float, found: dict[str, Any], about: Any) -> str:
    """How far a tool's answers are from the optimum."""
    scores, size, limits, totals = about
    gaps, broken = [], 0
    for choices, limit, least in zip(found["choices"], limits, totals, strict=True):
        if choices is None or sum(r[i] for r, i in zip(size, choices, strict=True)) > limit * (1 + 1e-9):
            broken += 1
            continue
        total = sum(r[i] for r, i in zip(scores, choices, strict=True))
        gaps.append(100 * (total - least) / least if least > 0 else 100.0 * (total > 1e-15))
    right = sum(gap < 1e-6 for gap in gaps)
    name = {"modelopt": "ModelOpt 0.47 `LPS`", "mct": "MCT 2.6.1 `MixedPrecisionIntegerLPSolver`"}[peer]
    scale = "as they are" if factor == 1 else "x 1e6"
    spread = f"{np.percentile(gaps, 90):.1f}, {max(gaps):.0f}" if gaps else ""
    return f"| {name} | {scale} | {right} of {BUDGETS} | {spread} | {broken} | {found['seconds']:.1f} |"


def scaled(layers: int, choices: int, share: float, seconds: float) -> str:
    """One solve under three budgets at once, each the same share of its range."""
    scores, costs = drawn(layers, choices)
    problem = problem_of(scores, costs)
    ends = reachable(problem)
    budgets = [Budget(r, ends[r][0] + share * (ends[r][1] - ends[r][0]), "") for r in THREE]
    wall, cpu = time.perf_counter(), time.process_time()
    found = solve(problem, "proxy", budgets, time_limit_s=seconds)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    total = sum(row[i] for row, i in zip(scores, found.indices, strict=True))
    bound = found.bound if found.bound is not None else total
    gap = 100 * (total - bound) / total
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
    tables = {
        "21 layers x 4 widths, Fisher-type scores of a ResNet18 (tests/golden/solver_resnet18.json)": (
            np.array([layer["scores"] for layer in golden]),
            np.array([layer["costs"] for layer in golden]),
        )
    }
    scores, costs = drawn(54, 7)
    tables["54 layers x 7 widths, drawn, scores x 1e-3"] = scores * 1e-3, costs["size_bytes"]
    for title, (scores, size) in {} if arguments.scale_only else tables.items():
        print(f"## {title}\n\n{BUDGETS} equally spaced budgets of size; gaps are in predicted damage.\n")
        print("| solver | scores | optimal | gap in %: p90, most | broke the budget or failed | CPU s |")
        print("|---|---|---|---|---|---|")
        print("\n".join(compared(scores, size, arguments.environments)), flush=True)
        print()
    print("## Scale: three budgets at once (size, latency, bit operations), mpsearch\n")
    print("| layers x choices | share of each range | status | gap to the bound | CPU s | wall s |")
    print("|---|---|---|---|---|---|")
    for layers, choices in ((100, 49), (300, 49), (1000, 49)):
        for share in (0.3, 0.6):
            print(scaled(layers, choices, share, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
