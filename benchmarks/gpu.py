"""Everything that a GPU is needed for, in steps that resume: what `benchmarks/h200.sh` runs.

Run: python benchmarks/gpu.py STEP [--out FOLDER] [--minutes 9] [--batch N] [--model NAME]. Steps: doctor, check, roofs, tune, table, whole. Each ends by
itself after --minutes, keeps what it has in FOLDER, goes on from there when it is run again, and returns 75 while something is left. It imports no model
library but for `whole`, and no backend of another runtime.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import random
import statistics
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
from mpsearch.hardware.backends.torch_cuda import TorchCuda
from mpsearch.hardware.backends.triton_cuda import TritonCuda
from mpsearch.hardware.gpu.cells import TYPES, Draw, own_cell
from mpsearch.hardware.gpu.graphs import CudaGraphTimer
from mpsearch.hardware.gpu.measure import GpuSettings, Reading, read_cell
from mpsearch.hardware.gpu.nvml import NvmlMonitor
from mpsearch.hardware.gpu.probe import Gpu, needed
from mpsearch.hardware.gpu.profile import GpuLog, GpuProfiler, cells_of
from mpsearch.hardware.gpu.torch_cells import torch_cell
from mpsearch.hardware.gpu.tuning import tune_unit, tuned
from mpsearch.hardware.kernels.tiles import TileCache
from mpsearch.hardware.kernels.unit import KernelUnit
from mpsearch.problem import Candidate, ConvAttributes, Layer

LEFT = 75  # exit code: run again
FLOAT, W8A8, FP8 = Candidate.parse("float"), Candidate.parse("W8A8"), Candidate.parse("fp8")
CANDIDATES = [FLOAT, W8A8, Candidate(4, 8), Candidate(4, 16), Candidate(2, 16), Candidate(8, 16), Candidate(2, 8), FP8]
MODELS = ("resnet18", "vit_base", "deit_tiny", "resnet50", "mobilenetv2", "deit_small", "vit_small", "swin_tiny", "resmlp_24")
SHAPES = Path(__file__).with_name("gpu_shapes.json")
WHOLE = {"resnet18": ("resnet18", 24), "vit_base": ("vit_base_patch16_224", 24), "deit_tiny": ("deit_tiny_patch16_224", 24), "resnet50": ("resnet50", 24)}


class Run:
    """The arguments, the card and the deadline of a step."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, Path(arguments.out)
        self.end = time.monotonic() + 60 * arguments.minutes
        self.gpu: Gpu = needed()
        self.out.mkdir(parents=True, exist_ok=True)
        self.timer = CudaGraphTimer()
        self.monitor = NvmlMonitor(str(torch.cuda.get_device_properties(0).uuid))
        self.tiles = self.out / "tiles.json"

    def late(self) -> bool:
        return time.monotonic() > self.end

    def batches(self) -> list[int]:
        return [self.arguments.batch] if self.arguments.batch else [64, 1, 8]

    def models(self) -> list[str]:
        return [self.arguments.model] if self.arguments.model else list(MODELS)

    def about(self) -> dict[str, Any]:
        found = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "triton": triton.__version__}
        found |= {"python": platform.python_version(), **self.monitor.about(), "device": self.gpu.identity.to_json()}
        return {**found, "command": " ".join(sys.argv), "date": datetime.now(UTC).isoformat(timespec="seconds")}

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
    shape, macs = (out, channels // groups, kernel, kernel), out * channels // groups * kernel * kernel * size * size
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
    for package in ("torch", "triton", "nvidia-ml-py", "numpy", "timm", "gemlite", "tensorrt"):
        try:
            run.say(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            run.say(f"{package} is not installed" + {"timm": ": the step `whole` cannot run"}.get(package, ""))
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
    """Every width x input type x shape on the device, against float64; writes errors and matrix instructions. Fails on any that is off."""
    done = run.lines("check.jsonl")
    known = {(line["shape"], line["kernel"]) for line in done}
    for shape, kernel, build in _checks():
        if (shape, kernel) in known:
            continue
        if run.late():
            return LEFT
        cell = build()
        right = cell.relative_error <= cell.tolerance and cell.as_asked
        done.append({"shape": shape, "kernel": kernel, "error": cell.relative_error, "tolerance": cell.tolerance, "executed": cell.executed, "right": right})
        run.append("check.jsonl", done[-1])
        run.say(f"{shape} {kernel}: error {cell.relative_error:.2e} {'right' if right else 'WRONG'}, ran {' '.join(cell.executed)}")
    bad = [line for line in done if not line["right"]]
    run.write("check.json", {"kernels": len(done), "worst": max(line["error"] for line in done), "not right": bad})
    run.say(f"{len(done)} kernels, {len(bad)} wrong or not in the matrix unit asked for")
    return 1 if bad else 0


def _checks() -> Iterator[tuple[str, str, Callable[[], Cell]]]:
    for shape, (layer, batch) in CHECKED.items():
        for bits in range(1, 9):
            for a_bits, dtype in ((8, "fp16"), (16, "fp16"), (16, "bf16")):
                candidate = Candidate(bits, a_bits) if bits > 1 else _one_bit(a_bits)
                yield shape, f"w{bits} {dtype if a_bits == 16 else 'int8'}", partial(own_cell, layer, candidate, batch, dtype=dtype)
    for candidate in (FLOAT, W8A8, FP8):
        yield "vit-b fc1", f"torch {candidate}", partial(torch_cell, linear(197, 768, 3072), candidate, 2)


def _one_bit(a_bits: int) -> Any:
    return argparse.Namespace(w_bits=1, a_bits=a_bits)  # the search has no 1-bit candidate; the kernels have


def roofs(run: Run) -> int:
    """The roofs of the card (bf16 and int8 products, memory), and how near our kernels come: GEMM, convolution, weight-only at few rows."""
    settings = GpuSettings(energy_seconds=0.0, repeats=20)

    def us(cell: Any) -> Reading:
        return read_cell(cell, run.timer, run.monitor, settings)

    path = run.out / "roofs.json"
    if path.is_file():
        roof = json.loads(path.read_text())["results"]
    else:
        big = linear(8192, 8192, 8192)
        roof = {"bf16": 2 * big.macs / us(torch_cell(big, FLOAT, 1, dtype="bf16")).hot_us / 1e6, "int8": _int_mm_roof(run, 8192)}
        roof["bytes_per_us"] = _copy_roof(run, 2**30)
        run.write(path.name, roof)
    run.say(f"bf16 {roof['bf16']:.0f} TFLOP/s, int8 {roof['int8']:.0f} TOP/s, copy {roof['bytes_per_us'] / 1e6:.2f} TB/s")
    cache, known = _cache(run), {(line["layer"], line["batch"], line["candidate"]) for line in run.lines("roofs.jsonl")}
    for layer, batch, candidate in _roof_cells():
        if (layer.name, batch, str(candidate)) in known:
            continue
        if run.late():
            return LEFT
        tune_layer(run, cache, layer, candidate, batch)
        with tuned(str(run.tiles), run.gpu) as tile:
            cell = own_cell(layer, candidate, batch, tile=tile)
        reading, plain = us(cell), us(torch_cell(layer, FLOAT, batch, dtype="bf16"))
        floor = max(2 * layer.macs * batch / (roof["int8" if candidate.a_bits == 8 else "bf16"] * 1e6), cell.bytes_touched / roof["bytes_per_us"])
        line = {"layer": layer.name, "batch": batch, "candidate": str(candidate), "us": reading.median_us, "hot_us": reading.hot_us, "bf16_us": plain.median_us}
        line |= {"of_roof": floor / reading.median_us, "over_bf16": plain.median_us / reading.median_us, "error": cell.relative_error}
        run.append("roofs.jsonl", {**line, "executed": cell.executed, "trouble": reading.trouble})
        run.say(f"{layer.name} b{batch} {candidate}: {line['us']:.1f} us, {line['of_roof']:.0%} of its roof, x{line['over_bf16']:.2f} of bf16")
    return 0


def _roof_cells() -> Iterator[tuple[Layer, int, Candidate]]:
    for k, n in ((768, 3072), (3072, 768), (768, 768)):
        yield linear(197, k, n), 64, W8A8
    for layer in (conv(64, 64, 56), conv(128, 128, 28), conv(256, 256, 14), conv(512, 512, 7), conv(256, 64, 56, 1)):
        yield layer, 64, W8A8
    for k, n in ((768, 3072), (3072, 768), (768, 2304)):
        for bits in (4, 2):
            yield linear(197, k, n), 1, Candidate(bits, 16)
    for m in (1, 16):
        for k, n in ((4096, 4096), (4096, 14336), (14336, 4096)):
            for bits in (8, 4, 3, 2):
                yield linear(m, k, n), 1, Candidate(bits, 16)


def _copy_roof(run: Run, size: int) -> float:
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size * 4 / statistics.median(run.timer.times_us(run.timer.capture([lambda: target.copy_(source)] * 4), 10))


def _int_mm_roof(run: Run, size: int) -> float:
    a = torch.randint(-127, 127, (size, size), dtype=torch.int8, device="cuda")
    b = torch.randint(-127, 127, (size, size), dtype=torch.int8, device="cuda").t()
    return 2 * size**3 / (statistics.median(run.timer.times_us(run.timer.capture([lambda: torch._int_mm(a, b)] * 4), 10)) / 4) / 1e6


def _cache(run: Run) -> TileCache:
    return TileCache.open(run.tiles, str(run.gpu.identity), triton.__version__)


def tune_layer(run: Run, cache: TileCache, layer: Layer, candidate: Candidate, batch: int) -> None:
    """Find the tile of a unit, if the file has none, and save the file."""
    draw = Draw.of(layer, batch, TYPES["fp16"], "cuda")
    unit = KernelUnit.make(layer, draw.codes(candidate.w_bits or 8), draw.bias, draw.grid if candidate.a_bits == 8 else None, TYPES["fp16"])
    before = len(cache.found)
    tune_unit(unit, draw.x[0], run.gpu, cache)
    if len(cache.found) > before:
        cache.save(run.tiles)


def _work(run: Run) -> Iterator[tuple[str, int, list[Layer]]]:
    for batch in run.batches():
        for model in run.models():
            yield model, batch, model_layers(model)


def tune(run: Run) -> int:
    """Tiles of every shape of the models, at the candidates that are most wanted."""
    cache = _cache(run)
    for model, batch, layers in _work(run):
        for layer in (layer for layer in layers if layer.weight_shape):
            for candidate in (W8A8, Candidate(4, 16), Candidate(4, 8)):
                if run.late():
                    return LEFT
                tune_layer(run, cache, layer, candidate, batch)
        run.say(f"{model} b{batch}: {len(cache.found)} tiles")
    return 0


def table(run: Run) -> int:
    """Rows of every model, batch and candidate in both backends, with energy."""
    anchor = torch_cell(linear(4096, 4096, 4096), FLOAT, 1)
    left = 0
    for model, batch, layers in _work(run):
        for backend in (TorchCuda(), TritonCuda(tiles=str(run.tiles) if run.tiles.is_file() else "")):
            log = GpuLog.open(run.out / f"{run.gpu.identity.slug}__{backend.name}__{backend.version}.jsonl")
            wanted = [c for c in CANDIDATES if not (isinstance(backend, TritonCuda) and c.is_float)]
            profiler = GpuProfiler(backend, run.timer, run.monitor, anchor, GpuSettings(energy_seconds=run.arguments.energy))
            left += profiler.profile(
                cells_of(layers, wanted, backend, batch), log, batch, lambda done, total, what: run.say(f"{done}/{total} {what}"), run.late
            )
        run.say(f"{model} b{batch}: {left} cells left so far")
        if run.late():
            run.write("table.about.json", {"left": left})
            return LEFT
    run.write("table.about.json", {"left": left})
    return 0


class Replaced(torch.nn.Module):
    """A unit of a model in our kernels; pictures stay N x C x H x W to the rest, channels last in memory."""

    def __init__(self, unit: KernelUnit) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.unit.layer.op == "conv2d":
            return self.unit(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
        return self.unit(x.contiguous())


def whole(run: Run) -> int:
    """Whole models at random mixed assignments: measured by CUDA graph, twice, and predicted from the rows of `table`."""
    for name, (timm_name, count) in WHOLE.items():
        if run.arguments.model in (None, name):
            for batch in run.batches():
                if run.late():
                    return LEFT
                _whole(run, name, timm_name, batch, count)
    return LEFT if run.late() else 0


def _whole(run: Run, name: str, timm_name: str, batch: int, count: int) -> None:
    import timm

    from mpsearch.models import analyze, find_foldable, fold_batch_norm, trace_model

    log = f"whole__{name}__b{batch}.jsonl"
    done = run.lines(log)
    if len(done) < count + 2:
        module, image = timm.create_model(timm_name).eval(), torch.zeros(1, 3, 224, 224)
        module = fold_batch_norm(module, find_foldable(trace_model(module, image), module))
        layers = [layer for layer in analyze(module, image).layers if layer.weight_shape]
        module = module.half().cuda().to(memory_format=torch.channels_last)
        x = torch.randn(batch, 3, 224, 224, dtype=torch.float16, device="cuda").to(memory_format=torch.channels_last)
        inputs = _inputs(module, x, [layer.name for layer in layers])
        choices = [FLOAT, W8A8, Candidate(4, 16)]
        draw = random.Random(0)
        assignments = [[FLOAT] * len(layers), [W8A8] * len(layers), *([draw.choice(choices) for _ in layers] for _ in range(count))]
        for assignment in assignments[len(done) :]:
            if run.late():
                return
            passes = _whole_us(run, module, layers, assignment, x, inputs)
            line = {"model": name, "batch": batch, "kernels": {layer.name: str(c) for layer, c in zip(layers, assignment, strict=True)}, "passes_us": passes}
            line["rows_us"] = _rows_us(run, layers, assignment, batch)
            done.append(line)
            run.append(log, line)
            run.say(f"{name} b{batch}: {statistics.fmean(passes):.1f} us")
    run.write(f"whole__{name}__b{batch}.json", _prediction(done))
    run.say(f"{name} b{batch}: {json.dumps(_prediction(done))}")


def _inputs(module: torch.nn.Module, x: torch.Tensor, names: list[str]) -> dict[str, tuple[float, float]]:
    """Range of what each unit reads."""
    found: dict[str, tuple[float, float]] = {}
    hooks = [module.get_submodule(n).register_forward_pre_hook(lambda _, a, n=n: found.__setitem__(n, (float(a[0].min()), float(a[0].max())))) for n in names]
    with torch.inference_mode():
        module(x)
    for hook in hooks:
        hook.remove()
    return found


def _whole_us(run: Run, module: Any, layers: list[Layer], assignment: list[Candidate], x: torch.Tensor, inputs: dict[str, tuple[float, float]]) -> list[float]:
    held: Callable[[], torch.Tensor]
    replaced = {}
    with tuned(str(run.tiles) if run.tiles.is_file() else "", run.gpu) as tile:
        for layer, candidate in zip(layers, assignment, strict=True):
            if not candidate.is_float:
                replaced[layer.name] = module.get_submodule(layer.name)
                module.set_submodule(layer.name, Replaced(_unit(replaced[layer.name], layer, candidate, inputs[layer.name], tile)))
        try:
            with torch.inference_mode():
                held = lambda: module(x)  # noqa: E731
                launch = run.timer.capture([held])
                return [statistics.median(run.timer.times_us(launch, 30)) for _ in range(2)]
        finally:
            for name, old in replaced.items():
                module.set_submodule(name, old)


def _unit(old: Any, layer: Layer, candidate: Candidate, ends: tuple[float, float], tile: Any) -> KernelUnit:
    from mpsearch.hardware.kernels.unit import InputGrid

    draw = Draw(layer, (), old.weight.detach().float(), None)
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    scale = max((high - low) / 255, 1e-8)
    grid = InputGrid(scale, round(-low / scale)) if candidate.a_bits == 8 else None
    return KernelUnit.make(layer, draw.codes(candidate.w_bits or 8), None if old.bias is None else old.bias.detach().float(), grid, torch.float16, tile)


def _rows_us(run: Run, layers: list[Layer], assignment: list[Candidate], batch: int) -> float | None:
    """Sum of the rows of `table`; None where one is missing."""
    from mpsearch.hardware.rows import row_key

    rows: dict[tuple[str, str], Any] = {}
    for path in run.out.glob(f"{run.gpu.identity.slug}__*.jsonl"):
        found = GpuLog.open(path).rows
        rows |= {key: row for key, row in found.items() if row.usable and (("torch" in path.name) == (key[1] == "float"))}
    keys = [(row_key(layer, batch), str(c)) for layer, c in zip(layers, assignment, strict=True)]
    return math.fsum(rows[key].median_us * layer.calls for key, layer in zip(keys, layers, strict=True)) if all(key in rows for key in keys) else None


def _prediction(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Error of the rows' sum plus a constant, and of a line fitted to it (leave one out); the A/A error beside them. The uniform runs are not counted."""
    mixed = [line for line in done[2:] if line["rows_us"] is not None]
    if len(mixed) < 4:
        return {"runs": len(done), "predicted": len(mixed)}
    sums, times = [line["rows_us"] for line in mixed], [statistics.fmean(line["passes_us"]) for line in mixed]
    rest = (
        statistics.fmean(done[0]["passes_us"]) - done[0]["rows_us"]
        if done[0]["rows_us"] is not None
        else statistics.fmean(t - s for s, t in zip(sums, times, strict=True))
    )
    fitted = []
    for i in range(len(mixed)):
        others = [j for j in range(len(mixed)) if j != i]
        line = statistics.linear_regression([sums[j] for j in others], [times[j] for j in others])
        fitted.append(line.slope * sums[i] + line.intercept)
    twice = [abs(a - b) / ((a + b) / 2) for a, b in (line["passes_us"] for line in mixed)]
    plain = [s + rest for s in sums]
    return {
        "runs": len(done),
        "mape_sum": _mape(plain, times),
        "mape_fitted": _mape(fitted, times),
        "aa": statistics.fmean(twice),
        "float_us": done[0]["passes_us"],
        "int8_us": done[1]["passes_us"],
    }


def _mape(found: list[float], true: list[float]) -> float:
    return statistics.fmean(abs(f - t) / t for f, t in zip(found, true, strict=True))


STEPS = {step.__name__: step for step in (doctor, check, roofs, tune, table, whole)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--out", default="benchmarks/results/gpu")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--model")
    parser.add_argument("--energy", type=float, default=0.3, help="Seconds of energy counting for each reading; 0 leaves it out.")
    found = parser.parse_args()
    sys.exit(STEPS[found.step](Run(found)))
