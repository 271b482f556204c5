"""`Given`: a model and its samples as objects, from which a study is made, and opened again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mpsearch.evaluate import UserMetric
from mpsearch.models import from_module
from mpsearch.models.tree import copied
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.loading import draw
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.subject import Subject, make_subject, with_images
from mpsearch.pipeline.steps.trial import takes_of
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.quant.devices import CPU, device_of


@dataclass(frozen=True)
class Given:
    """What a program hands over.

    Args:
        model: Float; not changed.
        calibration: Samples, in any form that `mpsearch.search` takes.
        evaluation: Samples for what is reported; None to divide those of `calibration`.
        metric: The user's.
    """

    model: nn.Module
    calibration: Any
    evaluation: Any = None
    metric: UserMetric | None = None

    @property
    def names(self) -> tuple[str, str]:
        """What the model and the samples are called in the settings."""
        name = getattr(self.calibration, "name", None) or type(self.calibration).__name__
        return type(self.model).__name__, str(name)

    def subject(self, config: RunConfig, progress: Progress) -> Subject:
        """The model and its images as the steps take them. Raises UserError where they cannot be used."""
        loaded = from_module(self.model)
        whole = self.evaluation is None
        data, other = (self.calibration, None) if whole else (self.evaluation, self.calibration)
        splits = draw(config, data, other, takes=takes_of(loaded.module, config))
        given = self.model if device_of(self.model).type == "cpu" else copied(self.model).to(CPU)
        return make_subject(loaded, splits, config, progress, given, self.metric)

    def workshop(self, study: Study, progress: Progress) -> Workshop:
        """A finished study, opened with the same model and samples."""
        config = study.settled()
        subject = with_images(self.subject(config, progress), config)
        subject = replace(subject, kept_for=study.device()["type"])
        return Workshop(subject, calibrate_subject(subject, config, progress, study), config, study, progress)
