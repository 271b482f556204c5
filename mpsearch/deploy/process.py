"""Artifacts in a process of their own (`hardware.fresh`): how one is loaded there, and what can be asked of
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.deploy.artifact import Artifact, open_artifact
from mpsearch.errors import CheckpointError
from mpsearch.foreign import one_message
from mpsearch.hardware.fresh import Loaded, bench_of, outputs_of
from mpsearch.hardware.qdq import Array
from mpsearch.models import ModelSource, as_batch, bound, build_model
from mpsearch.pytrees import Inputs, arrays_of


def run_apart(
    artifact: Artifact, inputs: Inputs, *, model: ModelSource | None = None, threads: int = 1
) -> Tensor:
    """Logits, N x K, of an artifact on inputs N x C x H x W, or what else it reads, by a fresh process.

    Raises:
        UserError: The artifact needs a model that was not given, or a package.
        MpsearchError: The process failed otherwise; with what it said last.
    """
    program = artifact.target.program(artifact.folder, None if model is None else model.to_json())
    return torch.from_numpy(outputs_of(program, arrays_of(inputs), threads))


def bench_apart(
    artifact: Artifact,
    *,
    batches: Sequence[int] = (1,),
    seconds: float = 2.0,
    model: ModelSource | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """What a fresh process measures of an artifact, as `bench_of` says.

    Args:
        artifact: That is run.
        batches: Sizes of batches.
        seconds: Time of measuring for each of them.
        model: How the float model is built, where the artifact needs it.
        threads: Threads of the runtime.
    Raises: As `run_apart`.
    """
    program = artifact.target.program(artifact.folder, None if model is None else model.to_json())
    return bench_of(program, artifact.inputs, batches=batches, seconds=seconds, threads=threads)


def load(folder: Path, threads: int, options: Mapping[str, Any]) -> Loaded:
    """An artifact, in the process that runs it.

    Args:
        folder: Folder of the artifact.
        threads: Threads of the runtime.
        options: `model`: how the float model is built, as `ModelSource.to_json` writes it, or None.

    Raises: UserError: As `open_artifact` and `Target.load`.
    """
    artifact = open_artifact(folder)
    target = artifact.target
    model, failed = _model(artifact, options["model"]), f"{target.runs_with.partition(',')[0]} cannot run it"
    with one_message(failed):
        run = target.load(artifact.folder, threads, model)
    form = artifact.form
    if form is not None and isinstance(run, nn.Module):
        run = bound(run, form)

    def computed(*inputs: Array) -> Array:
        given = [torch.from_numpy(x) for x in inputs]
        with torch.no_grad(), one_message(failed):
            found: Array = run(given[0] if form is None else as_batch(given, form.call)).float().numpy()
        return found

    def about() -> dict[str, Any]:
        return {
            "executed": target.executed(artifact.folder, threads),
            "fallbacks": {},
            "bytes": artifact.size_bytes,
        }

    return Loaded(computed, about, target.device(), target.energy_counter())


def _model(artifact: Artifact, given: Mapping[str, Any] | None) -> nn.Module | None:
    """The float architecture where the artifact needs one; a factory only where the caller named it, never
    because the artifact does.
    """
    if not artifact.target.needs_model:
        return None
    if given is not None:
        return build_model(ModelSource.from_json(given))
    if artifact.source.kind == "timm":
        return None  # the checkpoint builds it, within what its file can fill
    raise CheckpointError(
        f"{artifact.folder} holds a model that was built by {artifact.source.name!r}, and an artifact "
        f"never runs code. Name it: --model {artifact.source.name}."
    )
