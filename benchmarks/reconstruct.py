"""Speed of the reconstruction loop against a plain textbook version of it, at equal final loss, on the same
blocks of the same models.

Run: python benchmarks/reconstruct.py [resnet20 mobilenet resnet18] [--iterations 200] [--threads 2]
[--precision auto|float32|bfloat16] [--crops]. The first two need the assets folder (MPSEARCH_ASSETS, else
../shared/assets). Of MobileNet five blocks learn, one of each size of image, in a fifth of the steps; the
others stay rounded to nearest. ResNet18 has random weights: its time for an epoch of 1,024 images is
projected from a few steps of each block. A model that the results hold already, with the same settings on the
same machine, is not run again; raw numbers lie beside the table in reconstruct.json.

The textbook version does the same mathematics (QDrop: soft rounding, dropping, learned steps, input mixing,
two Adams, W4A4, batch 32) as one writes it down from the papers: caches in N x C x H x W, float32,
`torch.rand_like(x) < p` and `torch.where`, straight-through rounding by `(round(x) - x).detach() + x`, the
regulariser as a term of the loss, all gradients by autograd. On each block both run in turn, and take turns
in going first.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mpsearch.allocator import keep_freed_memory
from mpsearch.data import make_splits
from mpsearch.hardware import identity
from mpsearch.models import analyze, find_foldable, fold_batch_norm, trace_model
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import UnitState
from mpsearch.quant.rounding import GAMMA, ZETA
from mpsearch.reconstruct import ReconstructionConfig, calibrate, footprint, reconstruct
from mpsearch.reconstruct import phase_walk as ours

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
sys.path.insert(0, str(ROOT / "examples"))
REG, WARMUP, BETA = 0.1, 0.2, (20.0, 2.0)
IMAGES = {"resnet20": 1024, "mobilenet": 128}
MEMBERS = {
    "mobilenet": (2, 4, 6, 8, 12)
}  # blocks that take part, of which the others are repetitions; all where a model is not named


class TextbookLayer(nn.Module):
    """A convolution or linear layer whose weight and input are soft- and fake-quantised by plain tensor
    operations.
    """

    def __init__(self, inner: nn.Module, state: UnitState) -> None:
        super().__init__()
        self.inner, self.state = inner, state
        params = state.weight.params
        self.delta, _ = params.expanded(inner.weight.ndim)
        self.qmin, self.qmax = params.qmin, params.qmax
        self.floor = torch.floor(inner.weight.detach() / self.delta)
        rest = (inner.weight.detach() / self.delta - self.floor).clamp(1e-4, 1 - 1e-4)
        self.alpha = nn.Parameter(-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1))
        self.step = nn.Parameter(state.activation.scale.clone())
        self.zero_point = state.activation.zero_point.float()
        self.levels = state.activation.qmax

    def h(self) -> Tensor:
        return torch.clamp(torch.sigmoid(self.alpha) * (ZETA - GAMMA) + GAMMA, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.clamp(self.floor + self.h(), self.qmin, self.qmax) * self.delta
        damping = 1 / math.sqrt(x.numel() * self.levels)
        step = (self.step - self.step * damping).detach() + self.step * damping
        scaled = x / step
        code = torch.clamp((scaled.round() - scaled).detach() + scaled + self.zero_point, 0, self.levels)
        quantized = (code - self.zero_point) * step
        x = torch.where(torch.rand_like(x) < 0.5, quantized, x)
        if isinstance(self.inner, nn.Linear):
            return F.linear(x, weight, self.inner.bias)
        padding = self.inner.padding
        if type(self.inner) is not nn.Conv2d:  # timm's Conv2dSame pads in its forward
            kept, self.inner.weight.data = self.inner.weight.data, weight.detach()
            x, padding = _same(x, self.inner), 0
            self.inner.weight.data = kept
        return F.conv2d(
            x, weight, self.inner.bias, self.inner.stride, padding, self.inner.dilation, self.inner.groups
        )


def _same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    from timm.layers import pad_same

    return pad_same(x, conv.kernel_size, conv.stride, conv.dilation)


def textbook(
    block: nn.Module, data: object, layers: dict[str, TextbookLayer], iterations: int, seed: int
) -> None:
    """The loop as it is written down; `block` already holds `layers`."""
    torch.manual_seed(seed)
    rows = data.rows(torch.device("cpu"))
    x_float, x_quant = (data.x.read(0, len(data.x))[r].contiguous() for r in rows)
    y_float = data.y.read(0, len(data.y)).contiguous()
    rounding = torch.optim.Adam([layer.alpha for layer in layers.values()], lr=min(0.1, 20 / iterations))
    steps = torch.optim.Adam([layer.step for layer in layers.values()], lr=4e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, iterations)
    for i in range(iterations):
        picked = torch.randperm(len(y_float))[:32]
        x = torch.where(torch.rand_like(x_float[picked]) < 0.5, x_quant[picked], x_float[picked])
        loss = (block(x) - y_float[picked]).pow(2).sum(data.channel_axis).mean()
        done = (i / iterations - WARMUP) / (1 - WARMUP)
        if done >= 0:
            beta = BETA[0] + (BETA[1] - BETA[0]) * done
            for layer in layers.values():
                loss = loss + REG * (1 - (2 * layer.h() - 1).abs().pow(beta)).sum()
        rounding.zero_grad()
        steps.zero_grad()
        loss.backward()
        rounding.step()
        steps.step()
        schedule.step()


def prepared(name: str, images: int) -> tuple[nn.Module, list, dict, Tensor]:
    """Model, blocks, W4A4 states (first and last W8A8) and calibration images."""
    if name == "resnet18":
        torch.manual_seed(0)
        module, inputs = (
            timm.create_model("resnet18", pretrained=False).eval(),
            torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(0)),
        )
    else:
        import assets

        factory, weights, data = {
            "resnet20": ("cifar_resnet20", "cifar10_resnet20", "cifar10_png_subset.npz"),
            "mobilenet": ("mobilenetv1_075", "mobilenetv1_075_in1k", "imagenet_calib_1000.zip"),
        }[name]
        module = getattr(assets, factory)().eval()
        module.load_state_dict(
            {k: v.float() for k, v in load_file(ASSETS / "weights" / f"{weights}.safetensors").items()}
        )
        splits = make_splits(
            str(ASSETS / "images" / data),
            module.pretrained_cfg,
            calibration_images=images,
            search_images=1,
            evaluation_images=1,
            seed=0,
        )
        inputs = splits.calibration.inputs()
    module = fold_batch_norm(module, find_foldable(trace_model(module, inputs[:1]), module))
    graph = analyze(module, inputs[:1])
    units = [layer.name for layer in graph.layers if layer.op != "matmul"]
    blocks = [(b.name, [u for u in b.units if u in units]) for b in graph.blocks]
    choice = {u: Candidate(8, 8) if u in (units[0], units[-1]) else Candidate(4, 4) for u in units}
    calibration = calibrate(module, units, torch.split(inputs[:256], 64))
    return module, [b for b in blocks if b[1]], calibration.states(Assignment(tuple(choice.items()))), inputs


class Race:
    """Stands in for `learn_block`: both loops on every block that takes part, from the same inputs."""

    def __init__(self, name: str, module: nn.Module, blocks: list, iterations: int) -> None:
        self.module, self.blocks, self.iterations, self.learn = module, blocks, iterations, ours.learn_block
        self.taking = MEMBERS.get(name, range(len(blocks)))
        self.index, self.found, self.profile = -1, [], []

    def __call__(self, run, layers, weights, start, data, phase, config, seed):
        self.index += 1
        if self.index not in self.taking:
            return dict(start), 1.0, 1.0, 0
        config = replace(config, iterations=self.iterations)

        def mine():
            return self.learn(run, layers, weights, start, data, phase, config, seed)

        def theirs():
            return self.textbook(run, layers, start, data, seed)

        results, seconds = {}, {}
        order = (("textbook", theirs), ("ours", mine))
        for label, function in order if len(self.found) % 2 else reversed(order):
            ours.install(layers, start)
            began = time.perf_counter()
            results[label] = function()
            seconds[label] = time.perf_counter() - began - (results[label][1] if label == "textbook" else 0)
        if not self.profile or self.index == self.taking[len(self.taking) // 2]:
            ours.install(layers, start)
            self.profile = profiled(
                lambda: self.learn(
                    run, layers, weights, start, data, phase, replace(config, iterations=10), seed
                )
            )
        ours.install(layers, results["ours"][0])
        self.found.append(
            {
                "block": self.blocks[self.index][0],
                "seconds": seconds,
                "loss": {"ours": results["ours"][2], "textbook": results["textbook"][0]},
            }
        )
        return results["ours"]

    def textbook(self, run, layers, start, data, seed) -> tuple[float, float]:
        """The error that the textbook loop ends at, and the seconds that were not spent in it."""
        name, began = self.blocks[self.index][0], time.perf_counter()
        plain = {u: TextbookLayer(copy.deepcopy(self.module.get_submodule(u)), start[u]) for u in layers}
        block = copy.deepcopy(self.module.get_submodule(name))
        for unit, layer in plain.items():
            if unit == name:
                block = layer
            else:
                parent, _, child = unit[len(name) + 1 :].rpartition(".")
                setattr(block.get_submodule(parent), child, layer)
        around = time.perf_counter() - began
        with torch.enable_grad():
            textbook(block, data, plain, self.iterations, seed)
        trial = {}
        for unit, layer in plain.items():
            codes = (layer.floor + (layer.alpha >= 0)).clamp(layer.qmin, layer.qmax).detach().to(torch.int16)
            state, scale = start[unit], layer.step.detach().abs()
            trial[unit] = replace(
                state,
                weight=replace(state.weight, codes=codes),
                activation=replace(state.activation, scale=scale),
            )
        ours.install(layers, trial)
        return data.error(run), around


def profiled(function) -> list[tuple[str, float]]:
    """Operations by their share of the time in a few steps, the greatest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        function()
    rows = sorted(((e.key, e.self_cpu_time_total) for e in found.key_averages()), key=lambda row: -row[1])
    total = sum(t for _, t in rows)
    return [(key, t / total) for key, t in rows[:10]]


def compare(name: str, arguments: argparse.Namespace) -> dict:
    """Both loops on the blocks of a model."""
    module, blocks, states, inputs = prepared(name, IMAGES[name])
    iterations = max(1, arguments.iterations // (5 if name in MEMBERS else 1))
    race = ours.learn_block = Race(name, module, blocks, iterations)
    try:
        reconstruct(module, blocks, states, inputs, config_of(arguments, iterations))
    finally:
        ours.learn_block = race.learn
    peak = subprocess.run(
        [sys.executable, __file__, name, "--peak", *settings(arguments)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {
        "images": len(inputs),
        "iterations": iterations,
        "blocks": race.found,
        "profile": race.profile,
        **json.loads(peak),
    }


def peak_of(name: str, arguments: argparse.Namespace) -> dict:
    """Memory that our loop takes above what the process had before, in a process of its own, and the bound
    that is stated for it.
    """
    module, blocks, states, inputs = prepared(name, IMAGES[name])
    keep_freed_memory()  # as the command line does: what lies in pieces counts
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = memory_bytes("VmRSS")
    reconstruct(module, blocks, states, inputs, config_of(arguments, 2))
    peak = memory_bytes("VmHWM") - before
    return {
        "peak_bytes": peak,
        "bound_bytes": footprint(module, blocks, states, inputs[:8], config_of(arguments, 2)).bytes_with(
            len(inputs)
        ),
    }


def memory_bytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def config_of(arguments: argparse.Namespace, iterations: int) -> ReconstructionConfig:
    bfloat16 = {"auto": None, "float32": False, "bfloat16": True}[arguments.precision]
    return ReconstructionConfig(
        iterations=iterations, tolerance=0, method="qdrop", crops=arguments.crops, bfloat16=bfloat16
    )


def settings(arguments: argparse.Namespace) -> list[str]:
    given = [
        "--iterations",
        str(arguments.iterations),
        "--threads",
        str(arguments.threads),
        "--precision",
        arguments.precision,
    ]
    return given + (["--crops"] if arguments.crops else [])


def row(name: str, result: dict) -> str:
    """Of the table."""
    times = {kind: sum(block["seconds"][kind] for block in result["blocks"]) for kind in ("textbook", "ours")}
    losses = [
        block["loss"]["ours"] / block["loss"]["textbook"]
        for block in result["blocks"]
        if block["loss"]["textbook"] > 0
    ]
    steps = result["iterations"] * len(result["blocks"])
    cells = [
        name,
        result["images"],
        result["iterations"],
        len(result["blocks"]),
        f"{steps / times['textbook']:.1f}",
        f"{steps / times['ours']:.1f}",
    ]
    cells += [
        f"{times['textbook'] / times['ours']:.2f}",
        f"{math.exp(sum(map(math.log, losses)) / len(losses)):.3f}",
        f"{max(losses):.3f}",
    ]
    cells += [f"{result['bound_bytes'] / 2**20:,.0f}", f"{result['peak_bytes'] / 2**20:,.0f}"]
    return f"| {' | '.join(map(str, cells))} |"


def projected(name: str, images: int, steps: int, arguments: argparse.Namespace) -> dict:
    """Seconds for an epoch (images / 32 steps) of all blocks, from a few timed steps of each."""
    module, blocks, states, inputs = prepared(name, 64)
    found: list[float] = []
    began = time.perf_counter()

    def on_block(*_: object) -> None:
        found.append(time.perf_counter())

    reconstruct(module, blocks, states, inputs, config_of(arguments, steps), on_block=on_block)
    learning = found[-1] - began
    epoch = learning / steps * (images / 32)
    said = (
        f"{name}, 224 x 224, random weights: {steps} steps of each of {len(blocks)} blocks took "
        f"{learning:.0f} s, an epoch of {images:,} images {epoch:.0f} s."
    )
    return {"said": said}


def written(results: dict, about: str) -> str:
    columns = [
        "model",
        "images",
        "steps",
        "blocks",
        "textbook steps/s",
        "ours steps/s",
        "ratio",
        "loss ours / textbook (geometric mean)",
        "worst block",
    ]
    columns += ["stated bound on memory, MiB", "peak above the start, MiB"]
    lines = ["# Speed of reconstruction", "", about]
    lines += [
        (
            "W4A4, first and last W8A8, batch 32. Ours includes the errors before and after on all images, "
            "the textbook's one; a loss ratio below 1 means that ours"
        )
    ]
    lines += [
        (
            "ends lower. The peak is the resident memory of our loop alone, in a process of its own; the "
            "bound is foreseen from eight images."
        )
    ]
    lines += [
        "It holds all that the loop takes: what is stored, a chunk's forward pass and a learning step.",
        "",
    ]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [row(name, result) for name, result in results.items() if "blocks" in result] + [""]
    for name, result in results.items():
        if "said" in result:
            lines += [result["said"], ""]
        else:
            block = ", ".join(f"{key} {100 * share:.0f} %" for key, share in result["profile"])
            lines += [
                (
                    f"What is left on {name} (torch's profiler, ten steps of one block with its errors "
                    f"before and after): {block}."
                ),
                "",
            ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["resnet20", "mobilenet", "resnet18"])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--crops", action="store_true")
    parser.add_argument(
        "--peak",
        action="store_true",
        help="print the memory of our loop on one model, as JSON, and nothing else",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "reconstruct.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(json.dumps(peak_of(arguments.models[0], arguments)))
        return
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "timm"))
    about = (
        f"`python benchmarks/reconstruct.py {' '.join([*arguments.models, *settings(arguments)])}`, "
        f"seed 0, {versions}, {identity()}."
    )
    raw = arguments.output.with_suffix(".json")
    held = json.loads(raw.read_text()) if raw.exists() else {}
    results = held["results"] if held.get("about") == about else {}
    for name in arguments.models:
        if name not in results:
            results[name] = (
                projected(name, 1024, 4, arguments) if name == "resnet18" else compare(name, arguments)
            )
        raw.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
        arguments.output.write_text(written(results, about))
        print(results[name].get("said") or row(name, results[name]), flush=True)


if __name__ == "__main__":
    main()
