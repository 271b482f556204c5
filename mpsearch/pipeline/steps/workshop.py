"""What turns assignments into models: one object for each trade, made when it is asked for and kept over all
assignments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mpsearch.evaluate import Task
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.artifact import ArtifactWriter
from mpsearch.pipeline.steps.clock import Clock
from mpsearch.pipeline.steps.deployment import Deployment
from mpsearch.pipeline.steps.evaluation import Evaluation
from mpsearch.pipeline.steps.measurement import Measurement
from mpsearch.pipeline.steps.plan import Plan
from mpsearch.pipeline.steps.reconstruction import Reconstruction
from mpsearch.pipeline.steps.scoring import Scoring
from mpsearch.pipeline.steps.states import States
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import Assignment, Budget
from mpsearch.quant.devices import CPU
from mpsearch.reconstruct import Calibration


@dataclass
class Workshop:
    """The trades that a run sends its assignments through.

    Args:
        subject: Model and images.
        calibration: Quantisers, on the subject's device.
        config: Settings.
        study: Where results are kept.
        progress: Where progress goes.
        plan: What the run means to do; None where there is none.
        clock: How much time there is.
    """

    subject: Subject
    calibration: Calibration
    config: RunConfig
    study: Study
    progress: Progress
    plan: Plan | None = None
    clock: Clock = field(default_factory=Clock)

    @property
    def task(self) -> Task:
        """What the model is for."""
        return self.subject.task

    @property
    def front_over(self) -> str:
        """The resource that the front of damage is over."""
        return "latency_us" if self.config.deployment.elsewhere else "size_bytes"

    @property
    def minimized(self) -> str:
        """The resource that is to be least where a drop is the limit: that of the first budget, else the
        front's.
        """
        budgets = self.config.budgets
        return Budget.parse(budgets[0]).resource if budgets else self.front_over

    @functools.cached_property
    def reconstruction(self) -> Reconstruction:
        """Learns states."""
        return Reconstruction(self.subject, self.calibration, self.config, self.study, self.progress)

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """Compares with the float model."""
        return Evaluation(self.subject, self.task, self.progress)

    @functools.cached_property
    def scoring(self) -> Scoring:
        """Measures the number by which one judges."""
        return Scoring(self.subject, self.evaluation, self.study, self.progress)

    @functools.cached_property
    def deployment(self) -> Deployment:
        """Writes the files of the target."""
        here = self.calibration.on(CPU)  # files are made there, whatever computes
        return Deployment(self.subject, here, self.config, self.study, self.progress)

    @functools.cached_property
    def measurement(self) -> Measurement:
        """Measures states."""
        return Measurement(
            self.subject, self.config, self.study, self.progress, self.deployment, self.evaluation
        )

    @functools.cached_property
    def artifact(self) -> ArtifactWriter:
        """Writes what is shipped."""
        return ArtifactWriter(self.measurement, self.study.artifact)

    def reconstructed(self, assignment: Assignment, label: str, steps: int | None = None) -> States:
        """See `Reconstruction.reconstructed`."""
        return self.reconstruction.reconstructed(assignment, label, steps)

    def measured(self, states: States, whole: bool = False) -> dict[str, Any]:
        """See `Measurement.measured`; of what is finished, with the user's metric."""
        found = self.measurement.measured(states, whole)
        return found if not whole else {**found, "metrics": self.with_metric(found["metrics"], states)}

    def with_metric(self, metrics: Mapping[str, Any], states: States | None) -> dict[str, Any]:
        """Metrics on all evaluation images with the user's metric, None where it is not finite; of the float
        model where there are no states.
        """
        if self.subject.metric is None:
            return dict(metrics)
        scoring = self.scoring
        value = scoring.of_float("evaluation") if states is None else scoring.of(states, "evaluation")
        return {**metrics, "metric": value if math.isfinite(value) else None}
