"""Assignments learn: their states after reconstruction, within the bound on memory, block by block as far as
they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mpsearch.accelerator import within_free
from mpsearch.errors import OptionError
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.states import Gains, States, digest_of, known_blocks, save_block
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import UnitState
from mpsearch.quant.devices import CPU, on_device
from mpsearch.reconstruct import (
    METHODS,
    BlockResult,
    Calibration,
    ReconstructionConfig,
    footprint,
    reconstruct,
)
from mpsearch.units import format_bytes

SAFE = 4
"""So many times what all units read and give fits for sure."""


@dataclass
class Reconstruction:
    """Learns the states of assignments on the calibration images.

    Args:
        subject: Model and images.
        calibration: Quantisers to start from.
        config: Method, steps and bound on memory.
        study: Where blocks are kept.
        progress: Where progress goes.
    """

    subject: Subject
    calibration: Calibration
    config: RunConfig
    study: Study
    progress: Progress
    _room: int | None = None
    _gained: dict[Assignment, list[BlockResult]] = field(default_factory=dict)

    def reconstructed(self, assignment: Assignment, label: str, steps: int | None = None) -> States:
        """Learned states of an assignment, in the CPU's memory, after `steps` for each block or as many as
        the settings say.

        Each block's are saved when it is done, so an interrupted call goes on behind them.
        """
        start, blocks = on_device(self.calibration.states(assignment), CPU), self.subject.blocks
        config = ReconstructionConfig(
            iterations=self.config.steps if steps is None else steps,
            method=self.config.method,
            seed=self.config.seed,
        )
        # as many images for every number of steps
        room = self._images(replace(config, iterations=self.config.steps))
        inputs = self.subject.placed.calibration.inputs(slice(0, room))
        folder = self._folder(assignment, config, len(inputs))
        known, gains = known_blocks(folder, start)
        if config.iterations and METHODS.create(config.method).goes_on and 0 not in known:
            plain = self._folder(assignment, replace(config, iterations=0), len(inputs))
            first, gained_there = known_blocks(plain, start)
            known, gains = {**known, **first}, {**gains, **gained_there}
        order: dict[str, int] = {}
        done = 0
        with self.progress.task(f"reconstruct: {label}") as advance:

            def keep(block: str, states: Mapping[str, UnitState], gained: BlockResult | None) -> None:
                nonlocal done
                done += 1
                order.setdefault(block, len(order))
                if gained is not None:
                    gains[gained.phase, block] = gained
                    save_block(folder, states, gained)
                advance(done, max(done, len(blocks)))

            states = reconstruct(
                self.subject.placed.module, blocks, start, inputs, config, known=known, on_block=keep
            )
        self._gained[assignment] = _in_order(gains, order)
        return on_device(states, CPU)

    def gained(self, assignment: Assignment) -> list[BlockResult]:
        """What each block gained when the assignment was last reconstructed, phase by phase; none where
        nothing was learned.
        """
        return self._gained.get(assignment, [])

    def _folder(self, assignment: Assignment, config: ReconstructionConfig, images: int) -> Path:
        """Of the blocks that are learned from the same start in the same way."""
        observers = [self.calibration.weight_grids, self.calibration.input_observer]
        about: list[Any] = [self.subject.hashes, assignment.to_json(), config.__dict__, images, *observers]
        if self.calibration.chosen or self.calibration.softmax != "uniform":
            about.append(digest_of([self.calibration.softmax, *sorted(self.calibration.chosen.items())]))
        return self.study.step_path("blocks", [*about, *self.subject.arithmetic], "")

    def _surely_fits(self, config: ReconstructionConfig) -> bool:
        """Whether the bound holds several times all that all units read and give in both networks, where each
        unit is rounded by itself: then nothing need be rehearsed.
        """
        layers = self.subject.graph.layers
        values = sum(math.prod(n.output_shape) + sum(map(math.prod, n.input_shapes)) for n in layers)
        taken = SAFE * 2 * 4 * values * len(self.subject.splits.calibration)
        closed = all(phase.closed for phase in METHODS.create(config.method).phases())
        return closed and taken <= self._most

    @property
    def _most(self) -> int:
        """Bytes that it may take: the bound, or half of what a GPU has free."""
        return within_free(self.config.memory_bytes, self.subject.device)

    def _images(self, config: ReconstructionConfig) -> int:
        """As many calibration images as there is room for, with every unit at 8 bits: coarser ones learn in
        bfloat16, which takes less.

        Raises: OptionError: One image is too many.
        """
        calibration, bound = self.subject.placed.calibration, self.config.reconstruction_memory
        if not [
            phase for phase in METHODS.create(config.method).phases() if phase.closed or config.iterations
        ]:
            return len(calibration)
        if self._room is None and self._surely_fits(config):
            self._room = len(calibration)
        if self._room is None:
            states = {
                unit: self.calibration.state(unit, Candidate(8, 8)) for unit in self.subject.layout.units
            }
            few = calibration.inputs(slice(0, min(8, len(calibration))))
            with self.progress.task("rehearse the reconstruction") as advance:
                need = footprint(self.subject.placed.module, self.subject.blocks, states, few, config)
                advance(1, 1)
            most = self._most
            if most < self.config.memory_bytes:
                bound = f"{format_bytes(most)} (half of what is free)"
            self._room = min(need.images_within(most), len(calibration))
            if not self._room:
                least = format_bytes(need.bytes_with(1))
                raise OptionError(
                    f"Reconstruction takes {least} with one image, and may take {bound}. Raise "
                    "--reconstruction-memory, or use --method nearest."
                )
            used = (
                f"{self._room:,} of {len(calibration):,}"
                if self._room < len(calibration)
                else f"{self._room:,}"
            )
            taken = format_bytes(need.bytes_with(self._room))
            self.progress.say(
                f"Reconstruction uses {used} calibration images, and takes up to {taken} of memory; its "
                f"bound is {bound}."
            )
        return self._room


def _in_order(gains: Gains, order: Mapping[str, int]) -> list[BlockResult]:
    """By phase, and within it as the blocks follow in the network."""
    return [gains[key] for key in sorted(gains, key=lambda key: (key[0], order.get(key[1], len(order))))]
