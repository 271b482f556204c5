"""`ObjectiveContract`: what holds of every objective, ours or a third party's."""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
from typing import Any, ClassVar

import torch

from mpsearch.objectives import OBJECTIVES, Objective, ScoringContext, score
from mpsearch.problem import Candidate, Layer
from mpsearch.pytrees import leaves_of
from mpsearch.testing.nets import NETS, TinyNet, tiny_net
from mpsearch.testing.state import left_as_found

TEXTS = ("W2A8", "W3A8", "W4A8", "W8A8", "W2A4", "W4A4", "W8A4", "W4A8/tensor", "float")
CANDIDATES = tuple(Candidate.parse(text) for text in TEXTS)
_TOLERANCE = 1e-3
_IMAGES = 10  # two batches of 5, or 8 and 2
Rows = list[list[float]]


class ObjectiveContract:
    """Inherit it, name the objectives as on the command line, and pytest runs every check on every one of
    them and on both small nets.

    ```
    class TestSpread(ObjectiveContract):
        objectives = ("weight_spread", "weight_spread:power=1")
    ```

    Each check is a method that takes the objective's text and a net's name; more can be added beside them.
    """

    objectives: ClassVar[tuple[str, ...]] = ()
    nets: ClassVar[tuple[str, ...]] = NETS

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """A hook of pytest: one test for each objective and net."""
        if not self.objectives:
            raise TypeError(
                f"{type(self).__name__} names no objectives. Set `objectives = ('my_objective',)` in the "
                "class."
            )
        for name, values in (("objective", self.objectives), ("net", self.nets)):
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values)

    def context(self, net: str, **changes: Any) -> ScoringContext:
        """The units of a small net, and an activation product, at nine candidates each."""
        return dataclasses.replace(_context(_held(net)), **changes)

    def test_finite_not_negative_float_is_zero(self, objective: str, net: str) -> None:
        """`L x C_l` floats; the float candidate and a unit without a weight have no damage, 2 bits have
        some.
        """
        context = self.context(net)
        rows = _rows(OBJECTIVES.create(objective), context)
        assert [len(row) for row in rows] == [len(c) for c in context.candidates], (
            "the table has not one entry for each layer and candidate"
        )
        wrong = [v for row in rows for v in row if not (isinstance(v, float) and math.isfinite(v) and v >= 0)]
        assert not wrong, f"no finite float of 0 or more: {wrong[:5]}"
        assert all(row[TEXTS.index("float")] == 0 for row in rows), "a float candidate has damage"
        assert not any(rows[-1]), "a unit without a weight has damage"
        assert all(row[TEXTS.index("W2A8")] > 0 for row in rows[:-1]), "a weight of 2 bits has no damage"

    def test_monotone_in_weight_bits_after_the_repair(self, objective: str, net: str) -> None:
        """More weight bits never score worse at equal input bits, once `score` has repaired the table."""
        report = score(OBJECTIVES.create(objective), self.context(net))
        for row in report.rows:
            at = dict(zip(TEXTS, row, strict=True))
            assert at["W2A8"] >= at["W3A8"] >= at["W4A8"] >= at["W8A8"], f"not monotone: {at}"
            assert at["W2A4"] >= at["W4A4"] >= at["W8A4"], f"not monotone: {at}"
        assert report.seconds > 0
        assert report.violations >= 0

    def test_deterministic_whatever_the_global_random_state(self, objective: str, net: str) -> None:
        """The same seed gives the same table; the global generators do not matter."""
        first = score(OBJECTIVES.create(objective), self.context(net))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1234)
            again = score(OBJECTIVES.create(objective), self.context(net))
        assert again.rows == first.rows, "two runs with one seed differ"

    def test_the_model_and_its_surroundings_are_as_found(self, objective: str, net: str) -> None:
        """Weights, gradients, hooks, modes, random states, calibration and images do not change."""
        context = self.context(net)
        weights, pixels = (
            {unit: w.clone() for unit, w in context.calibration.weights.items()},
            context.images.inputs(),
        )
        with left_as_found(context.module):
            score(OBJECTIVES.create(objective), context)
        assert all(torch.equal(context.calibration.weights[unit], kept) for unit, kept in weights.items()), (
            "the calibration's weights have changed"
        )
        assert all(map(torch.equal, leaves_of(context.images.inputs()), leaves_of(pixels))), (
            "the images have changed"
        )

    def test_looks_at_images_only_where_it_says_so(self, objective: str, net: str) -> None:
        """`needs_data` says whether the images are looked at."""
        member, context = OBJECTIVES.create(objective), self.context(net)
        blind = dataclasses.replace(context, images=_Untouchable())
        try:
            rows = _rows(member, blind)
        except _LookedAtError:
            assert member.needs_data, "looks at the images, but needs_data is False"
            return
        assert not member.needs_data, "does not look at the images, but needs_data is True"
        assert rows == _rows(member, context)

    def test_pickles_and_says_what_it_is(self, objective: str, net: str) -> None:
        """A frozen, hashable, picklable dataclass with its class flags; the copy gives the same table."""
        member = OBJECTIVES.create(objective)
        again = pickle.loads(pickle.dumps(member))  # noqa: S301
        assert again == member and hash(again) == hash(member), "a pickled copy differs"
        assert member.name == objective.partition(":")[0]
        assert isinstance(member.additive, bool) and isinstance(member.needs_data, bool), (
            "additive and needs_data must be bool"
        )
        assert member.unit, "the unit of a score is not named"
        assert getattr(type(member), "__dataclass_params__").frozen, "the dataclass is not frozen"  # noqa: B009
        assert _rows(again, self.context(net)) == _rows(member, self.context(net)), (
            "a pickled copy scores differently"
        )

    def test_the_parts_have_the_shape_of_the_table(self, objective: str, net: str) -> None:
        """`parts` gives the table of `score`; what weights and inputs contribute, where it is told, for each
        entry of it.
        """
        member, context = OBJECTIVES.create(objective), self.context(net)
        with torch.no_grad():
            parts = member.parts(context)
        assert parts.total == _rows(member, context), "parts and score give different tables"
        for name in ("weights", "activations"):
            table = getattr(parts, name)
            shape = None if table is None else [len(row) for row in table]
            assert shape in (None, [len(row) for row in parts.total]), (
                f"{name} has not one entry for each layer and candidate"
            )
            assert table is None or all(math.isfinite(v) and v >= 0 for row in table for v in row), (
                f"{name} is not finite or negative"
            )

    def test_progress_ends_with_everything_done(self, objective: str, net: str) -> None:
        """`on_step` counts 1, 2, ... up to the total that it names."""
        steps: list[tuple[int, int]] = []
        _rows(
            OBJECTIVES.create(objective),
            self.context(net, on_step=lambda done, total: steps.append((done, total))),
        )
        assert steps and steps[-1][0] == steps[-1][1] > 0, f"the last step is {steps[-1:]}"
        assert [done for done, _ in steps] == list(range(1, len(steps) + 1)), "steps are skipped or repeated"

    def test_the_order_of_layers_does_not_matter(self, objective: str, net: str) -> None:
        """A table of turned layers is the turned table."""
        context, member = self.context(net), OBJECTIVES.create(objective)
        turned = dataclasses.replace(
            context, layers=context.layers[::-1], candidates=context.candidates[::-1]
        )
        assert _rows(member, turned) == _rows(member, context)[::-1]

    def test_the_batch_size_does_not_matter(self, objective: str, net: str) -> None:
        """An objective with an option `batch_size` gives the same table at another one, but for rounding."""
        member, context = OBJECTIVES.create(objective), self.context(net)
        if not hasattr(member, "batch_size"):
            return
        other: Objective = dataclasses.replace(member, batch_size=5)  # type: ignore[type-var]
        for row, again in zip(_rows(member, context), _rows(other, context), strict=True):
            assert all(
                math.isclose(v, w, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * max(row))
                for v, w in zip(row, again, strict=True)
            ), (row, again)


@functools.cache
def _held(net: str) -> TinyNet:
    return tiny_net(net)


def _context(net: TinyNet) -> ScoringContext:
    product = Layer("product.matmul0", "matmul", (), ((1, 2, 3), (1, 3, 2)), (1, 2, 2), 12, "product")
    layers = (*(_layer(net, unit) for unit in net.units), product)
    images = net.images.subset(range(_IMAGES))
    return ScoringContext(net.module, layers, (CANDIDATES,) * len(layers), net.calibration, images)


def _layer(net: TinyNet, unit: str) -> Layer:
    shape = tuple(net.calibration.weights[unit].shape)
    return Layer(
        unit, "conv2d" if len(shape) == 4 else "linear", shape, ((1,),), (1,), math.prod(shape), unit
    )


@torch.no_grad()
def _rows(objective: Objective, context: ScoringContext) -> Rows:
    """The table as the objective gives it, before any repair."""
    return objective.score(context)


class _LookedAtError(Exception):
    """The images were looked at."""


class _Untouchable:
    """Stands for the images where an objective says that it looks at none."""

    def __getattribute__(self, name: str) -> Any:
        raise _LookedAtError(name)

    def __len__(self) -> int:
        raise _LookedAtError("__len__")
