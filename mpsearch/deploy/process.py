"""Artifacts in a process of their own (`hardware.fresh`): how one is loaded there, and what can be asked of
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.deploy.artifact import Artifact, open_artifact
from mpsearch.errors import CheckpointError, UserError
from mpsearch.foreign import one_message
from mpsearch.hardware.fresh import bench_of, outputs_of
from mpsearch.hardware.fresh_process import Loaded
from mpsearch.hardware.qdq import Array
from mpsearch.models import Form, ModelSource, as_batch, bound, build_model
from mpsearch.pytrees import Inputs, arrays_of, flatten


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


class FileModel(nn.Module):
    """The files of an artifact, called as the model's author called it: for a user's metric.

    Args:
        run: From what the model reads to N x ..., outputs joined.
        form: How the model is called and what it gives; None for one tensor in, one tensor out.
    Raises: UserError: It gives what no file is read for.
    """

    def __init__(self, run: Callable[[Inputs], Tensor], form: Form | None) -> None:
        super().__init__()
        self._run, self._form = run, form
        lost = [leaf for leaf in form.outputs if not leaf.counts] if form is not None else []
        if lost or (form is not None and form.result is None):
            raise UserError(
                f"Of the model's outputs {', '.join(map(str, lost)) or 'the nesting'} is not read from its "
                "file. Measure the packed checkpoint: export with --target packed."
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the author's model gives; an object's parts have their names."""
        if self._form is None:
            return self._run(args[0])
        leaves = [leaf.movedim(self._form.batch_axis, 0) for leaf in flatten((args, kwargs))[0]]
        found = self._form.parts(self._run(as_batch(leaves, self._form.call)))
        moved = [part.movedim(0, self._form.batch_axis) for part in found.values()]
        assert self._form.result is not None  # asked when it was made
        return self._form.result.build(moved)


def as_model(artifact: Artifact, *, model: ModelSource | None = None, threads: int = 1) -> nn.Module:
    """An artifact in this process, to be called as its author's model was.

    Raises: UserError: As `run_apart`, or it gives what no file is read for.
    """
    failed = f"{artifact.target.runs_with.partition(',')[0]} cannot run it"
    with one_message(failed):
        run = artifact.target.load(
            artifact.folder, threads, _model(artifact, None if model is None else model.to_json())
        )
    if not isinstance(run, nn.Module):
        return FileModel(run, artifact.form)
    return run if artifact.form is None else bound(run, artifact.form)


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
