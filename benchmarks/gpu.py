"""Everything that a GPU is needed for, in steps that resume: what `benchmarks/h200.sh` runs.

Run: python benchmarks/gpu.py STEP [--out FOLDER] [--minutes 9] [--batch N] [--model NAME]. Steps: doctor,
check, table. Each ends by itself after --minutes, keeps what it has in FOLDER, goes on from there when it is
run again, and returns 75 while something is left. It imports no model library, and no backend of another
runtime. Whole models are measured by `mpsearch run --target triton-cuda`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from mpsearch.hardware.backends import Cell
from mpsearch.hardware.backends.triton_cuda import TritonCuda
from mpsearch.hardware.gpu.cells import float_cell, own_cell
from mpsearch.hardware.gpu.nvml import NvmlMonitor
from mpsearch.hardware.gpu.probe import Gpu, needed
from mpsearch.hardware.profile import measure_cells, missing_cells
from mpsearch.hardware.table import LatencyTable
from mpsearch.problem import Candidate, ConvAttributes, Layer

LEFT = 75  # exit code: run again
AT_ONCE = 20  # cells of a process
CANDIDATES = [Candidate.parse(text) for text in ("float", "W8A8", "W4A8", "W4A16", "W2A16", "W8A16", "W2A8")]
MODELS = (
    "resnet18",
    "vit_base",
    "deit_tiny",
    "resnet50",
    "mobilenetv2",
    "deit_small",
    "vit_small",
    "swin_tiny",
    "resmlp_24",
)
SHAPES = Path(__file__).with_name("gpu_shapes.json")


class Run:
    """The arguments, the card and the deadline of a step."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, Path(arguments.out)
        self.end = time.monotonic() + 60 * arguments.minutes
        self.gpu: Gpu = needed()
        self.out.mkdir(parents=True, exist_ok=True)
        self.monitor = NvmlMonitor(str(torch.cuda.get_device_properties(0).uuid))

    def late(self) -> bool:
        return time.monotonic() > self.end

    def batches(self) -> list[int]:
        return [self.arguments.batch] if self.arguments.batch else [64, 1, 8]

    def models(self) -> list[str]:
        return [self.arguments.model] if self.arguments.model else list(MODELS)

    def about(self) -> dict[str, Any]:
        found = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": triton.__version__,
        }
        found |= {
            "python": platform.python_version(),
            **self.monitor.about(),
            "device": self.gpu.identity.to_json(),
        }
        return {
            **found,
            "command": " ".join(sys.argv),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def write(self, name: str, data: Any) -> None:
        (self.out / name).write_text(json.dumps({"about": self.about(), "results": data}, indent=1) + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.out / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def append(self, name: str, line: dict[str, Any]) -> None:
        with (self.out / name).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def say(self, text: str) -> None:
        print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)


def linear(m: int, k: int, n: int) -> Layer:
    return Layer(f"{m}x{k}x{n}", "linear", (n, k), ((m, k),), (m, n), m * k * n, "", bias=True)


def conv(out: int, channels: int, side: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> Layer:
    pad = kernel // 2
    size = (side + 2 * pad - kernel) // stride + 1
    attributes = ConvAttributes((stride, stride), (pad, pad), (1, 1), groups)
    shape, macs = (
        (out, channels // groups, kernel, kernel),
        out * channels // groups * kernel * kernel * size * size,
    )
    return Layer(
        f"{kernel}x{kernel}s{stride}g{groups} {channels}x{side}->{out}",
        "conv2d",
        shape,
        ((1, channels, side, side),),
        (1, out, size, size),
        macs,
        "",
        bias=True,
        conv=attributes,
    )


def model_layers(name: str) -> list[Layer]:
    return [Layer.from_json(data) for data in json.loads(SHAPES.read_text())[name]]


def doctor(run: Run) -> int:
    """What is there, and what is missing for which step."""
    for package in ("torch", "triton", "nvidia-ml-py", "numpy", "tensorrt"):
        try:
            run.say(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            run.say(f"{package} is not installed")
    run.say(f"{run.gpu}; {run.monitor.state()}; energy counter {run.monitor.energy_mj()}")
    run.write("about.json", None)
    return 0


CHECKED = {
    "ragged": (linear(197, 200, 77), 1),
    "one row": (linear(1, 768, 1000), 1),
    "vit-b fc1": (linear(197, 768, 3072), 2),
    "3x3": (conv(64, 64, 56), 2),
    "stem": (conv(64, 3, 224, 7, 2), 1),
    "strided 1x1": (conv(128, 64, 56, 1, 2), 2),
    "odd channels": (conv(20, 9, 15), 3),
    "grouped": (conv(32, 32, 14, groups=4), 2),
    "depthwise": (conv(144, 144, 56, groups=144), 2),
}


def check(run: Run) -> int:
    """Every width x input type x shape on the device, against float64; writes errors and matrix instructions.
    Fails on any that is off.
    """
    done = run.lines("check.jsonl")
    known = {(line["shape"], line["kernel"]) for line in done}
    for shape, kernel, build in _checks():
        if (shape, kernel) in known:
            continue
        if run.late():
            return LEFT
        cell = build()
        right = cell.relative_error <= cell.tolerance and cell.as_asked
        done.append(
            {
                "shape": shape,
                "kernel": kernel,
                "error": cell.relative_error,
                "tolerance": cell.tolerance,
                "executed": cell.executed,
                "right": right,
            }
        )
        run.append("check.jsonl", done[-1])
        run.say(
            f"{shape} {kernel}: error {cell.relative_error:.2e} {'right' if right else 'WRONG'}, ran "
            f"{' '.join(cell.executed)}"
        )
    bad = [line for line in done if not line["right"]]
    run.write(
        "check.json", {"kernels": len(done), "worst": max(line["error"] for line in done), "not right": bad}
    )
    run.say(f"{len(done)} kernels, {len(bad)} wrong or not in the matrix unit asked for")
    return 1 if bad else 0


def _checks() -> Iterator[tuple[str, str, Callable[[], Cell]]]:
    for shape, (layer, batch) in CHECKED.items():
        for bits in range(1, 9):
            for a_bits, dtype in ((8, "fp16"), (16, "fp16"), (16, "bf16")):
                candidate = Candidate(bits, a_bits) if bits > 1 else _one_bit(a_bits)
                yield (
                    shape,
                    f"w{bits} {dtype if a_bits == 16 else 'int8'}",
                    partial(own_cell, layer, candidate, batch, dtype=dtype),
                )
    yield "vit-b fc1", "float", partial(float_cell, linear(197, 768, 3072), 2)


def _one_bit(a_bits: int) -> Any:
    return argparse.Namespace(w_bits=1, a_bits=a_bits)  # the search has no 1-bit candidate; the kernels have


def _work(run: Run) -> Iterator[tuple[str, int, list[Layer]]]:
    for batch in run.batches():
        for model in run.models():
            yield model, batch, model_layers(model)


def table(run: Run) -> int:
    """Rows of every model, batch and candidate, with energy, a few at a time until time is up."""
    backend = TritonCuda()
    held = LatencyTable.open(run.out, backend.device(), backend.name, backend.version, backend.threads)
    held.method = backend.bench().method
    for model, batch, layers in _work(run):
        cells = missing_cells(layers, [CANDIDATES] * len(layers), backend, held, batch)
        while cells and not run.late():
            some = dict(itertools.islice(cells.items(), AT_ONCE))
            measure_cells(
                some,
                backend,
                held,
                run.out,
                batch=batch,
                isolate=True,
                on_row=lambda done, total, what: run.say(f"{done}/{total} {what}"),
            )
            cells = {key: cell for key, cell in cells.items() if key not in some}
        run.say(f"{model} b{batch}: {len(cells)} cells left")
        if cells:
            return LEFT
    return 0


STEPS = {step.__name__: step for step in (doctor, check, table)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--out", default="benchmarks/results/gpu")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--model")
    found = parser.parse_args()
    sys.exit(STEPS[found.step](Run(found)))
