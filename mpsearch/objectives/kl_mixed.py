"""`kl_mixed`: `kl`, corrected by what assignments of mixed bits are measured to do."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mpsearch.objectives._base import OBJECTIVES, Objective, Passes, Rows, ScoringContext, monotone, require_positive
from mpsearch.objectives._grads import calibrated_units
from mpsearch.objectives._sampling import SampledEvaluator
from mpsearch.objectives.kl import Kl
from mpsearch.problem import Assignment, Candidate, Layer
from mpsearch.problem.assignment import FLOAT, FLOAT_INPUT
from mpsearch.search.correction import CorrectedTable, correct, positive, straightened

Array = NDArray[np.float64]
_UNIT_SD, _ENTRY_SD = 0.5, 0.25
"""Of the log-normal factors that a unit's row, and each entry of it, is multiplied with before an assignment of the first batch is drawn."""
_BATCH = 16
"""Assignments between two fits."""
_LEAST, _MOST = 0.12, 0.95
"""Where the mean bits of the drawn assignments lie between the fewest and the most that there are."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_HALVINGS = 40


@dataclass(frozen=True)
class Unit:
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
    So assignments are drawn, in batches: each is least in a table plus a price on bits, with prices such that the mean bits cover the range evenly. The
    tables of the first batch are `kl` times random factors; of the others, what the batches before say of the table, its most likely values and
    draws from it in turn (Thompson sampling), so that it becomes right where its own optima lie. They are measured on the images of `kl`. The result is
    the most likely table under log-normal factors, as in the search (`search.correction`), once the measured losses are brought in line with `kl` on
    average. So its sums order assignments, in units near those of `kl`, and are not their losses.

    References: ours; the correction is that of our sampler. Thompson, Biometrika 25, 1933.

    Args:
        images: As in `kl`.
        memory_mb: As in `kl`.
        assignments: How many are measured at most; one that is drawn again is not.
    """

    needs_data: ClassVar[bool] = True
    unit: ClassVar[str] = "nats, up to a rising function"
    images: int | None = None
    memory_mb: int = 2048
    assignments: int = 128

    def __post_init__(self) -> None:
        require_positive("kl_mixed", images=1 if self.images is None else self.images, memory_mb=self.memory_mb, assignments=self.assignments)

    @property
    def _kl(self) -> Kl:
        return Kl(images=self.images, memory_mb=self.memory_mb)

    def passes(self, context: ScoringContext) -> Passes:
        """Of `kl`, and one forward pass for every assignment at most."""
        return Passes(self._kl.passes(context).forward + self.assignments * self._kl.count(context))

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`; those of `kl` where no two assignments differ."""
        steps = len(context.layers) + self.assignments
        rows, evaluator = self.alone(context, steps)
        units = units_of(context, rows)
        if not units:
            return rows
        rng, losses, fitted = np.random.default_rng(context.seed), dict[tuple[int, ...], float](), None
        for number in range(self.assignments):
            if number % _BATCH == 0:
                fitted = _fit(units, losses)
            choices = _next(units, fitted, number, losses, rng)
            if choices not in losses:
                losses[choices] = evaluator.measure(assignment(context, units, choices))
            context.on_step(len(context.layers) + number + 1, steps)
        fitted = _fit(units, losses)
        if fitted is None:
            return rows
        table = fitted.mean()
        for unit, row in zip(units, table, strict=True):
            for at, value in zip(unit.candidates, row, strict=True):
                rows[unit.at][at] = float(value)
        return rows

    def alone(self, context: ScoringContext, steps: int) -> tuple[Rows, SampledEvaluator]:
        """The table of `kl`, and what measured it."""
        kl, on_step = self._kl, context.on_step
        evaluator = kl.evaluator(context)
        return kl.rows(replace(context, on_step=lambda done, _: on_step(done, steps)), evaluator), evaluator


def units_of(context: ScoringContext, rows: Rows) -> list[Unit]:
    """Calibrated units with an integer candidate, by name: nothing depends on the order of the layers. None where a row is not finite, which `score` tells."""
    if not all(math.isfinite(value) for row in rows for value in row):
        return []
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
            found.append(Unit(at, held, np.array([repaired[i] for i in held]), np.array(bits)))
    return found


def _input_numel(layer: Layer) -> int:
    return sum(math.prod(shape) for shape in layer.input_shapes)


def _bits(candidate: Candidate, weights: float, inputs: float) -> float:
    return weights * (candidate.w_bits or FLOAT_INPUT) + inputs * (candidate.a_bits or FLOAT_INPUT)


def _fit(units: Sequence[Unit], losses: Mapping[tuple[int, ...], float]) -> CorrectedTable | None:
    """The table that is most likely after the finite losses; None where there are fewer than two."""
    finite = {choices: loss for choices, loss in losses.items() if math.isfinite(loss) and loss > 0}
    if len(finite) < 2:
        return None
    damage, choices = [unit.damage for unit in units], np.array(list(finite))
    taken = np.column_stack([row[choices[:, m]] for m, row in enumerate(positive(damage))])
    return correct(damage, choices, np.exp(straightened(np.log(taken.sum(axis=1)), np.log(list(finite.values())))))


def _next(units: Sequence[Unit], fitted: CorrectedTable | None, number: int, seen: Container[tuple[int, ...]], rng: np.random.Generator) -> tuple[int, ...]:
    """Choices of each unit among its integer candidates in the assignment of this number."""
    at = number * _GOLDEN % 1
    if fitted is None:
        damage = [row * np.exp(rng.normal(0, _UNIT_SD) + rng.normal(0, _ENTRY_SD, len(row))) for row in positive([unit.damage for unit in units])]
        return _cheapest(damage, units, at)
    likely = _cheapest(fitted.mean(), units, at)
    return _cheapest(fitted.draw(rng), units, at) if number % 2 or likely in seen else likely


def _cheapest(damage: Sequence[Array], units: Sequence[Unit], at: float) -> tuple[int, ...]:
    """What is least in damage plus a price on bits, at the lowest price that keeps the bits within this place of the range: a point of the convex front."""
    least, most = (sum(float(end(unit.bits)) for unit in units) for end in (np.min, np.max))
    target = least + (_LEAST + (_MOST - _LEAST) * at) * (most - least)
    values = np.concatenate(damage)
    low, high = math.log(values.min()) - 20.0, math.log(values.max()) + 20.0
    found = tuple(int(np.argmin(unit.bits)) for unit in units)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        choices = tuple(int(np.argmin(row + math.exp(middle) * unit.bits)) for row, unit in zip(damage, units, strict=True))
        if sum(float(unit.bits[c]) for unit, c in zip(units, choices, strict=True)) <= target:
            high, found = middle, choices
        else:
            low = middle
    return found


def assignment(context: ScoringContext, units: Sequence[Unit], choices: Sequence[int]) -> Assignment:
    """Each unit at the choice among its integer candidates, everything else in float."""
    chosen = {context.layers[u.at].name: context.candidates[u.at][u.candidates[c]] for u, c in zip(units, choices, strict=True)}
    return Assignment(tuple((name, chosen.get(name, FLOAT)) for name in (*context.calibration.weights, *context.calibration.products)))
