"""`kl_front`: `kl`, fitted to what its own optima, and better assignments, were measured to do along the range of sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from mpsearch.evaluate.prefixes import MOST_PROBES
from mpsearch.objectives._base import OBJECTIVES, Objective, Parts, Passes, Rows, ScoringContext, require_positive
from mpsearch.objectives._sampling import pool_size
from mpsearch.objectives.fisher import Fisher
from mpsearch.objectives.kl import Kl
from mpsearch.objectives.kl_mixed import Unit, assignment, units_of
from mpsearch.objectives.output_mse import OutputMse
from mpsearch.problem import Problem
from mpsearch.search.aligned import LAST, align, damages, search_along, shortlist
from mpsearch.search.correction import positive
from mpsearch.search.superlayers import SuperLayers

_STEPS = 24
"""Parts of the range of bits; with weights of 2 to 8 bits, a part is a quarter of a bit."""
_SEARCHED = range(4, 21, 2)
_CHECKED = range(3, 23)
"""Sizes, in parts of the range, that are searched, and at and around which the table's optima are measured."""
_MORE, _AGAIN = 2, 8
"""Times the images of `kl`, as far as there are: of the search, and of what is measured after it."""
_SHORT = 3
"""Of the best of the search at each size, so many are measured again."""


@OBJECTIVES.register("kl_front")
@dataclass(frozen=True)
class KlFront(Objective):
    """A table that is fitted to measured losses where its exact optima lie, from an eighth of the range of bits to eleven twelfths, and these losses.

    The table of `kl` says what single units do. At nine sizes its optimum is measured, those of `fisher` (where the task has classes) and `output_mse`,
    which err elsewhere, and some exchanges around the best, each chosen by all that was measured before, as the polish of a search does, on twice the
    images of `kl`. The best of so many owes some of its place to these images, so the best few at each of twenty sizes are measured again on eight times
    those of `kl`. The table is then fitted to all of these, by factors near 1; its own optima at twenty sizes are measured on the latter images, and it is
    fitted anew, with other sizes each time (`search.aligned`). Its sums order assignments, and are not their losses. What no sum says, that errors of some
    units cancel in one assignment and add up in another, is known of those that were measured last: their damage stands in place of the sum.

    A size is the bits of all weights; where inputs have more than one width, those of all inputs are added.

    References: ours.

    Args:
        images: As in `kl`; `fisher` and `output_mse` use as many as they do alone.
        memory_mb: As in `kl`.
        exchanges: Measured at each of the nine sizes, at most.
        optima: Measured between fits of the table, at most; then those at twenty sizes, until they are known, three times at most.
    """

    needs_data: ClassVar[bool] = True
    unit: ClassVar[str] = "nats, up to a rising function"
    revision: ClassVar[int] = 1
    images: int | None = None
    memory_mb: int = 2048
    exchanges: int = 24
    optima: int = 100

    def __post_init__(self) -> None:
        require_positive("kl_front", images=1 if self.images is None else self.images, memory_mb=self.memory_mb, exchanges=self.exchanges, optima=self.optima)

    @property
    def _kl(self) -> Kl:
        return Kl(images=self.images, memory_mb=self.memory_mb)

    def _looks(self, context: ScoringContext) -> list[tuple[Kl, int]]:
        """With the images of the search and of what follows it, and how many assignments are measured on them, at most."""
        count, searched = self._kl.count(context), len(_SEARCHED) * (1 + len(_others(context)) + self.exchanges)
        more, again = (replace(self._kl, images=min(times * count, len(context.images))) for times in (_MORE, _AGAIN))
        return [(more, searched), (again, self.optima + len(_CHECKED) * (LAST + (_SHORT if again != more else 0)))]

    def passes(self, context: ScoringContext) -> Passes:
        """Of `kl`, one forward pass for every assignment at most, on the images of the search or of what follows it, and of the tables that the search
        starts from too.
        """
        kl, others = self._kl.passes(context), [objective.passes(context) for objective in _others(context)]
        forward, before = kl.forward + sum(o.forward for o in others), self._kl.count(context)
        for look, assignments in self._looks(context):
            count = look.count(context)
            forward += count * assignments + (2 * MOST_PROBES + count + pool_size(context, count) if count > before else 0)
            before = count
        return Passes(forward, sum(o.backward for o in others), sum(o.units for o in others))

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`; those of `kl` where there is nothing to choose."""
        return self.parts(context).total

    def parts(self, context: ScoringContext) -> Parts:
        """The table, and what was measured on the images of the last fits."""
        (search, searched), (again, judged) = self._looks(context)
        done, steps, on_step = len(context.layers), len(context.layers) + searched + judged, context.on_step
        evaluator = self._kl.evaluator(context)
        rows = self._kl.rows(replace(context, on_step=lambda done, _: on_step(done, steps)), evaluator)
        units = units_of(context, rows)
        problem, limits = _problem(context, units)
        if not limits:
            return Parts(rows)
        quiet = replace(context, on_step=lambda done, total: None)  # the other tables take little of the time
        problem = replace(problem, scores=problem.scores | {o.name: _of_units(o.score(quiet), units) for o in _others(context)})
        layers = SuperLayers.of([len(c) for c in problem.candidates], problem.ties)

        def measure(indices: Sequence[int]) -> float:
            return evaluator.measure(assignment(context, units, indices))

        def step() -> None:
            nonlocal done
            done += 1
            on_step(done, steps)

        if search.count(context) > self._kl.count(context):
            evaluator = search.evaluator(context)
        losses = search_along(problem, tuple(problem.scores), [limits[k] for k in _SEARCHED], measure, self.exchanges, step)
        alone = positive([unit.damage for unit in units])
        order, checked = _order(context, units, layers), [limits[k] for k in _CHECKED]
        before: dict[tuple[int, ...], float] = {}
        if again.count(context) > search.count(context):
            evaluator, before, losses = again.evaluator(context), losses, {}
            for indices in shortlist(problem, before, checked, _SHORT):
                losses[indices] = measure(indices)
                step()
        found = align(problem, layers.merge([row.tolist() for row in alone]), losses, checked, measure, self.optima, before, order, step)
        for group, row in zip(layers.groups, found, strict=True):
            together = sum(alone[i] for i in group)
            for unit, part in ((units[i], alone[i]) for i in group):
                for at, value in zip(unit.candidates, row * part / together, strict=True):
                    rows[unit.at][at] = float(value)
        while done < steps:  # those that were not needed
            step()
        known = tuple((_of_layers(context, units, indices), damage) for indices, damage in damages(problem, found, losses).items())
        return Parts(rows, notes=(f"the damage of {len(known)} measured assignments stands in place of their sums",), measured=known)


def _of_layers(context: ScoringContext, units: Sequence[Unit], indices: Sequence[int]) -> tuple[int, ...]:
    """Choices of all layers from those of the units, whose integer candidates are counted alone; what is no unit is float."""
    found = [next((at for at, candidate in enumerate(row) if candidate.is_float), 0) for row in context.candidates]
    for unit, choice in zip(units, indices, strict=True):
        found[unit.at] = unit.candidates[choice]
    return tuple(found)


def _others(context: ScoringContext) -> tuple[Fisher | OutputMse, ...]:
    """Whose optima the search starts from beside those of `kl`."""
    return (Fisher(), OutputMse()) if context.task.classes else (OutputMse(),)


def _of_units(rows: Rows, units: Sequence[Unit]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(rows[unit.at][c]) for c in unit.candidates) for unit in units)


def _problem(context: ScoringContext, units: Sequence[Unit]) -> tuple[Problem, dict[int, float]]:
    """The choice among the integer candidates of units, and its limits in bits by part of the range; no limits where nothing is to be chosen."""
    several = len({c.a_bits for row in context.candidates for c in row if not c.is_float}) > 1
    layers, candidates, sizes = [], [], []
    for unit in units:
        layer, row = context.layers[unit.at], context.candidates[unit.at]
        inputs = sum(math.prod(shape) for shape in layer.input_shapes) if several or not layer.weight_numel else 0
        layers.append(layer)
        candidates.append(tuple(row[c] for c in unit.candidates))
        sizes.append(tuple(float(layer.weight_numel * (c.w_bits or 0) + inputs * (c.a_bits or 0)) for c in candidates[-1]))
    scores = {"kl": tuple(tuple(map(float, unit.damage)) for unit in units)}
    least, most = (sum(end(row) for row in sizes) for end in (min, max))
    limits = {k: least + (most - least) * k / _STEPS for k in _CHECKED} if most > least else {}
    return Problem(tuple(layers), tuple(candidates), scores, {"size_bytes": tuple(sizes)}), limits


def _order(context: ScoringContext, units: Sequence[Unit], layers: SuperLayers) -> list[tuple[int, int, int]]:
    """Super-layer and neighbours in weight bits among its candidates of equal input bits and granularity, fewer bits first."""
    found = []
    for m, (first, *_) in enumerate(layers.groups):
        kinds: dict[object, list[tuple[int, int]]] = {}
        for position, c in enumerate(units[first].candidates):
            candidate = context.candidates[units[first].at][c]
            kinds.setdefault((candidate.a_bits, candidate.w_granularity), []).append((candidate.w_bits or 0, position))
        for held in kinds.values():
            held.sort()
            found += [(m, fewer, more) for (_, fewer), (_, more) in itertools.pairwise(held)]
    return found
