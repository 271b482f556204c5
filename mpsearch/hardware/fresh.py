"""A model file in a process of its own: what it computes, how long it takes, which kernels run. No torch, nothing of the process that wrote it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpsearch.errors import MpsearchError
from mpsearch.hardware.backends.ort_cpu import executed, session
from mpsearch.hardware.bench import TRIES, time_apart
from mpsearch.hardware.ir import fallbacks, read_ir
from mpsearch.hardware.measure import Timing
from mpsearch.hardware.openvino_nodes import compiled, ran_nodes
from mpsearch.hardware.qdq import Array


@dataclass(frozen=True)
class FreshRun:
    """What a runtime made of a file.

    Args:
        outputs: First output for each input, N x K.
        timing: Of a call with one input.
        executed: Operators that ran, in order.
        fallbacks: Unit -> kernel that ran, where it is not what was asked.
        bytes_on_disk: Of the file, or files.
    """

    outputs: Array
    timing: Timing
    executed: tuple[str, ...]
    fallbacks: dict[str, str]
    bytes_on_disk: int


def run_fresh(path: Path, inputs: Array, *, threads: int = 1, seconds: float = 0.5, patience: float = 600.0) -> FreshRun:
    """Start a process that knows nothing but the file, and let it run and time it.

    Args:
        path: `.onnx` (ONNX Runtime) or `.xml` (OpenVINO).
        inputs: N x ..., whole numbers (tokens) as they are and everything else as float32; a call with the first alone is what is timed.
        threads: Of the runtime's pool.
        seconds: Of measuring.
        patience: Seconds after which the process is ended.

    Raises: MpsearchError: The process failed, died or took too long; with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "inputs.npy", Path(folder) / "outputs.npy"
        np.save(given, np.ascontiguousarray(inputs, None if np.issubdtype(inputs.dtype, np.integer) else np.float32))
        job = {"path": str(path.resolve()), "inputs": str(given), "outputs": str(result), "threads": threads, "seconds": seconds}
        pools = {name: str(threads) for name in ("OMP_NUM_THREADS", "TBB_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        command = [sys.executable, "-m", "mpsearch.hardware.fresh", json.dumps(job)]
        environment = {**os.environ, **pools, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=patience, env=environment, check=False)
        except subprocess.TimeoutExpired:
            raise MpsearchError(f"{path} was not done in {patience:.0f} s in a process of its own. Give fewer images, or wait longer.") from None
        if done.returncode != 0 or not result.is_file():
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise MpsearchError(f"{path} failed in a process of its own (exit code {done.returncode}); it said: {said}")
        about = json.loads(done.stdout.strip().splitlines()[-1])
        timing = Timing(**{key: tuple(value) if isinstance(value, list) else value for key, value in about["timing"].items()})  # type: ignore[arg-type]
        return FreshRun(np.load(result), timing, tuple(about["executed"]), about["fallbacks"], int(about["bytes"]))


def _main(text: str) -> None:
    job = json.loads(text)
    path, inputs = Path(job["path"]), np.load(job["inputs"])
    run, found = (_openvino if path.suffix == ".xml" else _onnx)(path, int(job["threads"]))
    np.save(job["outputs"], np.concatenate([np.asarray(run(inputs[i : i + 1])) for i in range(len(inputs))]))
    timing = time_apart(lambda: run(inputs[:1]), threads=int(job["threads"]), seconds=float(job["seconds"]), rounds=TRIES)
    print(json.dumps({"timing": asdict(timing), **found}))


def _onnx(path: Path, threads: int) -> tuple[Callable[[Array], Any], dict[str, Any]]:
    live = session(path, threads)
    name = live.get_inputs()[0].name
    return lambda x: live.run(None, {name: x})[0], {"executed": executed(path, threads), "fallbacks": {}, "bytes": path.stat().st_size}


def _openvino(path: Path, threads: int) -> tuple[Callable[[Array], Any], dict[str, Any]]:
    ir = read_ir(path, batch=1)
    live = compiled(ir.model, threads, ir.precision)
    request = live.create_infer_request()
    about = {"executed": [str(node) for node in ran_nodes(live)], "fallbacks": fallbacks(live, ir.asked)}
    return lambda x: request.infer([x])[0], {**about, "bytes": path.stat().st_size + path.with_suffix(".bin").stat().st_size}


if __name__ == "__main__":
    _main(sys.argv[1])
