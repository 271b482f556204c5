"""Times of single units on a GPU, in steps that resume: what `benchmarks/h200.sh` runs.

Run: python benchmarks/gpu.py STEP [--out FOLDER] [--minutes 7] [--batch N] [--model NAME]. Steps: `doctor`
(what is there), `tensorrt` (engines of single units, where the package is), `baselines` (torch in half
precision with the fastest kernels of cuDNN, and its int8 product), `packed` (our kernels), `check` (every
kernel against float64). Each ends by itself after --minutes, keeps what it has in FOLDER, goes on from there
when it is run again, and returns 75 while something is left. Nothing is tuned. It imports no model library.
Whole models are measured by `mpsearch run --target triton-cuda`, whole engines by the script of `mpsearch
profile --target tensorrt --write DIR`.
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

from mpsearch.hardware.backends import Backend, Cell
from mpsearch.hardware.backends.tensorrt import TensorRt
from mpsearch.hardware.backends.triton_cuda import TritonCuda
from mpsearch.hardware.gpu import card as cards
from mpsearch.hardware.gpu.bench import CudaBench
from mpsearch.hardware.gpu.cells import float_cell, int8_product, own_cell
from mpsearch.hardware.profile import measure_cells, missing_cells
from mpsearch.hardware.rows import row_key
from mpsearch.hardware.table import LatencyTable
from mpsearch.problem import Candidate, ConvAttributes, Layer

LEFT = 75  # exit code: run again
AT_ONCE = 8  # cells between two looks at the clock
CANDIDATES = [Candidate.parse(text) for text in ("float", "W8A8", "W4A8", "W4A16", "W2A16")]
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
        self.card = cards.card()
        self.out.mkdir(parents=True, exist_ok=True)

    def late(self) -> bool:
        return time.monotonic() > self.end

    def about(self) -> dict[str, Any]:
        found = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": triton.__version__,
            "python": platform.python_version(),
            **self.card.monitor.about(),
            "device": self.card.gpu.identity.to_json(),
        }
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return {**found, "command": " ".join(sys.argv), "date": date}

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
    monitor = run.card.monitor
    run.say(f"{run.card.gpu}; {monitor.state()}; energy counter {monitor.energy_mj()}")
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
    only = run.arguments
    for batch in [only.batch] if only.batch else (1, 64):
        for model in [only.model] if only.model else MODELS:
            yield model, batch, model_layers(model)


def _table(run: Run, backend: Backend) -> int:
    """Rows of every model, batch and candidate, with energy, a few at a time until time is up."""
    held = LatencyTable.open(run.out, backend.device(), backend.name, backend.version, backend.threads)
    held.method = backend.bench().method
    for model, batch, layers in _work(run):
        cells = missing_cells(layers, [CANDIDATES] * len(layers), backend, held, batch)
        if not run.arguments.crashed:
            cells = {key: cell for key, cell in cells.items() if key not in held.rows}
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


def tensorrt(run: Run) -> int:
    """Engines of single units, half precision and int8."""
    why = TensorRt().supports(linear(32, 64, 64), Candidate(8, 8))
    if why.status == "no":
        run.say(f"left out: {why.reason}")
        return 0
    return _table(run, TensorRt())


def packed(run: Run) -> int:
    """Our kernels as they are, and half precision as a deployed module runs it."""
    return _table(run, TritonCuda())


def baselines(run: Run) -> int:
    """What torch has: half precision, cuDNN choosing its fastest kernel, and its int8 product."""
    torch.backends.cudnn.benchmark = True
    known = {(line["unit"], line["what"]) for line in run.lines("baselines.jsonl")}
    bench = CudaBench(run.card)
    for model, batch, layers in _work(run):
        for layer, (what, build) in itertools.product(layers, BASELINES.items()):
            unit = row_key(layer, batch)
            if (unit, what) in known or (build is int8_product and layer.op != "linear"):
                continue
            if run.late():
                return LEFT
            known.add((unit, what))
            found = _read(bench, partial(build, layer, batch, device=run.card.device))
            run.append("baselines.jsonl", {"model": model, "unit": unit, "what": what, **found})
        run.say(f"{model} b{batch}: done")
    return 0


BASELINES = {"torch fp16": float_cell, "torch int8 product": int8_product}


def _read(bench: CudaBench, build: Callable[[], Cell]) -> dict[str, Any]:
    try:
        cell = build()
        found = bench.measure(cell)
    except RuntimeError as error:  # what torch raises for a kernel that it has not
        return {"failed": str(error).splitlines()[0]}
    timing = {"median_us": found.timing.median_us, "iqr_us": found.timing.iqr_us}
    return {**timing, "energy_mj": found.energy_mj, "error": cell.relative_error, "trouble": found.trouble}


STEPS = {step.__name__: step for step in (doctor, tensorrt, baselines, packed, check)}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("step", choices=STEPS)
    found.add_argument("--out", default="benchmarks/results/gpu")
    found.add_argument("--minutes", type=float, default=7.0)
    found.add_argument("--batch", type=int)
    found.add_argument("--model")
    found.add_argument("--crashed", action="store_true", help="Measure again the cells that crashed.")
    return found


if __name__ == "__main__":
    given = parser().parse_args()
    sys.exit(STEPS[given.step](Run(given)))
