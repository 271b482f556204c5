"""What a bit-packed ONNX file costs beside the one in 8-bit containers: bytes, time and memory of making a
session, time of a call.

Run: python benchmarks/onnx_packing.py [--model resnet50] [--write benchmarks/results/onnx_packing.json].
Random weights; each session in a process of its own, one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch

from mpsearch.deploy import export_float, quantize_onnx, save_onnx
from mpsearch.deploy.onnx_packing import pack_weights
from mpsearch.hardware.device import identity
from mpsearch.models import analyze, find_foldable, fold_batch_norm, trace_model
from mpsearch.problem import Assignment, Candidate
from mpsearch.reconstruct import calibrate

_PROBE = """
import hashlib, json, sys, time
import numpy as np
import onnxruntime as ort
def read(field):
    return next(int(line.split()[1]) * 1024 / 1e6 for line in open("/proc/self/status") if line.startswith(field))
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
before, start = read("VmRSS"), time.perf_counter()
live = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
took, high, held = time.perf_counter() - start, read("VmHWM"), read("VmRSS")
image = np.random.default_rng(0).standard_normal(json.loads(sys.argv[2]), dtype=np.float32)
feeds = {live.get_inputs()[0].name: image}
digest = hashlib.sha256(live.run(None, feeds)[0].tobytes()).hexdigest()[:12]
calls = []
for _ in range(40):
    start = time.perf_counter()
    live.run(None, feeds)
    calls.append(time.perf_counter() - start)
print(json.dumps({"load_ms": took * 1e3, "peak_mb": high - before, "held_mb": held - before, "call_ms": sorted(calls)[20] * 1e3,
                  "outputs": digest, "onnxruntime": ort.__version__}))
"""


def probed(path: Path, shape: list[int], rounds: int) -> dict[str, object]:
    """The round whose session was made in the median time."""
    command = [sys.executable, "-c", _PROBE, str(path), json.dumps(shape)]
    found = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(rounds)
    ]
    return sorted(found, key=lambda row: row["load_ms"])[rounds // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(2, 3, given.size, given.size)
    module = timm.create_model(given.model).eval()
    module = fold_batch_norm(module, find_foldable(trace_model(module, images[:1]), module))
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.endswith("bias"):
                value.normal_(0, 0.1)
    units = [layer.name for layer in analyze(module, images[:1]).layers if layer.op != "matmul"]
    calibration, graph, draw = (
        calibrate(module, units, [images]),
        export_float(module, images[:1]),
        random.Random(0),
    )
    rows = []
    for bits in ("2", "3", "4", "5", "6", "7", "2 to 8"):
        widths = {unit: draw.randint(2, 8) if bits == "2 to 8" else int(bits) for unit in units}
        states = calibration.states(
            Assignment(tuple((unit, Candidate(width, 8)) for unit, width in widths.items()))
        )
        model = quantize_onnx(graph, states, calibration)
        for form in ("plain", "packed"):
            if form == "packed":
                pack_weights(model)
            with tempfile.TemporaryDirectory() as folder:
                size = save_onnx(Path(folder) / "model.onnx", model)
                found = probed(Path(folder) / "model.onnx", [1, 3, given.size, given.size], given.rounds)
            rows.append({"model": given.model, "bits": bits, "form": form, "bytes": size, **found})
            times = "  ".join(
                f"{name} {rows[-1][name]:.1f}" for name in ("load_ms", "peak_mb", "held_mb", "call_ms")
            )
            print(f"{bits:>6} {form:>6} {size:>12,} B  {times}  {found['outputs']}", flush=True)
    if given.write:
        about = {"command": " ".join(["python", *sys.argv]), "device": str(identity()), "rows": rows}
        given.write.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
