"""An artifact run in a process of its own: nothing of the process that wrote it can help it, and what it takes of memory is its own.

The other process is `python -m mpsearch.deploy.process FOLDER REQUEST`; what it is asked is JSON, what it answers is one safetensors file.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mpsearch.allocator import keep_freed_memory
from mpsearch.deploy.artifact import Artifact, open_artifact
from mpsearch.deploy.foreign import one_message
from mpsearch.errors import CheckpointError, MpsearchError, UserError
from mpsearch.models import ModelSource, build_model

BATCH = 64
_KEY = "mpsearch"
_WARM_UP = 3


def run_apart(artifact: Artifact, inputs: Tensor, *, model: ModelSource | None = None, threads: int = 1) -> Tensor:
    """Logits, N x K, of an artifact on inputs N x C x H x W, by a fresh process.

    Raises:
        UserError: The artifact needs a model that was not given, or a package.
        MpsearchError: The process failed otherwise; with what it said last.
    """
    tensors, _ = _ask(artifact, {"do": "run", "threads": threads}, {"inputs": inputs}, model)
    return tensors["logits"]


def bench_apart(
    artifact: Artifact, *, batches: Sequence[int] = (1,), seconds: float = 2.0, model: ModelSource | None = None, threads: int = 1
) -> dict[str, Any]:
    """What a fresh process measures of an artifact.

    Returns: `batches`: for each batch size the latencies of single calls in microseconds (`latency_us`: p50, p90, p99, mean, least, iqr, repeats)
        and `images_per_second`; `memory`: bytes of resident memory before loading, after it, and at the peak; `energy`: millijoules of one image
        (`mj_per_image`, by NVML, at the last batch size), or why there is none; `device`.

    Raises: As `run_apart`.
    """
    asked = {"do": "bench", "threads": threads, "batches": list(batches), "seconds": seconds}
    _, answer = _ask(artifact, asked, {}, model)
    return answer


def _ask(artifact: Artifact, asked: Mapping[str, Any], tensors: dict[str, Tensor], model: ModelSource | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="mpsearch-") as folder:
        request, answer = Path(folder) / "request.safetensors", Path(folder) / "answer.safetensors"
        text = json.dumps({**asked, "model": None if model is None else model.to_json()})
        save_file({k: v.contiguous() for k, v in tensors.items()}, request, {_KEY: text})
        command = [sys.executable, "-m", "mpsearch.deploy.process", str(artifact.folder), str(request), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not answer.is_file():
            said = done.stderr.strip().splitlines()
            last = said[-1] if said else f"exit code {done.returncode}"
            message = last.removeprefix("Error: ")
            raise (UserError if done.returncode == UserError.exit_code else MpsearchError)(f"{artifact.folder} did not run in a process of its own: {message}")
        with safe_open(answer, framework="pt") as file:
            about = json.loads(file.metadata()[_KEY])
        return load_file(answer), about


def main(arguments: Sequence[str]) -> int:
    """The other process."""
    folder, request, answer = arguments
    before = _peak_bytes()
    try:
        with safe_open(request, framework="pt") as file:
            asked = json.loads(file.metadata()[_KEY])
        artifact = open_artifact(folder)
        with one_message(f"{artifact.target.runs_with.partition(',')[0]} cannot run it"):
            _answer(artifact, asked, request, answer, before)
    except MpsearchError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _answer(artifact: Artifact, asked: Mapping[str, Any], request: str, answer: str, before: int) -> None:
    model = _model(artifact, asked["model"])
    run = artifact.target.load(artifact.folder, asked["threads"], model)
    del model
    with torch.no_grad():
        if asked["do"] == "run":  # what is timed has the allocator that it will have
            keep_freed_memory()
            inputs = load_file(request)["inputs"]
            logits = torch.cat([run(inputs[i : i + BATCH]).float() for i in range(0, len(inputs), BATCH)])
            save_file({"logits": logits.contiguous()}, answer, {_KEY: "{}"})
        else:
            save_file({}, answer, {_KEY: json.dumps(_bench(artifact, run, asked, before))})


def _model(artifact: Artifact, given: Mapping[str, Any] | None) -> nn.Module | None:
    """The float architecture where the artifact needs one; a factory only where the caller named it, never because the artifact does."""
    if not artifact.target.needs_model:
        return None
    if given is not None:
        return build_model(ModelSource.from_json(given))
    if artifact.source.kind == "timm":
        return None  # the checkpoint builds it, within what its file can fill
    raise CheckpointError(
        f"{artifact.folder} holds a model that was built by {artifact.source.name!r}, and an artifact never runs code. Name it: --model {artifact.source.name}."
    )


def _bench(artifact: Artifact, run: Any, asked: Mapping[str, Any], before: int) -> dict[str, Any]:
    shape, loaded = artifact.input_shape, _peak_bytes()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for batch in asked["batches"]:
        inputs = torch.randn(batch, *shape, generator=generator)
        rows.append({"batch": batch, **_latencies(run, inputs, asked["seconds"])})
    memory = {"before_load_bytes": before, "after_load_bytes": loaded, "peak_bytes": _peak_bytes()}
    return {
        "batches": rows,
        "memory": memory,
        "energy": _energy(artifact.target.energy_counter(), run, inputs, asked["seconds"]),
        "threads": asked["threads"],
        "device": artifact.target.device(),
    }


def _latencies(run: Any, inputs: Tensor, seconds: float) -> dict[str, Any]:
    """Wall clock of single calls; each call is one sample, so that the tail is seen."""
    for _ in range(_WARM_UP):
        run(inputs)
    samples: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(samples) < 10:
        begun = time.perf_counter_ns()
        run(inputs)
        samples.append((time.perf_counter_ns() - begun) / 1e3)
    low, p50, high, p90, p99 = (float(v) for v in np.percentile(samples, (25, 50, 75, 90, 99)))
    mean = math.fsum(samples) / len(samples)
    latency = {"p50": p50, "p90": p90, "p99": p99, "mean": mean, "least": min(samples), "iqr": high - low, "repeats": len(samples)}
    return {"latency_us": latency, "images_per_second": len(inputs) * 1e6 / mean}


def _energy(counter: Callable[[], float | None] | None, run: Any, inputs: Tensor, seconds: float) -> dict[str, Any]:
    """Energy of an image at the last batch size: the difference of the device's counter over about `seconds` of calls, idle power included."""
    if counter is None:
        return {"mj_per_image": None, "reason": "the artifact runs on the CPU; NVML measures NVIDIA devices alone"}
    before, images, start = counter(), 0, time.perf_counter()
    while time.perf_counter() - start < seconds or not images:
        run(inputs)
        images += len(inputs)
    after = counter()
    if before is None or after is None:
        return {"mj_per_image": None, "reason": "the card has no counter of energy"}
    return {"mj_per_image": (after - before) / images, "batch": len(inputs)}


def _peak_bytes() -> int:
    """Greatest resident memory of this process so far; getrusage would count what the parent held when it started this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        found = next((line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if found is not None:
            return int(found) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
