"""`kl_mixed`: `kl`, corrected by what assignments of mixed bits are measured to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mpsearch.evaluate import FastEvaluator
from mpsearch.objectives._base import OBJECTIVES, Objective, Passes, Rows, ScoringContext, monotone, require_positive
from mpsearch.objectives._grads import calibrated_units
from mpsearch.objectives.kl import Kl
from mpsearch.problem import Assignment, Candidate, Layer
from mpsearch.problem.assignment import FLOAT, FLOAT_INPUT
from mpsearch.search.correction import correct, positive

Array = NDArray[np.float64]
_UNIT_SD, _ENTRY_SD = 0.5, 0.25
"""Of the log-normal factors that a unit's row, and each entry of it, is multiplied with before an assignment is drawn from the table."""
_LEAST, _MOST = 0.12, 0.95
"""Where the mean bits of the drawn assignments lie between the fewest and the most that there are."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_HALVINGS = 40


@dataclass(frozen=True)
class _Unit:
    """A calibrated unit with the candidates that quantise it.

    Args:
        at: Its place among the layers.
        candidates: Their places among its choices.
        damage: `kl` of each, repaired to be monotone in bits.
        bits: Of each: share of the model's weights times weight bits, and share of the inputs times input bits.
    """

    at: int
    candidates: tuple[int, ...]
    damage: Array
    bits: Array


@OBJECTIVES.register("kl_mixed")
@dataclass(frozen=True)
class KlMixed(Objective):
    """`kl` with a factor on each unit and on each entry, fitted to the measured KL divergence of assignments that mix bits.

    What single units do does not add up: errors of two units reinforce or cancel each other, and a unit's damage depends on what those before it do to
    its input. A sum cannot say so of every pair, but its terms can be right on average where they are used, beside other units that are quantised.
    So assignments are drawn: each is least in the `kl` table times random factors plus a price on bits, with prices such that the mean bits cover the
    range evenly. They are measured on the images of `kl`, and the result is the most likely table under log-normal factors, as in the search
    (`search.correction`). Its sums order assignments, and are nats up to a power near 1.

    References: ours; the correction is that of our sampler.

    Args:
        images: As in `kl`.
        memory_mb: As in `kl`.
        assignments: How many are measured.
    """

    needs_data: ClassVar[bool] = True
    unit: ClassVar[str] = "nats, up to a power"
    images: int | None = None
    memory_mb: int = 2048
    assignments: int = 64

    def __post_init__(self) -> None:
        require_positive("kl_mixed", images=1 if self.images is None else self.images, memory_mb=self.memory_mb, assignments=self.assignments)

    @property
    def _kl(self) -> Kl:
        return Kl(images=self.images, memory_mb=self.memory_mb)

    def passes(self, context: ScoringContext) -> Passes:
        """Of `kl`, and one forward pass for every assignment."""
        return Passes(self._kl.passes(context).forward + self.assignments * self._kl.count(context))

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`; those of `kl` where no two assignments differ."""
        steps = len(context.layers) + self.assignments
        rows, evaluator = self._alone(context, steps)
        units = _units(context, rows)
        losses: dict[tuple[int, ...], float] = {}
        for done, choices in enumerate(_drawn(units, self.assignments, context.seed), start=len(context.layers) + 1):
            if choices not in losses:
                losses[choices] = evaluator.measure(_assignment(context, units, choices))
            context.on_step(done, steps)
        finite = {choices: loss for choices, loss in losses.items() if math.isfinite(loss)}
        if len(finite) < 2:
            return rows
        table = correct([unit.damage for unit in units], np.array(list(finite)), np.array(list(finite.values()))).mean()
        for unit, row in zip(units, table, strict=True):
            for at, value in zip(unit.candidates, row, strict=True):
                rows[unit.at][at] = float(value)
        return rows

    def _alone(self, context: ScoringContext, steps: int) -> tuple[Rows, FastEvaluator]:
        """The table of `kl`, and what measured it."""
        kl, on_step = self._kl, context.on_step
        evaluator = kl.evaluator(context)
        return kl.rows(replace(context, on_step=lambda done, _: on_step(done, steps)), evaluator), evaluator


def _units(context: ScoringContext, rows: Rows) -> list[_Unit]:
    """Calibrated units with an integer candidate, by name: nothing depends on the order of the layers."""
    calibrated = set(calibrated_units(context))
    weights = sum(layer.weight_numel for layer in context.layers)
    inputs = sum(_input_numel(layer) for layer in context.layers)
    found = []
    for at in sorted(range(len(rows)), key=lambda i: context.layers[i].name):
        layer, candidates = context.layers[at], context.candidates[at]
        held = tuple(i for i, candidate in enumerate(candidates) if not candidate.is_float)
        if layer.name in calibrated and held:
            repaired, _ = monotone(candidates, rows[at])
            bits = [_bits(candidates[i], layer.weight_numel / max(weights, 1), _input_numel(layer) / inputs) for i in held]
            found.append(_Unit(at, held, np.array([repaired[i] for i in held]), np.array(bits)))
    return found


def _input_numel(layer: Layer) -> int:
    return sum(math.prod(shape) for shape in layer.input_shapes)


def _bits(candidate: Candidate, weights: float, inputs: float) -> float:
    return weights * (candidate.w_bits or FLOAT_INPUT) + inputs * (candidate.a_bits or FLOAT_INPUT)


def _drawn(units: Sequence[_Unit], count: int, seed: int) -> list[tuple[int, ...]]:
    """Choices of each unit among its integer candidates, in `count` assignments; no choices where there are no units."""
    if not units:
        return [()] * count
    rng = np.random.default_rng(seed)
    damage = positive([unit.damage for unit in units])
    least, most = (sum(float(end(unit.bits)) for unit in units) for end in (np.min, np.max))
    drawn = []
    for number in range(count):
        target = least + (_LEAST + (_MOST - _LEAST) * (number * _GOLDEN % 1)) * (most - least)
        noisy = [row * np.exp(rng.normal(0, _UNIT_SD) + rng.normal(0, _ENTRY_SD, len(row))) for row in damage]
        drawn.append(_cheapest(noisy, [unit.bits for unit in units], target))
    return drawn


def _cheapest(damage: Sequence[Array], bits: Sequence[Array], target: float) -> tuple[int, ...]:
    """What is least in damage plus a price on bits, at the lowest price that keeps the bits within `target`: a point of the convex front."""
    values = np.concatenate(damage)
    low, high = math.log(values.min()) - 20.0, math.log(values.max()) + 20.0
    found = tuple(int(np.argmin(b)) for b in bits)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        choices = tuple(int(np.argmin(d + math.exp(middle) * b)) for d, b in zip(damage, bits, strict=True))
        if sum(float(b[c]) for b, c in zip(bits, choices, strict=True)) <= target:
            high, found = middle, choices
        else:
            low = middle
    return found


def _assignment(context: ScoringContext, units: Sequence[_Unit], choices: Sequence[int]) -> Assignment:
    chosen = {context.layers[u.at].name: context.candidates[u.at][u.candidates[c]] for u, c in zip(units, choices, strict=True)}
    return Assignment(tuple((name, chosen.get(name, FLOAT)) for name in (*context.calibration.weights, *context.calibration.products)))
