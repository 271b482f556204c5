"""One file of a model in a process that imports its runtime and no more: time of loading, memory, time of a call.

Run: python benchmarks/file_probe.py RUNTIME FILE JOB, as `deployed_files.py` does; prints one line of JSON.
RUNTIME is `onnxruntime`, `openvino` or `mpsearch`; JOB is JSON of `images` (a `.npy`, N x C x H x W, which are
given one by one), `count` (how many of them), `outputs` (where outputs go, or null), `config` for OpenVINO and
`model` for mpsearch. Memory is that of loading and the first calls.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 3
Run = Callable[[Any], Any]


def onnxruntime(path: str, shape: list[int], job: dict[str, Any]) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    live = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = live.get_inputs()[0].name
    return lambda image: live.run(None, {name: image})[0]


def openvino(path: str, shape: list[int], job: dict[str, Any]) -> Run:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    model.reshape(shape)
    request = core.compile_model(model, "CPU", job["config"]).create_infer_request()
    return lambda image: request.infer([image])[0]


def mpsearch(path: str, shape: list[int], job: dict[str, Any]) -> Run:
    import torch

    import mpsearch

    torch.set_num_threads(1)
    module = mpsearch.load(path, job["model"])

    def call(image: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(image)).numpy()

    return call


IMPORTS = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "mpsearch": ("timm", "mpsearch.deploy"),
}


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith("VmHWM:"))


def main() -> None:
    runtime, path, job = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    for name in IMPORTS[runtime]:
        importlib.import_module(name)
    images = np.load(job["images"], mmap_mode="r")[: job["count"]]
    before, start, start_cpu = peak_mb(), time.perf_counter(), time.process_time()
    call = globals()[runtime](path, [1, *images.shape[1:]], job)
    found = {"load_ms": 1e3 * (time.perf_counter() - start)}
    found |= {"load_cpu_ms": 1e3 * (time.process_time() - start_cpu)}
    for _ in range(WARM_UP):
        call(np.array(images[:1]))
    found |= {"before_mb": before, "peak_mb": peak_mb()}
    walls, cpus, outputs = list[float](), list[float](), list[Any]()
    for i in range(len(images)):
        image = np.array(images[i : i + 1])
        start, start_cpu = time.perf_counter(), time.process_time()
        result = call(image)
        cpus.append(time.process_time() - start_cpu)
        walls.append(time.perf_counter() - start)
        outputs.append(np.array(result))
    if job["outputs"]:
        np.save(job["outputs"], np.concatenate(outputs))
    found |= {"call_ms": 1e3 * statistics.median(walls), "call_cpu_ms": 1e3 * statistics.median(cpus)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
