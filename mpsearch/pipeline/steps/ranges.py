"""Ranges and grids of every unit of a subject."""

from __future__ import annotations

from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.operands import observer_of
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.inputs import chosen_inputs
from mpsearch.pipeline.steps.subject import BATCH, Subject
from mpsearch.reconstruct import Calibration, calibrate


def calibrate_subject(
    subject: Subject, config: RunConfig, progress: Progress, study: Study | None = None
) -> Calibration:
    """Ranges of every unit on the calibration images, on the subject's device, with the grids that were
    chosen by damage where the settings ask for that.

    Args:
        subject: Model and images.
        config: Settings.
        progress: Where progress goes.
        study: Where choices are kept; None to make them anew.
    """
    return chosen_inputs(_observed(subject, config, progress), subject, config, progress, study)


def _observed(subject: Subject, config: RunConfig, progress: Progress) -> Calibration:
    images = subject.placed.calibration
    with progress.task("calibrate ranges") as advance:
        return calibrate(
            subject.placed.module,
            subject.layout.units,
            (inputs for inputs, _ in images.batches(BATCH)),
            input_observer=observer_of(config.input_observer),
            softmax=config.softmax,
            symmetric_inputs=config.deployment.signed_inputs,
            bias_correction=config.bias_correction,
            weigh=True,
            seed=config.seed,
            on_batch=lambda done: advance(done, len(images)),
        )
