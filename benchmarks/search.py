"""Times of the exact solvers on random tables: python benchmarks/search.py."""

from __future__ import annotations

import platform
import statistics
import time

import numpy as np
import scipy

from mpsearch.problem import Budget, Candidate, Layer, Problem
from mpsearch.search import exact_front, reachable, solve

SIX = tuple(Candidate(b, b) for b in (2, 3, 4, 5, 6, 8))
SEVEN = tuple(Candidate(b, b) for b in range(2, 9))
THIRTY_SIX = tuple(Candidate(w, a) for w in range(3, 9) for a in range(3, 9))


def table(layers: int, candidates: tuple[Candidate, ...], seed: int = 0) -> Problem:
    """Log-normal layer sizes; damage falls by 4 with each bit; latency follows the larger bit-width."""
    rng = np.random.default_rng(seed)
    numel = np.exp(rng.normal(11, 1.2, (layers, 1)))
    w, a = (np.array([getattr(c, f"{k}_bits") for c in candidates], dtype=float) for k in "wa")
    damage = np.exp(rng.normal(0, 1, (layers, 1)) + rng.normal(0, 0.4, (layers, len(w)))) * np.sqrt(numel) * (4**-w + 0.3 * 4**-a)
    latency = numel**0.7 * (np.maximum(w, a) + rng.random(damage.shape)) / 1e3
    size = np.floor(numel * w / 8) + 256
    names = [Layer(f"l{i}", "linear", (1, 1), ((1, 1),), (1, 1), 1, "block") for i in range(layers)]
    rows = {name: tuple(map(tuple, t.tolist())) for name, t in (("proxy", damage), ("size_bytes", size), ("latency_us", latency))}
    return Problem(tuple(names), (candidates,) * layers, {"proxy": rows["proxy"]}, {r: rows[r] for r in ("size_bytes", "latency_us")})


def solve_times(problem: Problem, resources: tuple[str, ...]) -> tuple[list[float], str]:
    """Seconds and how many of nine budgets, the same share of each range, were proven optimal."""
    seconds, proven = [], 0
    ends = reachable(problem)
    for share in np.linspace(0.1, 0.9, 9):
        budgets = [Budget(r, ends[r][0] + float(share) * (ends[r][1] - ends[r][0]), "") for r in resources]
        start = time.perf_counter()
        proven += solve(problem, "proxy", budgets).status == "optimal"
        seconds.append(time.perf_counter() - start)
    return seconds, f"{proven}/9 optimal"


def main() -> None:
    print(f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, {platform.machine()}\n")
    print(f"{'task':<28}{'layers':>7}{'choices':>9}{'median':>11}{'slowest':>11}  result")
    for layers, candidates in ((54, SIX), (150, SEVEN)):
        problem, seconds = table(layers, candidates), []
        for _ in range(3):
            start = time.perf_counter()
            front = exact_front(problem.scores["proxy"], problem.costs["size_bytes"])
            seconds.append(time.perf_counter() - start)
        report("whole front, size", layers, len(candidates), seconds, f"{len(front)} points")
    for layers, candidates in ((54, SIX), (150, THIRTY_SIX)):
        report("one budget, size", layers, len(candidates), *solve_times(table(layers, candidates), ("size_bytes",)))
        report("two budgets, size + latency", layers, len(candidates), *solve_times(table(layers, candidates), ("size_bytes", "latency_us")))


def report(task: str, layers: int, choices: int, seconds: list[float], result: str) -> None:
    print(f"{task:<28}{layers:>7}{choices:>9}{statistics.median(seconds) * 1e3:>8.0f} ms{max(seconds) * 1e3:>8.0f} ms  {result}")


if __name__ == "__main__":
    main()
