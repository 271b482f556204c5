"""The other process of `fresh`: `python -m mpsearch.hardware.fresh_process JOB`.

It imports what the job's loader needs and no more: the file of a runtime is loaded without torch, and nothing
of the process that wrote it can help it.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mpsearch.allocator import keep_freed_memory
from mpsearch.errors import MpsearchError
from mpsearch.foreign import one_message
from mpsearch.hardware.backends.ort_cpu import executed, session
from mpsearch.hardware.bench import TRIES, time_apart
from mpsearch.hardware.device import identity
from mpsearch.hardware.ir import fallbacks, read_ir
from mpsearch.hardware.openvino_nodes import compiled, ran_nodes
from mpsearch.hardware.ports import onnx_ports
from mpsearch.hardware.qdq import Array

BATCH = 64
"""Samples in a call, where outputs alone are asked for."""
_WARM_UP = 3


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to run.

    Args:
        run: From inputs, N x ..., one argument for each, to outputs, N x K, for any N.
        about: Gives `executed` (operators that run, in order), `fallbacks` (unit -> kernel that runs where it
            is not what was asked) and `bytes` on disk.
        device: What it runs on, for people.
        energy: Reads the device's counter of energy in millijoules (None where it has none); None for a CPU.
    """

    run: Callable[..., Array]
    about: Callable[[], dict[str, Any]] = dict
    device: str = ""
    energy: Callable[[], float | None] | None = None


def load_onnx(path: Path, threads: int, options: Mapping[str, Any]) -> Loaded:
    """A file for ONNX Runtime."""
    with one_message(f"ONNX Runtime cannot open {path}"):
        live = session(path, threads)
    ports = onnx_ports(live)

    def about() -> dict[str, Any]:
        return {"executed": executed(path, threads), "fallbacks": {}, "bytes": path.stat().st_size}

    return Loaded(lambda *x: ports.joined(live.run(None, ports.feeds(x))), about, str(identity()))


def load_openvino(path: Path, threads: int, options: Mapping[str, Any]) -> Loaded:
    """A file for OpenVINO, compiled for each size of batch at its first call."""
    live: dict[int, Any] = {}

    def at(batch: int) -> Any:
        if batch not in live:
            ir = read_ir(path, batch=batch)
            live.clear()
            live[batch] = compiled(ir.model, threads, ir.precision).create_infer_request()
        return live[batch]

    def about() -> dict[str, Any]:
        ir = read_ir(path, batch=1)
        one = compiled(ir.model, threads, ir.precision)
        size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
        return {
            "executed": [str(node) for node in ran_nodes(one)],
            "fallbacks": fallbacks(one, ir.asked),
            "bytes": size,
        }

    def run(*inputs: Array) -> Array:
        found = at(len(inputs[0])).infer(list(ports.feeds(inputs).values()))
        return ports.joined([found[i] for i in range(len(ports.gives))])

    ports = read_ir(path).ports
    at(1)
    return Loaded(run, about, str(identity()))


def _main(text: str) -> int:
    """The other process."""
    job = json.loads(text)
    try:
        module, _, name = job["loader"].partition(":")
        load = getattr(importlib.import_module(module), name)
        before = _peak_bytes()
        if job["do"] == "run":  # what is timed has the allocator that it will have
            keep_freed_memory()
        with one_message(f"{job['path']} cannot be run"):
            loaded = load(Path(job["path"]), int(job["threads"]), job["options"])
            outputs, answer = _DO[job["do"]](loaded, job, before)
    except MpsearchError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    np.save(job["outputs"], outputs)
    print(json.dumps(answer))
    return 0


def _run(loaded: Loaded, job: Mapping[str, Any], before: int) -> tuple[Array, dict[str, Any]]:
    return np.concatenate([loaded.run(*part) for part in _batches(job, BATCH)]), {}


def _batches(job: Mapping[str, Any], size: int) -> Iterator[tuple[Array, ...]]:
    """What was given, so many samples at a time."""
    with np.load(job["inputs"]) as held:
        inputs = [held[name] for name in held.files]
    for start in range(0, len(inputs[0]), size):
        yield tuple(np.ascontiguousarray(x[start : start + size]) for x in inputs)


def _drawn(draw: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    found = draw.standard_normal(shape) if kind.startswith("float") else np.ones(shape)
    return found.astype(kind)


def _time(loaded: Loaded, job: Mapping[str, Any], before: int) -> tuple[Array, dict[str, Any]]:
    outputs = np.concatenate([loaded.run(*one) for one in _batches(job, 1)])
    held, batch = next(_batches(job, int(job["batch"]))), int(job["batch"])
    first = tuple(np.ascontiguousarray(x[np.arange(batch) % len(x)]) for x in held)
    timing = time_apart(
        lambda: loaded.run(*first), threads=int(job["threads"]), seconds=float(job["seconds"]), rounds=TRIES
    )
    return outputs, {"timing": asdict(timing), **loaded.about()}


def _bench(loaded: Loaded, job: Mapping[str, Any], before: int) -> tuple[Array, dict[str, Any]]:
    after, draw, seconds = _peak_bytes(), np.random.default_rng(0), float(job["seconds"])
    rows = []
    for batch in job["batches"]:
        inputs = tuple(_drawn(draw, (batch, *shape), kind) for shape, kind in job["shapes"])
        rows.append({"batch": batch, **_latencies(loaded.run, inputs, seconds)})
    memory = {"before_load_bytes": before, "after_load_bytes": after, "peak_bytes": _peak_bytes()}
    energy = _energy(loaded, inputs, seconds)
    return np.zeros(0), {
        "batches": rows,
        "memory": memory,
        "energy": energy,
        "threads": job["threads"],
        "device": loaded.device,
    }


_DO = {"run": _run, "time": _time, "bench": _bench}


def _latencies(run: Callable[..., Array], inputs: Sequence[Array], seconds: float) -> dict[str, Any]:
    """Wall clock of single calls; each call is one sample, so that the tail is seen."""
    for _ in range(_WARM_UP):
        run(*inputs)
    samples: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(samples) < 10:
        begun = time.perf_counter_ns()
        run(*inputs)
        samples.append((time.perf_counter_ns() - begun) / 1e3)
    low, p50, high, p90, p99 = (float(v) for v in np.percentile(samples, (25, 50, 75, 90, 99)))
    mean = math.fsum(samples) / len(samples)
    latency = {
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "mean": mean,
        "least": min(samples),
        "iqr": high - low,
        "repeats": len(samples),
    }
    return {"latency_us": latency, "images_per_second": len(inputs[0]) * 1e6 / mean}


def _energy(loaded: Loaded, inputs: Sequence[Array], seconds: float) -> dict[str, Any]:
    """Energy of an image at the last batch size: what the device's counter moves over about `seconds`, idle
    power included.
    """
    if loaded.energy is None:
        return {
            "mj_per_image": None,
            "reason": "the artifact runs on the CPU; NVML measures NVIDIA devices alone",
        }
    before, images, start = loaded.energy(), 0, time.perf_counter()
    while time.perf_counter() - start < seconds or not images:
        loaded.run(*inputs)
        images += len(inputs[0])
    after = loaded.energy()
    if before is None or after is None:
        return {"mj_per_image": None, "reason": "the card has no counter of energy"}
    return {"mj_per_image": (after - before) / images, "batch": len(inputs[0])}


def _peak_bytes() -> int:
    """Greatest resident memory of this process so far.

    `getrusage` would count what the parent held when it started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = next(
            (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None
        )
        if found is not None:
            return int(found) * 1024
    try:
        import resource
    except ImportError:  # Windows, which counts it itself
        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
