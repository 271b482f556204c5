"""The grids of inputs that are chosen by the damage they do, for the widths that the settings name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch

from mpsearch.data import SampleSet
from mpsearch.deploy.input_codes import decode, encode
from mpsearch.deploy.packed import PackedLayout
from mpsearch.evaluate import Task
from mpsearch.objectives.input_grids import best_grids, tried_grids
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.operands import MEASURED
from mpsearch.pipeline.progress import Progress
from mpsearch.problem import FLOAT_INPUT, Restrictions
from mpsearch.quant import UnitState
from mpsearch.reconstruct import Calibration

IMAGES = 32
"""Calibration images on which the damage is measured."""


class Placed(Protocol):
    """A model and its images on a device."""

    @property
    def module(self) -> Any:
        """Float."""

    @property
    def calibration(self) -> SampleSet:
        """Images."""


class Observed(Protocol):
    """A model with its images."""

    @property
    def placed(self) -> Placed:
        """The float model and its images, where they are computed with."""

    @property
    def task(self) -> Task:
        """How outputs are compared."""

    @property
    def task_text(self) -> str:
        """The same as one would type it."""

    @property
    def arithmetic(self) -> list[str]:
        """What the key of a result says of the device."""

    @property
    def layout(self) -> PackedLayout:
        """Names its units."""

    @property
    def hashes(self) -> dict[str, str]:
        """Of weights and images."""


def chosen_inputs(
    calibration: Calibration, subject: Observed, config: RunConfig, progress: Progress, study: Study | None
) -> Calibration:
    """The calibration with the grid of least damage for each tensor and width, where the settings ask for it.

    Args:
        calibration: What was seen of each tensor.
        subject: Model and images.
        config: Settings.
        progress: Where progress goes.
        study: Where the choice is kept; None to make it anew.
    """
    if config.input_observer not in MEASURED and config.softmax != "auto":
        return calibration
    widths = input_widths(config)
    here = subject.placed
    images = here.calibration.subset(range(min(IMAGES, len(here.calibration))))
    about: list[Any] = [
        subject.hashes["weights"],
        subject.hashes["calibration"],
        list(subject.layout.units),
        widths,
    ]
    about += [
        config.input_observer,
        config.softmax,
        config.seed,
        subject.task_text,
        len(images),
        *subject.arithmetic,
    ]

    def choose() -> list[Any]:
        with progress.task("choose the grids of inputs") as advance:
            tried = tried_grids(calibration, widths, config.input_observer, config.softmax)
            classes = subject.task.classes
            found = best_grids(here.module, tried, images, seed=config.seed, classes=classes, on_step=advance)
        return [[*key, name, encode(grid).tolist()] for key, (name, grid) in found.items()]

    held = choose() if study is None else study.cached("inputs", about, choose)
    chosen = {
        (unit, bits, operand): (name, decode(torch.tensor(pair), bits, unit))
        for unit, bits, operand, name, pair in held
    }
    return replace(calibration, chosen=chosen)


def chosen_names(calibration: Calibration, states: Mapping[str, UnitState]) -> dict[str, list[str]]:
    """Unit -> names of the grids that were chosen for what it reads, of all units that had a choice."""
    found: dict[str, list[str]] = {}
    for unit, state in states.items():
        keys = ((calibration.twins.get(unit, unit), state.candidate.a_bits or 0, i) for i in range(2))
        names = [calibration.chosen[key][0] for key in keys if key in calibration.chosen]
        if names:
            found[unit] = names
    return found


def input_widths(config: RunConfig) -> list[int]:
    """The widths of inputs that any option names."""
    rules = Restrictions.parse(config.fix, config.layer_bits).rules
    named = {config.first_last_bits, *config.a_bits, *(r.fixed.a_bits for r in rules if r.fixed is not None)}
    bounded: Iterable[int] = (bits for rule in rules if rule.of_inputs for bits in rule.bits)
    return sorted({b for b in (*named, *bounded) if b is not None and b != FLOAT_INPUT})
