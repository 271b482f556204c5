"""Whole models at mixed assignments: which to measure, and measuring them in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from mpsearch.hardware.backends import Bench
from mpsearch.hardware.rows import ModelRun

Kernels = tuple[str, ...]
GROUP = 6
"""Models that are held in memory together."""


@dataclass(frozen=True)
class WholeModel:
    """A whole model as a runtime has built it.

    Args:
        run: Does one call.
        as_asked: Whether each unit runs in the kernel that was asked for.
    """

    run: Callable[[], object]
    as_asked: bool = True


def mixed_kernels(
    choices: Sequence[Sequence[str]], ties: Sequence[Sequence[int]], count: int, seed: int
) -> list[Kernels]:
    """Assignments of kernels to measure: each uniform one, then random ones, two thirds of independent draws
    and one third of contiguous runs.

    Each random one draws first how often it takes each kernel, so that almost uniform and thoroughly mixed
    ones both occur.

    Args:
        choices: For each of L layers the kernels that it has.
        ties: Groups of layers that share a choice; every layer is in one.
        count: How many, the uniform ones included; fewer where no more differ.
        seed: Random seed of the draws.
    """
    draw = np.random.default_rng(seed)
    names = sorted({kernel for row in choices for kernel in row})
    found = dict.fromkeys(_spread(choices, ties, [name] * len(ties)) for name in names)
    for attempt in range(20 * count):
        if len(found) >= count:
            break
        share = draw.dirichlet(np.ones(len(names)))
        picked = [str(v) for v in draw.choice(names, len(ties), p=share)]
        if attempt % 3 == 2:
            picked = _blocky(draw, names, len(ties))
        found[_spread(choices, ties, picked)] = None
    return list(found)[:count]


def _blocky(draw: np.random.Generator, names: Sequence[str], length: int) -> list[str]:
    """Runs of one kernel, cut at two to five random places."""
    cuts = sorted(draw.integers(0, length + 1, int(draw.integers(2, 6))).tolist())
    picked: list[str] = []
    for start, end in zip([0, *cuts], [*cuts, length], strict=True):
        picked += [str(draw.choice(names))] * (end - start)
    return picked


def _spread(
    choices: Sequence[Sequence[str]], ties: Sequence[Sequence[int]], picked: Sequence[str]
) -> Kernels:
    """One kernel for each layer from one for each tie; a layer that lacks it has its first."""
    kernels = [row[0] for row in choices]
    for group, name in zip(ties, picked, strict=True):
        for layer in group:
            if name in choices[layer]:
                kernels[layer] = name
    return tuple(kernels)


def measure_models(
    model: str,
    wanted: Sequence[Kernels],
    build: Callable[[Kernels], WholeModel],
    bench: Bench,
    *,
    batch: int = 1,
    group: int = GROUP,
    seed: int = 0,
) -> Iterator[ModelRun]:
    """Measure whole models, each in two passes that lie apart in time; a group that is done is yielded at
    once.

    Args:
        model: `model_key` of the architecture.
        wanted: Kernels of each model.
        build: Makes one of them ready to run.
        bench: What times them.
        batch: Images in a call.
        group: Models held in memory together.
        seed: Random seed of the orders.
    """
    with bench.held():
        for start in range(0, len(wanted), group):
            asked = wanted[start : start + group]
            built = [build(kernels) for kernels in asked]
            found = bench.measure_models([b.run for b in built], seed + start)
            for kernels, whole, measured in zip(asked, built, found, strict=True):
                status = "fallback" if not whole.as_asked else "ok" if measured.steady else "unstable"
                now, timing = datetime.now(UTC).isoformat(timespec="seconds"), measured.timing
                numbers = (timing.passes_us, timing.iqr_us, measured.anchor_us, status, timing.clock, now)
                yield ModelRun(model, batch, kernels, *numbers, measured.energies_mj)
