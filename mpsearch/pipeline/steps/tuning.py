"""What a fine-tuning is asked for, how long it will take on this machine, and how many steps a time limit
leaves room for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor

from mpsearch.data import ImageSet
from mpsearch.data.augment import augment_of
from mpsearch.efforts import format_duration
from mpsearch.errors import OptionError, UnknownNameError
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.operands import MEASURED
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.clock import Clock
from mpsearch.pipeline.steps.pace import measure_pace
from mpsearch.pipeline.steps.plan import ROOM, Plan, Step, make_plan
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import Assignment
from mpsearch.reconstruct import Calibration, calibrate
from mpsearch.reconstruct.finetune import FinetuneConfig, finetune
from mpsearch.reconstruct.sensitivity import mixed_grids, sensitive_units

GRIDS = ("asymmetric", "symmetric", "sensitive")
"""Grids of inputs; `sensitive` are asymmetric where a symmetric one costs too much, and else symmetric."""
THRESHOLD = 1e-3
"""Nats of KL above which it does, where nothing else is said."""
_SEEN = 128
"""Images on which that is measured."""
_FEW = 32
"""Images that the ranges of a rehearsal are taken from."""


@dataclass(frozen=True)
class Tuning:
    """What a fine-tuning is asked for.

    Args:
        label: Name of what comes out.
        data: Source of the images to learn from.
        images: At most so many; None for all.
        augment: Names of augmentations, in their order.
        input_grids: `asymmetric`, `symmetric`, or `sensitive`, with a threshold in nats: `sensitive:0.01`.
        settings: How long and how it learns.
    """

    label: str
    data: str
    images: int | None = None
    augment: tuple[str, ...] = ()
    input_grids: str = "asymmetric"
    settings: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        augment_of(self.augment)
        if self.images is not None and self.images < 1:
            raise OptionError(f"images is {self.images}; it must be 1 or more.", ("images",))
        if self.input_grids.partition(":")[0] not in GRIDS:
            raise UnknownNameError("grid of --input-grids", self.input_grids, GRIDS)
        _ = self.threshold

    @property
    def threshold(self) -> float:
        """Nats above which a unit's input has an asymmetric grid. Raises OptionError."""
        name, colon, text = self.input_grids.partition(":")
        try:
            return float(text) if colon and name == "sensitive" else THRESHOLD
        except ValueError:
            raise OptionError(
                f"Cannot read --input-grids {self.input_grids!r}. Write sensitive, or with nats of KL, such "
                "as sensitive:0.001."
            ) from None


def require_grids(tuning: Tuning, config: RunConfig) -> None:
    """Raises OptionError where two options choose the grids of inputs."""
    if tuning.input_grids != "asymmetric" and config.input_observer in MEASURED:
        raise OptionError(
            f"--input-grids {tuning.input_grids} and --input-observer {config.input_observer} both choose "
            "the grids of inputs. Leave one of them out."
        )


def with_grids(
    calibration: Calibration, subject: Subject, assignment: Assignment, tuning: Tuning, progress: Progress
) -> Calibration:
    """The calibration with the input grids that were asked for."""
    if tuning.input_grids == "asymmetric":
        return calibration
    inputs = [
        unit for unit in subject.units if not (assignment[unit].is_float or assignment[unit].weight_only)
    ]
    if tuning.input_grids == "symmetric":
        return mixed_grids(calibration, assignment, dict.fromkeys(inputs, 0.0), 0.0)
    with progress.task("ask which inputs need an asymmetric grid") as advance:
        here = subject.placed
        seen = cast(Tensor, here.calibration.inputs(slice(0, _SEEN)))  # what judges are images, so are these
        found = sensitive_units(here.module, calibration, assignment, seen)
        advance(1, 1)
    odd = sum(kl > tuning.threshold for kl in found.values())
    progress.say(f"{odd} of {len(found)} units need an asymmetric grid (over {tuning.threshold:g} nats).")
    return mixed_grids(calibration, assignment, found, tuning.threshold)


def planned_tuning(
    tuning: Tuning,
    assignment: Assignment,
    images: ImageSet,
    subject: Subject,
    config: RunConfig,
    study: Study,
    progress: Progress,
    clock: Clock,
) -> FinetuneConfig:
    """Measure the pace, tell the plan, and with a time limit keep to it: the settings with the number of
    steps.

    A fine-tuning that goes on keeps what was decided when it began.

    Args:
        tuning: What was asked for.
        assignment: Bits of every unit.
        images: What it learns from.
        subject: Model and images that judge.
        config: Settings of the study.
        study: Where the decision is kept.
        progress: Where the plan is told.
        clock: Of this command.
    Raises: OptionError: There is not time for a single step.
    """
    settings = tuning.settings
    asked = settings.total(len(images))
    one = seconds_of_step(tuning, assignment, images, subject) if asked else 0.0
    beside = _beside(subject, config)
    rest = sum(step.seconds for step in beside)

    def decide() -> int:
        if clock.limit is None:
            return asked
        left = ROOM * clock.limit - clock.spent - rest
        if left < one:
            need = format_duration((clock.spent + rest + one) / ROOM)
            raise OptionError(
                f"A single step of learning and what is around it take about {need} here, and the time limit "
                f"is {format_duration(clock.limit)}. Allow more time, or give fewer images that judge."
            )
        return min(asked, int(left / max(one, 1e-9)))

    limit = None if clock.limit is None else round(clock.limit)
    key: list[Any] = [subject.hashes, assignment.to_json(), images.content_hash, str(tuning), limit]
    steps: int = study.cached("finetune-steps", key, decide)
    learning = Step(f"{steps:,} steps of learning", steps * settings.batch_size, steps * one)
    progress.say(Plan((*beside[:-1], learning, beside[-1]), 0.0, 0.0, 0.0).told())
    if steps < asked:
        progress.say(f"The time limit leaves room for {steps:,} of {asked:,} steps.")
    return replace(settings, steps=steps)


def _beside(subject: Subject, config: RunConfig) -> Sequence[Step]:
    """The steps around the learning: ranges, the start, and what follows."""
    splits, here = subject.splits, subject.placed
    counts = (len(splits.calibration), len(splits.search), len(splits.evaluation))
    apart = None if subject.device.type == "cpu" else (subject.module, splits.calibration)
    pace = measure_pace(here.module, subject.graph, here.calibration, apart)
    whole = make_plan(pace, config, counts, finalists=1)
    ranges = next(step for step in whole.steps if step.name.startswith("ranges"))
    judged = counts[1] + counts[2]
    return (
        ranges,
        Step(f"start ({config.method}) and its measurement", 8 * counts[0] + judged, whole.finish),
        Step("measurement and artifact", 3 * judged, judged * pace.forward + whole.artifact),
    )


def seconds_of_step(tuning: Tuning, assignment: Assignment, images: ImageSet, subject: Subject) -> float:
    """What a step of learning takes, by the second of two on a part of a batch."""
    settings, module = tuning.settings, subject.placed.module
    few = images.subset(range(min(len(images), settings.chunk, settings.batch_size)))
    seen = few.inputs(slice(0, _FEW)).to(subject.device)
    found = calibrate(
        module,
        subject.layout.units,
        [seen],
        weight_observer="minmax",
        input_observer="minmax",
        bias_correction=False,
    )
    moments: list[float] = []
    finetune(
        module,
        found.states(assignment),
        few,
        replace(settings, steps=2, batch_size=len(few)),
        augment=augment_of(tuning.augment),
        on_step=lambda *_: moments.append(time.perf_counter()),
    )
    return (moments[1] - moments[0]) * settings.batch_size / len(few)
