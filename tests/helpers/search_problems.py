"""Problems with known answers, for the tests of the search."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpsearch.problem import RESOURCES, Budget, Candidate, Interaction, Layer, Problem
from mpsearch.solvers import reachable

GOLDEN = Path(__file__).parents[1] / "golden"
"""Problems that others have published or solved, with the best that is known."""
BITS = (2, 3, 4, 5, 6, 8)
CANDIDATES = tuple(Candidate(w, a) for a in (8, 6, 4) for w in (2, 3, 4, 5, 6, 8))


def problem(
    scores: Sequence[Sequence[float]],
    costs: dict[str, Sequence[Sequence[float]]],
    ties: Sequence[str | None] | None = None,
    constants: dict[str, float] | None = None,
) -> Problem:
    ties = ties or [None] * len(scores)
    layers = tuple(
        Layer(f"l{i}", "linear", (1, 1), ((1, 1),), (1, 1), 1, "block", tie) for i, tie in enumerate(ties)
    )
    tables = {
        name: tuple(tuple(float(v) for v in row) for row in table)
        for name, table in {"proxy": scores, **costs}.items()
    }
    proxy = {"proxy": tables.pop("proxy")}
    return Problem(layers, tuple(CANDIDATES[: len(row)] for row in scores), proxy, tables, constants or {})


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text())


def random_problem(rng: np.random.Generator) -> Problem:
    """1 to 5 ragged layers, some tied; sizes in bytes, latencies that add up to the same decimals in many
    ways, scores of any scale.
    """
    ties = [None if rng.random() < 0.6 else "tie" for _ in range(rng.integers(1, 6))]
    tied = int(rng.integers(1, 5))
    widths = [tied if tie else int(rng.integers(1, 5)) for tie in ties]
    scale = rng.choice([1.0, 1e-6, 1e6])
    tables = {
        "size_bytes": [rng.integers(1, 50, w).tolist() for w in widths],
        "latency_us": [rng.random(w).round(1).tolist() for w in widths],
    }
    return problem(
        [(scale * rng.random(w)).tolist() for w in widths],
        tables,
        ties,
        {"size_bytes": 3.0, "latency_us": 0.1},
    )


def every_assignment(p: Problem) -> list[tuple[int, ...]]:
    every = itertools.product(*(range(len(c)) for c in p.candidates))
    return [x for x in every if all(len({x[i] for i in group}) == 1 for group in p.ties)]


def interacting(count: int, seed: int) -> tuple[Problem, Callable[[tuple[int, ...]], float]]:
    """A proxy, and a loss that it knows up to a factor for each entry and without the interaction of
    neighbouring layers.
    """
    rng = np.random.default_rng(seed)
    true = (
        np.exp(rng.normal(-3, 1, (count, 1)))
        * np.exp(rng.normal(0, 0.15, (count, len(BITS))))
        * 4.0 ** (2 - np.array(BITS))
    )
    proxy = 37 * true * np.exp(rng.normal(0, 0.4, true.shape))
    rho = rng.uniform(-0.3, 0.8, count - 1)
    sizes = [[float(int(n * b / 8) + 256) for b in BITS] for n in np.exp(rng.normal(11, 1.2, count))]

    def loss(indices: tuple[int, ...]) -> float:
        taken = true[np.arange(count), list(indices)]
        return float(1.2 + taken.sum() + (rho * np.sqrt(taken[1:] * taken[:-1])).sum())

    return problem(proxy.tolist(), {"size_bytes": sizes}), loss


def pairs_of(p: Problem, rng, chance: float, draw) -> tuple[Interaction, ...]:
    """Random tables, mostly between neighbours."""
    found = []
    for a, b in itertools.combinations(range(len(p.layers)), 2):
        if rng.random() < (chance if b == a + 1 else chance / 4):
            shape = (len(p.candidates[a]), len(p.candidates[b]))
            found.append(Interaction((a, b), shape, tuple(draw(math.prod(shape)).tolist())))
    return tuple(found)


def everything(rng) -> Problem:
    """1 to 5 ragged layers, ties, costs that add up to the same in many ways, a peak, conversions and
    interactions, scores of any scale.
    """
    ties = [None if rng.random() < 0.6 else "tie" for _ in range(rng.integers(1, 6))]
    tied = int(rng.integers(1, 5))
    widths = [tied if tie else int(rng.integers(1, 5)) for tie in ties]
    scale = rng.choice([1.0, 1e-6, 1e6])
    costs = {
        "size_bytes": [rng.integers(1, 50, w).tolist() for w in widths],
        "latency_us": [rng.random(w).round(1).tolist() for w in widths],
        "energy_mj": [rng.random(w).tolist() for w in widths],
        "memory_bytes": [rng.integers(1, 20, w).tolist() for w in widths],
        "bops": [rng.integers(1, 4, w).tolist() for w in widths],
    }
    p = problem(
        [(scale * rng.random(w)).tolist() for w in widths],
        costs,
        ties,
        {"size_bytes": 3.0, "latency_us": 0.1, "memory_bytes": 5.0},
    )
    conversions = {
        "latency_us": pairs_of(p, rng, 0.7, lambda n: rng.random(n).round(1)),
        "size_bytes": pairs_of(p, rng, 0.2, lambda n: rng.integers(-3, 9, n).astype(float)),
    }
    p = replace(p, conversions={r: terms for r, terms in conversions.items() if terms})
    return (
        replace(p, interactions={"proxy": pairs_of(p, rng, 0.5, lambda n: scale * rng.normal(0, 0.3, n))})
        if rng.random() < 0.4
        else p
    )


def some_budgets(p: Problem, rng, every) -> list[Budget]:
    """Up to three budgets, each at what some assignment costs: met exactly, by many or by few."""
    resources = rng.permutation(RESOURCES)[: rng.integers(0, 4)]
    at = (
        [every[rng.integers(len(every))]] * 3
        if rng.random() < 0.4
        else [every[rng.integers(len(every))] for _ in range(3)]
    )
    return [Budget(str(r), getattr(p.cost(x), str(r)), str(r)) for r, x in zip(resources, at, strict=False)]


def keeps(p: Problem, x, budgets) -> bool:
    return all(getattr(p.cost(x), b.resource) <= b.limit for b in budgets)


def budget(p: Problem, resource: str, share: float) -> Budget:
    low, high = reachable(p)[resource]
    return Budget(resource, low + share * (high - low), resource)


def chain(count: int, width: int, seed: int = 0) -> Problem:
    """Layers whose latency is paid once more between neighbours that differ in format."""
    rng = np.random.default_rng(seed)
    damage = np.exp(rng.normal(-1, 1, (count, 1))) * np.sort(rng.random((count, width)))[:, ::-1]
    size, latency = (rng.integers(5, 80, (count, 1)) * np.arange(1, width + 1) for _ in range(2))
    p = problem(damage.tolist(), {"size_bytes": size.tolist(), "latency_us": (latency / 10).tolist()})
    differ = tuple(float(3 * (a % 2 != b % 2)) for a in range(width) for b in range(width))
    return replace(
        p,
        conversions={
            "latency_us": tuple(Interaction((i, i + 1), (width, width), differ) for i in range(count - 1))
        },
    )
