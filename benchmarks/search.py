"""Times of the exact solvers on random tables: python benchmarks/search.py > benchmarks/results/search.md."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import scipy

from mpsearch.problem import Budget, Candidate, Interaction, Layer, Problem
from mpsearch.solvers import front_of_three, marginal_prices, problem_front, reachable, solve, solve_best

SIX = tuple(Candidate(b, b) for b in (2, 3, 4, 5, 6, 8))
SEVEN = tuple(Candidate(b, b) for b in range(2, 9))
THIRTY_SIX = tuple(Candidate(w, a) for w in range(3, 9) for a in range(3, 9))
SEED = 0


def table(layers: int, candidates: tuple[Candidate, ...], seed: int = SEED) -> Problem:
    """Log-normal layer sizes; damage falls by 4 with each bit; latency follows the larger bit-width."""
    rng = np.random.default_rng(seed)
    numel = np.exp(rng.normal(11, 1.2, (layers, 1)))
    w, a = (np.array([getattr(c, f"{k}_bits") for c in candidates], dtype=float) for k in "wa")
    damage = (
        np.exp(rng.normal(0, 1, (layers, 1)) + rng.normal(0, 0.4, (layers, len(w))))
        * np.sqrt(numel)
        * (4**-w + 0.3 * 4**-a)
    )
    latency = numel**0.7 * (np.maximum(w, a) + rng.random(damage.shape)) / 1e3
    size = np.floor(numel * w / 8) + 256
    names = [Layer(f"l{i}", "linear", (1, 1), ((1, 1),), (1, 1), 1, "block") for i in range(layers)]
    rows = {
        name: tuple(map(tuple, t.tolist()))
        for name, t in (("proxy", damage), ("size_bytes", size), ("latency_us", latency))
    }
    return Problem(
        tuple(names),
        (candidates,) * layers,
        {"proxy": rows["proxy"]},
        {r: rows[r] for r in ("size_bytes", "latency_us")},
    )


def converted(problem: Problem) -> Problem:
    """The same with a latency for each change of bits between neighbours: a fifth of the neighbours' mean."""
    rows, terms = problem.costs["latency_us"], []
    for i in range(len(rows) - 1):
        price = 0.1 * (float(np.mean(rows[i])) + float(np.mean(rows[i + 1])))
        shape = (len(rows[i]), len(rows[i + 1]))
        terms.append(
            Interaction(
                (i, i + 1), shape, tuple(price * (a != b) for a in range(shape[0]) for b in range(shape[1]))
            )
        )
    return replace(problem, conversions={"latency_us": tuple(terms)})


def timed(task: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall and CPU seconds, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = task()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def solves(problem: Problem, resources: tuple[str, ...]) -> tuple[list[tuple[float, float]], str]:
    """Times of nine budgets, the same share of each range, and how many were proven optimal."""
    seconds, proven, ends = [], 0, reachable(problem)
    for share in np.linspace(0.1, 0.9, 9):
        budgets = [Budget(r, ends[r][0] + float(share) * (ends[r][1] - ends[r][0]), "") for r in resources]
        wall, cpu, found = timed(lambda budgets=budgets: solve(problem, "proxy", budgets))
        proven += found.status == "optimal"
        seconds.append((wall, cpu))
    return seconds, f"{proven}/9 optimal"


def repeated(
    task: Callable[[], Any], say: Callable[[Any], str], times: int = 3
) -> tuple[list[tuple[float, float]], str]:
    found = [timed(task) for _ in range(times)]
    return [(wall, cpu) for wall, cpu, _ in found], say(found[-1][2])


def report(task: str, layers: int, choices: int, seconds: list[tuple[float, float]], result: str) -> None:
    wall, cpu = ([1e3 * s[k] for s in seconds] for k in (0, 1))
    figures = " | ".join(f"{f(values):.0f}" for values in (cpu, wall) for f in (statistics.median, max))
    print(f"| {task} | {layers} x {choices} | {figures} | {result} |", flush=True)


def half(problem: Problem, *resources: str) -> list[Budget]:
    ends = reachable(problem)
    return [Budget(r, sum(ends[r]) / 2, "") for r in resources]


def main() -> None:
    print(
        "# Exact solvers on random tables\n\nCommand: `python benchmarks/search.py > "
        "benchmarks/results/search.md`, one thread, seed 0. Times in ms."
    )
    versions = (
        f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__} "
        f"(HiGHS), {platform.machine()}"
    )
    print(
        f"{versions}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start: where the load "
        "is above the cores, read the CPU columns.\n"
    )
    print(
        "| task | layers x choices | CPU median | CPU most | wall median | wall most | result "
        "|\n|---|---|---|---|---|---|---|"
    )
    both = ("size_bytes", "latency_us")
    for layers, candidates in ((54, SIX), (150, SEVEN)):
        p = table(layers, candidates)
        whole = repeated(lambda p=p: problem_front(p, "proxy"), lambda f: f"{len(f)} points")
        report("whole front, size", layers, len(candidates), *whole)
    for layers, candidates in ((54, SIX), (150, THIRTY_SIX)):
        p = table(layers, candidates)
        report("one budget, size", layers, len(candidates), *solves(p, both[:1]))
        report("two budgets, size and latency", layers, len(candidates), *solves(p, both))
    small, linked = table(54, SIX), converted(table(54, SIX))
    report("one budget, latency with conversions", 54, 6, *solves(linked, both[1:]))
    report("two budgets, latency with conversions", 54, 6, *solves(linked, both))
    report(
        "whole front, latency with conversions",
        54,
        6,
        *repeated(lambda: problem_front(linked, "proxy", "latency_us"), lambda f: f"{len(f)} points", 1),
    )
    report(
        "10 best at distance 3, one budget",
        54,
        6,
        *repeated(
            lambda: solve_best(small, "proxy", half(small, "size_bytes"), 10, 3), lambda f: f"{len(f)}", 1
        ),
    )
    report(
        "20 prices, size",
        54,
        6,
        *repeated(lambda: marginal_prices(problem_front(small, "proxy"), 20), lambda f: f"{len(f)} steps"),
    )
    report(
        "front of three, 12 x 12 limits",
        54,
        6,
        *repeated(lambda: front_of_three(small, "proxy"), lambda f: f"{len(f)} points", 1),
    )


if __name__ == "__main__":
    main()
