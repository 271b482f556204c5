"""What artifacts do on this machine: time, memory and accuracy, each in a process of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from mpsearch.data import load_images
from mpsearch.deploy.artifact import Artifact
from mpsearch.deploy.process import bench_apart, run_apart
from mpsearch.evaluate import compare
from mpsearch.hardware import identity
from mpsearch.models import ModelSource


def bench_artifacts(artifacts: Sequence[Artifact], batches: Sequence[int], seconds: float, threads: int, model: str | None = None) -> list[dict[str, Any]]:
    """One row for each artifact, as `bench_apart` measures it, with its name, target, bytes and this device."""
    rows = []
    for artifact in artifacts:
        measured = bench_apart(artifact, batches=batches, seconds=seconds, threads=threads, model=_source(artifact, model))
        about = {"artifact": artifact.label, "folder": str(artifact.folder), "target": artifact.manifest["target"], "bytes": artifact.size_bytes}
        rows.append({**about, **measured, "runs_with": artifact.target.runs_with, "device": str(identity()), "versions": artifact.manifest["versions"]})
    return rows


def evaluate_artifact(artifact: Artifact, data: str, limit: int | None, seed: int, threads: int, model: str | None = None) -> dict[str, Any]:
    """Top-1 and loss of an artifact on labelled images, which pass through the same pre-processing as in the study."""
    images = load_images(data, {k: tuple(v) if isinstance(v, list) else v for k, v in artifact.manifest["data_config"].items()}, limit=limit, seed=seed)
    logits = run_apart(artifact, images.inputs(), model=_source(artifact, model), threads=threads)
    metrics = compare(logits, logits, images.labels)
    finite = bool(torch.isfinite(logits).all())
    row = {"artifact": artifact.label, "target": artifact.manifest["target"], "runs_with": artifact.target.runs_with, "images": len(images), "finite": finite}
    loss = metrics.loss if metrics.loss is not None and math.isfinite(metrics.loss) else None
    return {**row, "top1": metrics.top1, "top1_error": metrics.top1_error, "loss": loss}


def _source(artifact: Artifact, model: str | None) -> ModelSource | None:
    """The model that the user named; its arguments are the artifact's where it is the same."""
    if model is None:
        return None
    kwargs = artifact.source.kwargs if artifact.source.name == model else {}
    return ModelSource("factory" if ".py" in model else "timm", model, kwargs)
