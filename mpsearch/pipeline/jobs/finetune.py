"""`mpsearch finetune`: an assignment learns as a whole, on labelled or unlabelled images, and becomes an
artifact like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mpsearch import files
from mpsearch.accelerator import exact_float32
from mpsearch.data import Classes, ImageSet, learning_images, read_class_map
from mpsearch.data.augment import augment_of
from mpsearch.errors import OptionError, UserError
from mpsearch.models.tree import copied
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.imported import open_subject
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.artifact import ArtifactWriter
from mpsearch.pipeline.steps.clock import Clock
from mpsearch.pipeline.steps.costs import sized_problem
from mpsearch.pipeline.steps.deployment import Deployment
from mpsearch.pipeline.steps.evaluation import Evaluation
from mpsearch.pipeline.steps.measurement import Measurement
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.states import States, digest_of_states
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.pipeline.steps.tuned import FOLDER, tuned_subject
from mpsearch.pipeline.steps.tuning import Tuning, planned_tuning, require_grids, with_grids
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import FLOAT, Assignment
from mpsearch.quant.devices import CPU, on_device
from mpsearch.reconstruct.finetune import FinetuneConfig, Finetuned, finetune

SCHEMA = 1


@exact_float32()
def finetune_assignment(
    tuning: Tuning,
    assignment_of: Callable[[Subject], Assignment],
    config: RunConfig,
    study: Study,
    progress: Progress,
    clock: Clock,
) -> dict[str, Any]:
    """Quantise, learn, measure, and write `finetuned/<label>/` and `finetuned/<label>.json` into the study's
    folder, which must be held. A call that was killed goes on from its last checkpoint.

    Args:
        tuning: What is asked for.
        assignment_of: The bits of every unit, when the model is known.
        config: Settings of the study.
        study: Its folder.
        progress: Where progress goes.
        clock: Of this command.
    Returns: What `finetuned/<label>.json` holds.

    Raises:
        OptionError: The task has no classes, or nothing is quantised.
        DataError: There is nothing to learn from, or labels are asked for and there are none.
    """
    require_grids(tuning, config)
    subject, config = open_subject(config, study, progress)
    _require_classes(subject)
    assignment = assignment_of(subject)
    if all(assignment[unit].is_float for unit in subject.layout.units):
        raise OptionError("Nothing of this assignment is quantised. Give another with --point or --bits.")
    images = _images(tuning, subject, config, progress)
    settings = planned_tuning(tuning, assignment, images, subject, config, study, progress, clock)
    calibration = calibrate_subject(subject, config, progress, study)
    calibration = with_grids(calibration, subject, assignment, tuning, progress)
    workshop = Workshop(subject, calibration, config, study, progress, clock=clock)
    start = workshop.reconstructed(assignment, tuning.label)
    rows = [_float_row(workshop), _row(f"{tuning.label} before", workshop.measurement, start)]
    began = time.monotonic()
    done = _learned(tuning, settings, start, images, workshop)
    took = time.monotonic() - began
    measurement = _measurement_of(done, workshop)
    states: States = dict(on_device(done.states, CPU))
    rows.append(_row(f"{tuning.label} fine-tuned", measurement, states))
    told = {
        "label": tuning.label,
        "finetuned": {"steps": settings.steps, "images": len(images), "source": tuning.data},
    }
    folder = study.path / FOLDER / tuning.label
    about = _written(measurement, folder, states, rows[-1], told)
    result = {
        "schema": SCHEMA,
        "label": tuning.label,
        "measure": subject.task.measure,
        "assignment": assignment.to_json(),
        "data": {"source": tuning.data, "images": len(images), "content_hash": images.content_hash},
        "augment": list(tuning.augment),
        "input_grids": tuning.input_grids,
        "settings": asdict(settings),
        "learned_s": round(took, 2),
        "rows": rows,
        "artifact": about,
    }
    files.write_json(study.path / FOLDER / f"{tuning.label}.json", result)
    return result


def uniform_assignment(subject: Subject, config: RunConfig) -> Assignment:
    """The only candidate of every unit, where the settings leave one. Raises OptionError where they leave
    more.
    """
    problem = sized_problem(subject, config)
    if any(len(row) != 1 for row in problem.candidates):
        raise OptionError("Fine-tuning needs one width for weights and one for inputs, such as --bits 4.")
    return problem.assignment([0] * len(problem.layers))


def _require_classes(subject: Subject) -> None:
    """Raises OptionError where the outputs are no logits of classes, which the distillation compares."""
    if not subject.task.classes:
        raise OptionError(
            f"Fine-tuning learns from the distribution over classes, and the task {subject.task_text!r} has "
            "none. Give --task classification where the outputs are logits of classes; else use "
            "`mpsearch run --method qdrop`, which needs none."
        )


def _images(tuning: Tuning, subject: Subject, config: RunConfig, progress: Progress) -> ImageSet:
    """What it learns from: no image that judges is among them. Raises DataError."""
    if not isinstance(subject.splits.evaluation, ImageSet):
        raise UserError("Fine-tuning learns from images, and the study's samples are no images.")
    labelled = tuning.settings.label_weight > 0
    outputs = _outputs(subject) if labelled else None
    classes = Classes(
        timm=not labelled or subject.source.kind == "timm",
        folders=None if config.class_map is None else read_class_map(config.class_map),
        outputs=outputs,
    )
    with progress.task("read the images to learn from") as advance:
        images = learning_images(
            tuning.data,
            subject.layout.description["data_config"],
            without=subject.splits.evaluation.sample_hashes,
            limit=tuning.images,
            seed=config.seed,
            classes=classes,
            on_image=advance,
        )
    if labelled:
        images.require_labels(outputs)
    return images


@torch.no_grad()
def _outputs(subject: Subject) -> int:
    """How many classes the model tells apart."""
    return int(subject.module(subject.splits.calibration.inputs([0])).shape[1])


def _learned(
    tuning: Tuning, settings: FinetuneConfig, start: States, images: ImageSet, workshop: Workshop
) -> Finetuned:
    subject, study = workshop.subject, workshop.study
    about = [subject.hashes["weights"], digest_of_states(start), images.content_hash, asdict(settings)]
    path = study.step_path("finetune", [*about, list(tuning.augment), *subject.arithmetic], ".safetensors")
    if path.exists():
        workshop.progress.say(f"Going on from the checkpoint {path}.")
    with workshop.progress.task(f"fine-tune {tuning.label}") as advance:
        return finetune(
            subject.placed.module,
            on_device(start, subject.device),
            images,
            settings,
            augment=augment_of(tuning.augment),
            checkpoint=path,
            on_step=lambda step, total, _: advance(step, total),
        )


def _measurement_of(done: Finetuned, workshop: Workshop) -> Measurement:
    """Measures what has learned, against the float model that it comes from."""
    progress = workshop.progress
    subject = tuned_subject(workshop.subject, copied(done.module).to(CPU), progress)
    config, study = workshop.config, workshop.study
    evaluation = Evaluation(subject, subject.task, progress, workshop.evaluation.reference())
    deployment = Deployment(subject, workshop.calibration.on(CPU), config, study, progress)
    return Measurement(subject, config, study, progress, deployment, evaluation)


def _row(label: str, measurement: Measurement, states: States) -> dict[str, Any]:
    with measurement.progress.task(f"measure {label}") as advance:
        found = {"label": label, **measurement.measured(states, whole=True)}
        advance(1, 1)
    return found


def _float_row(workshop: Workshop) -> dict[str, Any]:
    images, logits = workshop.subject.splits.evaluation, workshop.evaluation.reference()["evaluation"]
    metrics = workshop.task.compare(logits, logits, images.labels).to_json()
    return {"label": "float", "metrics": metrics, **workshop.measurement.float_sizes()}


def _written(
    measurement: Measurement, folder: Path, states: States, row: Mapping[str, Any], told: Mapping[str, Any]
) -> dict[str, Any]:
    """The artifact, read back and compared."""
    subject = measurement.subject
    chosen = Assignment(tuple((unit, states[unit].candidate) for unit in subject.layout.units))
    measured = {key: row[key] for key in ("size_bytes", "latency_us", "energy_mj") if key in row}
    description = {
        "assignment": _of_all_layers(subject, chosen).to_json(),
        "predicted": {"size_bytes": float(subject.file.size_bytes(chosen))},
        "measured": measured,
        "metrics": row["metrics"],
    }
    return ArtifactWriter(measurement, folder).write(states, description, told)


def _of_all_layers(subject: Subject, chosen: Assignment) -> Assignment:
    held = dict(chosen.items())
    return Assignment(tuple((layer.name, held.get(layer.name, FLOAT)) for layer in subject.graph.layers))
