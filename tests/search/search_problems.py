"""Problems with known answers, for the tests of the search."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from mpsearch.problem import Candidate, Layer, Problem

BITS = (2, 3, 4, 5, 6, 8)
CANDIDATES = tuple(Candidate(w, a) for a in (8, 6, 4) for w in (2, 3, 4, 5, 6, 8))


def problem(
    scores: Sequence[Sequence[float]],
    costs: dict[str, Sequence[Sequence[float]]],
    ties: Sequence[str | None] | None = None,
    constants: dict[str, float] | None = None,
) -> Problem:
    ties = ties or [None] * len(scores)
    layers = tuple(Layer(f"l{i}", "linear", (1, 1), ((1, 1),), (1, 1), 1, "block", tie) for i, tie in enumerate(ties))
    tables = {name: tuple(tuple(float(v) for v in row) for row in table) for name, table in {"proxy": scores, **costs}.items()}
    proxy = {"proxy": tables.pop("proxy")}
    return Problem(layers, tuple(CANDIDATES[: len(row)] for row in scores), proxy, tables, constants or {})


def random_problem(rng: np.random.Generator) -> Problem:
    """1 to 5 ragged layers, some tied; sizes in bytes, latencies that add up to the same decimals in many ways, scores of any scale."""
    ties = [None if rng.random() < 0.6 else "tie" for _ in range(rng.integers(1, 6))]
    tied = int(rng.integers(1, 5))
    widths = [tied if tie else int(rng.integers(1, 5)) for tie in ties]
    scale = rng.choice([1.0, 1e-6, 1e6])
    tables = {"size_bytes": [rng.integers(1, 50, w).tolist() for w in widths], "latency_us": [rng.random(w).round(1).tolist() for w in widths]}
    return problem([(scale * rng.random(w)).tolist() for w in widths], tables, ties, {"size_bytes": 3.0, "latency_us": 0.1})


def every_assignment(p: Problem) -> list[tuple[int, ...]]:
    every = itertools.product(*(range(len(c)) for c in p.candidates))
    return [x for x in every if all(len({x[i] for i in group}) == 1 for group in p.ties)]


def interacting(count: int, seed: int) -> tuple[Problem, Callable[[tuple[int, ...]], float]]:
    """A proxy, and a loss that it knows up to a factor for each entry and without the interaction of neighbouring layers."""
    rng = np.random.default_rng(seed)
    true = np.exp(rng.normal(-3, 1, (count, 1))) * np.exp(rng.normal(0, 0.15, (count, len(BITS)))) * 4.0 ** (2 - np.array(BITS))
    proxy = 37 * true * np.exp(rng.normal(0, 0.4, true.shape))
    rho = rng.uniform(-0.3, 0.8, count - 1)
    sizes = [[float(int(n * b / 8) + 256) for b in BITS] for n in np.exp(rng.normal(11, 1.2, count))]

    def loss(indices: tuple[int, ...]) -> float:
        taken = true[np.arange(count), list(indices)]
        return float(1.2 + taken.sum() + (rho * np.sqrt(taken[1:] * taken[:-1])).sum())

    return problem(proxy.tolist(), {"size_bytes": sizes}), loss
