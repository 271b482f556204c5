"""What holds of every registered objective, and that the contract notices what breaks it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import mpsearch.testing
from mpsearch.objectives import OBJECTIVES, Objective, Parts, ScoringContext
from mpsearch.testing import ObjectiveContract, left_as_found, tiny_net


class TestEveryObjective(ObjectiveContract):
    objectives = tuple(OBJECTIVES.names())

    @pytest.fixture(autouse=True)
    def one_thread(self):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more only wait for each other on nets this small
        yield
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Fake(Objective):
    """Keeps the contract but for the one thing that `fault` names."""

    name: ClassVar[str] = "fake"
    unit: ClassVar[str] = "damage"
    fault: str = "none"
    batch_size: int = 8

    def score(self, context: ScoringContext) -> list[list[float]]:
        rows = [
            [0.0 if c.is_float or not layer.weight_shape else 2.0 ** -(c.w_bits or 0) for c in row]
            for layer, row in _both(context)
        ]
        self._break(rows, context)
        for done in range(1, len(rows) + (self.fault != "progress")):
            context.on_step(done, len(rows))
        return rows

    def parts(self, context: ScoringContext) -> Parts:
        rows = self.score(context)
        other = {"total": [row[::-1] for row in rows]} if self.fault == "parts" else {"total": rows}
        return Parts(**other, weights=rows[:-1] if self.fault == "part" else rows)

    def _break(self, rows: list[list[float]], context: ScoringContext) -> None:
        faults = {
            "nan": lambda: rows[0].__setitem__(0, float("nan")),
            "negative": lambda: rows[0].__setitem__(0, -1.0),
            "short": lambda: rows[0].pop(),
            "float": lambda: rows[0].__setitem__(-1, 1.0),
            "weightless": lambda: rows[-1].__setitem__(0, 1.0),
            "blind": lambda: rows[0].__setitem__(0, 0.0),
            "integers": lambda: rows[0].__setitem__(0, 1),
            "random": lambda: rows[0].__setitem__(0, 1.0 + float(torch.rand(()))),
            "mode": lambda: context.module.train(),
            "hook": lambda: context.module.register_forward_hook(lambda *_: None),
            "images": lambda: len(context.images),
            "order": lambda: rows[0].__setitem__(0, 100.0),
            "batch": lambda: rows[0].__setitem__(0, float(self.batch_size)),
        }
        faults.get(self.fault, lambda: None)()


def _both(context: ScoringContext):
    return zip(context.layers, context.candidates, strict=True)


CHECKS = {
    "nan": "test_finite_not_negative_float_is_zero",
    "negative": "test_finite_not_negative_float_is_zero",
    "short": "test_finite_not_negative_float_is_zero",
    "float": "test_finite_not_negative_float_is_zero",
    "weightless": "test_finite_not_negative_float_is_zero",
    "blind": "test_finite_not_negative_float_is_zero",
    "integers": "test_finite_not_negative_float_is_zero",
    "random": "test_deterministic_whatever_the_global_random_state",
    "mode": "test_the_model_and_its_surroundings_are_as_found",
    "hook": "test_the_model_and_its_surroundings_are_as_found",
    "images": "test_looks_at_images_only_where_it_says_so",
    "progress": "test_progress_ends_with_everything_done",
    "order": "test_the_order_of_layers_does_not_matter",
    "parts": "test_the_parts_have_the_shape_of_the_table",
    "part": "test_the_parts_have_the_shape_of_the_table",
    "batch": "test_the_batch_size_does_not_matter",
}


class Fresh(ObjectiveContract):
    """A net of its own for each check, so that a broken one does no harm."""

    def context(self, net, **changes):
        found = super().context(net)
        other = tiny_net(net)
        return ScoringContext(
            other.module, found.layers, found.candidates, other.calibration, other.images, **changes
        )


@pytest.fixture
def fake(monkeypatch):
    OBJECTIVES.names()
    monkeypatch.setitem(OBJECTIVES._members, "fake", Fake)


def test_the_fake_keeps_the_contract(fake):
    for check in set(CHECKS.values()):
        getattr(Fresh(), check)("fake", "conv")


@pytest.mark.parametrize("fault", CHECKS)
def test_the_contract_notices(fake, fault):
    with pytest.raises(AssertionError):
        getattr(Fresh(), CHECKS[fault])(f"fake:fault={fault}", "conv")


def test_a_class_without_objectives_is_refused():
    with pytest.raises(TypeError, match="ObjectiveContract names no objectives"):
        ObjectiveContract().pytest_generate_tests(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.train(), "modes"),
        (lambda m: m.head.weight.data.add_(1), r"weights differ.*head\.weight"),
        (lambda m: m.head.weight.requires_grad_(False), "parameters"),
        (lambda m: setattr(m.head.weight, "grad", torch.zeros_like(m.head.weight)), "gradients are left"),
        (lambda m: torch.rand(1), "torch's random"),
        (lambda m: np.random.rand(), "NumPy's random"),
    ],
)
def test_left_as_found_names_what_differs(change, message):
    module, state, kept = tiny_net("conv").module, torch.get_rng_state(), np.random.get_state()
    try:
        with pytest.raises(AssertionError, match=message), left_as_found(module):
            change(module)
    finally:
        torch.set_rng_state(state)
        np.random.set_state(kept)


def test_the_suite_is_imported_without_pytest():
    sources = list(Path(mpsearch.testing.__file__).parent.glob("*.py"))
    assert len(sources) >= 5
    assert not any(
        "import pytest" in source.read_text() or "from pytest" in source.read_text() for source in sources
    )
