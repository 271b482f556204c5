"""A model in a process of its own: what it computes, how long it takes, which kernels run, what memory it
needs.

The other process is `python -m mpsearch.hardware.fresh JOB`. It imports what the job's loader needs and no
more: the file of a runtime is loaded without torch, and nothing of the process that wrote it can help it.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mpsearch.allocator import keep_freed_memory
from mpsearch.errors import MpsearchError, UserError
from mpsearch.foreign import one_message
from mpsearch.hardware.backends.ort_cpu import executed, session
from mpsearch.hardware.bench import TRIES, time_apart
from mpsearch.hardware.device import identity
from mpsearch.hardware.ir import fallbacks, read_ir
from mpsearch.hardware.measure import Timing
from mpsearch.hardware.openvino_nodes import compiled, ran_nodes
from mpsearch.hardware.ports import onnx_ports
from mpsearch.hardware.qdq import Array

Arrays = Array | Sequence[Array]
"""N x ... of a model's one input, or of each of them."""
BATCH = 64
_WARM_UP = 3


@dataclass(frozen=True)
class Program:
    """What another process is to load.

    Args:
        loader: `module:function` of mpsearch; called with the path, the threads and the options, it returns a
            `Loaded`.
        path: A file or a folder.
        options: Plain data for the loader.
    """

    loader: str
    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True)
class FreshRun:
    """What a runtime made of a file.

    Args:
        outputs: First output for each input, N x K.
        timing: Time of a call.
        executed: Operators that ran, in order.
        fallbacks: Unit -> kernel that ran, where it is not what was asked.
        bytes_on_disk: Bytes of the file, or files.
    """

    outputs: Array
    timing: Timing
    executed: tuple[str, ...]
    fallbacks: dict[str, str]
    bytes_on_disk: int


def file_program(path: Path) -> Program:
    """The program of a runtime's file: `.onnx` (ONNX Runtime) or `.xml` (OpenVINO)."""
    return Program(f"{__name__}:{'load_openvino' if path.suffix == '.xml' else 'load_onnx'}", path)


def run_fresh(
    program: Program | Path,
    inputs: Arrays,
    *,
    threads: int = 1,
    seconds: float = 0.5,
    patience: float = 600.0,
    batch: int = 1,
) -> FreshRun:
    """Start a process that knows nothing but the files, and let it run and time them, one input in a call.

    Args:
        program: What it loads; a path is a runtime's file.
        inputs: N x ..., or one such array for each input; whole numbers (tokens) and truth values as they
            are and everything else as float32; a call with the first `batch` of them is timed.
        threads: Threads of the runtime's pool.
        seconds: Time of measuring.
        patience: Seconds after which the process is ended.
        batch: Samples in the call that is timed; where there are fewer they are repeated.

    Raises:
        UserError: The process refused what it was given; with what it said.
        MpsearchError: The process failed, died or took too long; with what it said.
    """
    outputs, about = _ask(
        program, {"do": "time", "seconds": seconds, "batch": batch}, inputs, threads, patience
    )
    held: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["timing"].items()}
    timing = Timing(**held)
    return FreshRun(outputs, timing, tuple(about["executed"]), about["fallbacks"], int(about["bytes"]))


def outputs_of(program: Program, inputs: Arrays, threads: int = 1) -> Array:
    """Outputs of another process, N x K, in batches of `BATCH`. Raises as `run_fresh`."""
    return _ask(program, {"do": "run"}, inputs, threads, None)[0]


def bench_of(
    program: Program,
    shapes: Sequence[tuple[Sequence[int], str]],
    *,
    batches: Sequence[int] = (1,),
    seconds: float = 2.0,
    threads: int = 1,
) -> dict[str, Any]:
    """What another process measures of a model on random inputs.

    Args:
        program: What it loads.
        shapes: Of each input the shape of one sample and its type, such as `float32`; of whole numbers all
            are 1.
        batches: Sizes of batches.
        seconds: Time of measuring for each of them.
        threads: Threads of the runtime.

    Returns: `batches`: for each batch size the latencies of single calls in microseconds (`latency_us`: p50,
        p90, p99, mean, least, iqr, repeats) and `images_per_second`; `memory`: bytes of resident memory
        before loading, after it, and at the peak; `energy`: millijoules of one image (`mj_per_image`, at the
        last batch size), or why there is none; `device`; `threads`.

    Raises: As `run_fresh`.
    """
    asked = {
        "do": "bench",
        "seconds": seconds,
        "batches": list(batches),
        "shapes": [[list(shape), kind] for shape, kind in shapes],
    }
    return _ask(program, asked, np.zeros(0, np.float32), threads, None)[1]


def _ask(
    program: Program | Path, asked: Mapping[str, Any], inputs: Arrays, threads: int, patience: float | None
) -> tuple[Array, dict[str, Any]]:
    """What another process answers: outputs, and plain data."""
    program = program if isinstance(program, Program) else file_program(program)
    path = program.path.resolve()
    with tempfile.TemporaryDirectory(prefix="mpsearch-") as folder:
        given, result = Path(folder) / "inputs.npz", Path(folder) / "outputs.npy"
        np.savez(given, *map(_plain, [inputs] if isinstance(inputs, np.ndarray) else inputs))
        job = {
            "loader": program.loader,
            "path": str(path),
            "options": dict(program.options),
            "threads": threads,
            **asked,
        }
        job |= {"inputs": str(given), "outputs": str(result)}
        pools = {
            name: str(threads) for name in ("OMP_NUM_THREADS", "TBB_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        command = [sys.executable, "-m", "mpsearch.hardware.fresh", json.dumps(job)]
        environment = {**os.environ, **pools, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=patience, env=environment, check=False
            )
        except subprocess.TimeoutExpired:
            raise MpsearchError(
                f"{program.path} was not done in {patience:.0f} s in a process of its own. Give fewer "
                "images, or wait longer."
            ) from None
        if done.returncode != 0 or not result.is_file():
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1].removeprefix("Error: ")
            kind = UserError if done.returncode == UserError.exit_code else MpsearchError
            raise kind(
                f"{program.path} failed in a process of its own (exit code {done.returncode}); it said: "
                f"{said}"
            )
        return np.load(result), json.loads(done.stdout.strip().splitlines()[-1])


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


def _plain(inputs: Array) -> Array:
    whole = np.issubdtype(inputs.dtype, np.integer) or inputs.dtype == np.bool_
    return np.ascontiguousarray(inputs, None if whole else np.float32)


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
