"""What artifacts do on this machine: time, memory and accuracy, each in a process of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mpsearch.data import Classes, SampleSet, drawn, load_images, read_class_map, require_source
from mpsearch.deploy.artifact import Artifact, open_artifact
from mpsearch.deploy.process import as_model, bench_apart, run_apart
from mpsearch.errors import DataError, OptionError
from mpsearch.evaluate import made, metric_of, task_for
from mpsearch.models import ModelSource, kind_of
from mpsearch.models.form import ONE_TENSOR
from mpsearch.pytrees import Inputs, Structure
from mpsearch.usercode import call_code, names_code


def bench_artifacts(
    artifacts: Sequence[Artifact],
    batches: Sequence[int],
    seconds: float,
    threads: int,
    model: str | None = None,
) -> list[dict[str, Any]]:
    """One row for each artifact, as `bench_apart` measures it, with its name, target and bytes."""
    rows = []
    for artifact in artifacts:
        measured = bench_apart(
            artifact, batches=batches, seconds=seconds, threads=threads, model=_source(artifact, model)
        )
        about = {
            "artifact": artifact.label,
            "folder": str(artifact.folder),
            "target": artifact.manifest["target"],
            "bytes": artifact.size_bytes,
        }
        rows.append(
            {
                **about,
                **measured,
                "runs_with": artifact.target.runs_with,
                "versions": artifact.manifest["versions"],
            }
        )
    return rows


def evaluate_artifact(
    artifact: Artifact,
    data: str,
    limit: int | None,
    seed: int,
    threads: int,
    model: str | None = None,
    class_map: str | None = None,
    metric: str | None = None,
) -> dict[str, Any]:
    """Metrics of the study's task for an artifact on images, which pass through the same pre-processing as in
    the study, or on the samples of a function, which are taken as they are.

    Classes are compared with labels. Other tasks compare with the float model, which is the artifact `float`
    of the same export.

    Args:
        artifact: To evaluate.
        data: Source of the images.
        limit: At most so many; None for all.
        seed: Random seed of the draw.
        threads: CPU threads of the runtime.
        model: How the float model is built, where the artifact needs it.
        class_map: File that says which class a folder stands for.
        metric: `file.py:function`, measured of the artifact in this process.

    Raises:
        OptionError: The float model is needed, and is not there; or the metric fails.
        DataError: The images cannot be read, or have labels that the model has no output for.
    """
    own = metric_of(metric)
    task = made(str(artifact.manifest.get("task", "classification")))
    floats = None if task.classes else _float_beside(artifact, needed=own is None)
    folders = None if class_map is None else read_class_map(class_map)
    classes = Classes(timm=not task.classes or artifact.source.kind == "timm", folders=folders)
    images = _images(artifact, data, limit, seed, classes)
    logits = run_apart(artifact, images.inputs(), model=_source(artifact, model), threads=threads)
    if task.classes:
        if not names_code(data):
            require_source(data, replace(classes, outputs=logits.shape[1]))
        task.require_labels(images, logits)
    reference = (
        logits
        if floats is None
        else run_apart(floats, images.inputs(), model=_source(floats, model), threads=threads)
    )
    if not task.classes:
        task = task_for(str(artifact.manifest["task"]), reference, artifact.form, images.labels)[1]
    metrics = task.compare(logits, reference, images.labels)
    row = {
        "artifact": artifact.label,
        "target": artifact.manifest["target"],
        "runs_with": artifact.target.runs_with,
        "images": len(images),
        "finite": bool(torch.isfinite(logits).all()),
    }
    row |= {"top1": metrics.top1, "top1_error": metrics.top1_error, "loss": _finite(metrics.loss)}
    if floats is not None:
        row |= {"measure": task.measure, "damage": _finite(metrics.kl)}
        row |= {"agreement": metrics.agreement, "scores": metrics.scores}
    if own is not None:
        module = as_model(artifact, model=_source(artifact, model), threads=threads)
        value = own.measure(module, images, "evaluation", artifact.form)
        row["metric"] = {"name": own.name, "value": _finite(value)}
    return row


def _finite(value: float | None) -> float | None:
    """None for what JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None


def _images(artifact: Artifact, data: str, limit: int | None, seed: int, classes: Classes) -> SampleSet:
    """Images prepared as in the study, or what a user's function gives."""
    if names_code(data):
        return _samples(artifact, data, limit, seed)
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in artifact.manifest["data_config"].items()}
    return load_images(data, config, limit=limit, seed=seed, classes=classes)


def _samples(artifact: Artifact, data: str, limit: int | None, seed: int) -> SampleSet:
    """What a user's function gives, as the artifact's model reads it."""
    form, call = artifact.form, ONE_TENSOR if artifact.form is None else artifact.form.call

    def takes(batch: Inputs, structure: Structure) -> None:
        if structure != call:
            raise DataError("The artifact's model is called otherwise.")
        if form is not None:
            form.require(batch)

    source = call_code(data, "a function that returns samples", DataError)
    return drawn(source, takes, name=data, limit=limit, seed=seed)


def _float_beside(artifact: Artifact, needed: bool) -> Artifact | None:
    """The float artifact of the same export; None where there is none and a metric alone is asked for."""
    folder = artifact.folder.resolve().parent / "float"
    if not folder.is_dir() and not needed:
        return None
    if not folder.is_dir():
        raise OptionError(
            f"The task {artifact.manifest['task']!r} compares with the float model, and there is no "
            f"{folder}. Export with --references, which writes it beside."
        )
    return open_artifact(folder)


def _source(artifact: Artifact, model: str | None) -> ModelSource | None:
    """The model that the user named; its arguments are the artifact's where it is the same."""
    if model is None:
        return None
    kwargs = artifact.source.kwargs if artifact.source.name == model else {}
    return ModelSource(kind_of(model), model, kwargs)
