"""What artifacts do on this machine: time, memory and accuracy, each in a process of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mpsearch.data import Classes, load_images, read_class_map, require_source
from mpsearch.deploy.artifact import Artifact, open_artifact
from mpsearch.deploy.process import bench_apart, run_apart
from mpsearch.errors import OptionError
from mpsearch.evaluate import made
from mpsearch.models import ModelSource, kind_of


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
) -> dict[str, Any]:
    """Metrics of the study's task for an artifact on images, which pass through the same pre-processing as in
    the study.

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

    Raises:
        OptionError: The float model is needed, and is not there.
        DataError: The images cannot be read, or have labels that the model has no output for.
    """
    task = made(str(artifact.manifest.get("task", "classification")))
    floats = None if task.classes else _float_beside(artifact)
    folders = None if class_map is None else read_class_map(class_map)
    classes = Classes(timm=not task.classes or artifact.source.kind == "timm", folders=folders)
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in artifact.manifest["data_config"].items()}
    images = load_images(data, config, limit=limit, seed=seed, classes=classes)
    logits = run_apart(artifact, images.inputs(), model=_source(artifact, model), threads=threads)
    if task.classes:
        require_source(data, replace(classes, outputs=logits.shape[1]))
        task.require_labels(images, logits)
    reference = (
        logits
        if floats is None
        else run_apart(floats, images.inputs(), model=_source(floats, model), threads=threads)
    )
    metrics = task.compare(logits, reference, images.labels)
    finite = bool(torch.isfinite(logits).all())
    row = {
        "artifact": artifact.label,
        "target": artifact.manifest["target"],
        "runs_with": artifact.target.runs_with,
        "images": len(images),
        "finite": finite,
    }
    loss = metrics.loss if metrics.loss is not None and math.isfinite(metrics.loss) else None
    row |= {"top1": metrics.top1, "top1_error": metrics.top1_error, "loss": loss}
    if floats is not None:
        row |= {
            "measure": task.measure,
            "damage": metrics.kl if math.isfinite(metrics.kl) else None,
            "agreement": metrics.agreement,
            "scores": metrics.scores,
        }
    return row


def _float_beside(artifact: Artifact) -> Artifact:
    folder = artifact.folder.resolve().parent / "float"
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
