"""A model in a process of its own: what it computes, how long it takes, which kernels run, what memory it
needs.

Here it is asked; `fresh_process` is the other process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpsearch.errors import MpsearchError, UserError
from mpsearch.hardware.measure import Timing
from mpsearch.hardware.qdq import Array

Arrays = Array | Sequence[Array]
"""N x ... of a model's one input, or of each of them."""
_OTHER = "mpsearch.hardware.fresh_process"


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
    return Program(f"{_OTHER}:{'load_openvino' if path.suffix == '.xml' else 'load_onnx'}", path)


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
    """Outputs of another process, N x K, in batches of `fresh_process.BATCH`. Raises as `run_fresh`."""
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
        command = [sys.executable, "-m", _OTHER, json.dumps(job)]
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


def _plain(inputs: Array) -> Array:
    whole = np.issubdtype(inputs.dtype, np.integer) or inputs.dtype == np.bool_
    return np.ascontiguousarray(inputs, None if whole else np.float32)
