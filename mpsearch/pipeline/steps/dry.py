"""The target's exporter is tried before anything costly: the model is written at its widest bits, with ranges
of one sample, and where the file alone is enough that sample runs through it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from mpsearch.deploy.targets import MODEL_FILE, Job
from mpsearch.errors import UserError
from mpsearch.foreign import one_message
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import FLOAT, Candidate, Problem
from mpsearch.reconstruct import calibrate

_WAY_OUT = "--target packed writes every model; --fix NAME=float leaves a layer out."


def try_export(
    subject: Subject, problem: Problem, config: RunConfig, study: Study, progress: Progress
) -> None:
    """Write the files of the target once; a study whose steps were begun has done it.

    Nothing is tried of `packed`, whose checkpoint was read back already.

    Args:
        subject: Model and images.
        problem: Its candidates.
        config: Target and threads.
        study: Of the run.
        progress: Where progress goes.
    Raises: UserError: The target cannot write or run the model; says which option helps.
    """
    target = subject.target
    if target.file == MODEL_FILE or study.begun:
        return
    with progress.task(f"try the export to {target.title or target.name}") as advance:
        _write(subject, problem, config)
        advance(1, 1)


def _write(subject: Subject, problem: Problem, config: RunConfig) -> None:
    example, target = subject.splits.calibration.inputs([0]), subject.target
    calibration = calibrate(
        subject.module,
        subject.layout.units,
        [example],
        weight_observer="minmax",
        input_observer="minmax",
        symmetric_inputs=target.signed_inputs,
        bias_correction=False,
    )
    rows = {layer.name: row for layer, row in zip(problem.layers, problem.candidates, strict=True)}
    states = {
        unit: calibration.state(unit, widest(rows.get(unit, (FLOAT,)))) for unit in subject.layout.units
    }
    calls = {layer.name: layer.calls for layer in subject.graph.layers if layer.calls > 1}
    job = Job(subject.module, subject.layout, states, calibration, example, calls, subject.graphs.held)
    refused = f"--target {config.target} cannot write this model"
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        with one_message(refused, _WAY_OUT):
            target.write(job, folder)
        if not target.file_alone:
            return
        with one_message(f"--target {config.target} cannot run what it wrote of this model", _WAY_OUT):
            found, wanted = target.reload(job, folder, config.threads)(example), subject.module(example)
        if found.shape != wanted.shape or not torch.isfinite(found).all():
            raise UserError(
                f"--target {config.target} wrote a file that gives {tuple(found.shape)} for one sample, "
                f"where the model gives {tuple(wanted.shape)} finite numbers. {_WAY_OUT}"
            )


def widest(row: tuple[Candidate, ...]) -> Candidate:
    """The integer candidate of most bits; float where there is none."""
    integers = [c for c in row if not c.is_float]
    return max(integers, key=lambda c: (c.w_bits or 0, c.a_bits or 0), default=FLOAT)
