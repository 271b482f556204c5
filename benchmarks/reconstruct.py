"""Speed of the reconstruction loop against a plain textbook version of it, at equal final loss, on the same blocks of the same models.

Run: python benchmarks/reconstruct.py [resnet20 mobilenet resnet18] [--iterations 200] [--threads 2]. The first two need the assets folder (MPSEARCH_ASSETS,
else ../shared/assets). ResNet18 has random weights: its time for an epoch of 1,024 images is projected from a few steps of each block.

The textbook version does the same mathematics (QDrop: soft rounding, dropping, learned steps, input mixing, two Adams, W4A4, batch 32) as one writes
it down from the papers: caches in N x C x H x W, `torch.rand_like(x) < p` and `torch.where`, straight-through rounding by `(round(x) - x).detach() + x`, the
regulariser as a term of the loss, all gradients by autograd.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import math
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mpsearch.data import make_splits
from mpsearch.hardware import identity
from mpsearch.models import analyze, find_foldable, fold_batch_norm, trace_model
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import UnitState
from mpsearch.quant.rounding import GAMMA, ZETA
from mpsearch.reconstruct import ReconstructionConfig, calibrate, images_within, reconstruct
from mpsearch.reconstruct import loop as ours

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
sys.path.insert(0, str(ROOT / "examples"))
REG, WARMUP, BETA = 0.1, 0.2, (20.0, 2.0)


class TextbookLayer(nn.Module):
    """A convolution or linear layer whose weight and input are soft- and fake-quantised by plain tensor operations."""

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
        return F.conv2d(x, weight, self.inner.bias, self.inner.stride, padding, self.inner.dilation, self.inner.groups)


def _same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    from timm.layers import pad_same

    return pad_same(x, conv.kernel_size, conv.stride, conv.dilation)


def textbook(block: nn.Module, data: object, layers: dict[str, TextbookLayer], iterations: int, seed: int) -> None:
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
        module, inputs = timm.create_model("resnet18", pretrained=False).eval(), torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    else:
        import assets

        factory, weights, data = {
            "resnet20": ("cifar_resnet20", "cifar10_resnet20", "cifar10_png_subset.npz"),
            "mobilenet": ("mobilenetv1_075", "mobilenetv1_075_in1k", "imagenet_calib_1000.zip"),
        }[name]
        module = getattr(assets, factory)().eval()
        module.load_state_dict({k: v.float() for k, v in load_file(ASSETS / "weights" / f"{weights}.safetensors").items()})
        splits = make_splits(str(ASSETS / "images" / data), module.pretrained_cfg, calibration_images=images, search_images=1, evaluation_images=1, seed=0)
        inputs = splits.calibration.inputs()
    module = fold_batch_norm(module, find_foldable(trace_model(module, inputs[:1]), module))
    graph = analyze(module, inputs[:1])
    units = [layer.name for layer in graph.layers if layer.op != "matmul"]
    blocks = [(b.name, [u for u in b.units if u in units]) for b in graph.blocks]
    choice = {u: Candidate(8, 8) if u in (units[0], units[-1]) else Candidate(4, 4) for u in units}
    calibration = calibrate(module, units, torch.split(inputs[:256], 64))
    return module, [b for b in blocks if b[1]], calibration.states(Assignment(tuple(choice.items()))), inputs


def compare(name: str, images: int, iterations: int) -> str:
    """One row for each model: both loops on every block, from the same inputs."""
    module, blocks, states, inputs = prepared(name, images)
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "textbook": []}
    learn = ours.learn_block

    def both(run, layers, weights, start, data, phase, config, seed):
        index = len(times["ours"])
        plain = {u: TextbookLayer(copy.deepcopy(module.get_submodule(u)), start[u]) for u in layers}
        block = copy.deepcopy(module.get_submodule(blocks[index][0]))
        for unit, layer in plain.items():
            inside = unit[len(blocks[index][0]) + 1 :] if unit != blocks[index][0] else ""
            if inside:
                parent, _, child = inside.rpartition(".")
                setattr(block.get_submodule(parent), child, layer)
            else:
                block = layer
        began = time.perf_counter()
        with torch.enable_grad():
            textbook(block, data, plain, iterations, seed)
        spent = time.perf_counter() - began
        trial = {}
        for unit, layer in plain.items():
            codes = (layer.floor + (layer.alpha >= 0)).clamp(layer.qmin, layer.qmax).detach().to(torch.int16)
            state, weight = start[unit], start[unit].weight
            scale = layer.step.detach().abs()
            trial[unit] = replace(state, weight=replace(weight, codes=codes), activation=replace(state.activation, scale=scale))
        ours.install(layers, trial)
        times["textbook"].append((spent, data.error(run)))
        ours.install(layers, start)
        began = time.perf_counter()
        found = learn(run, layers, weights, start, data, phase, config, seed)
        times["ours"].append((time.perf_counter() - began, found[2]))
        return found

    ours.learn_block = both
    try:
        config = ReconstructionConfig(iterations=iterations, tolerance=0, method="qdrop")
        reconstruct(module, blocks, states, inputs, config)
    finally:
        ours.learn_block = learn
    ratio = sum(t for t, _ in times["textbook"]) / sum(t for t, _ in times["ours"])
    losses = [a / b for (_, a), (_, b) in zip(times["ours"], times["textbook"], strict=True) if b > 0]
    geometric = math.exp(sum(map(math.log, losses)) / len(losses))
    speeds = {k: iterations * len(v) / sum(t for t, _ in v) for k, v in times.items()}
    room = images_within(module, blocks, inputs[:1], 8 * 2**30)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"| {name} | {len(inputs)} | {iterations} | {len(blocks)} | {speeds['textbook']:.1f} | {speeds['ours']:.1f} | {ratio:.2f} | {geometric:.3f} "
        f"| {max(losses):.3f} | {room:,} | {peak:.2f} |\n"
    )


def projected(name: str, images: int, steps: int) -> str:
    """Seconds for an epoch (images / 32 steps) of all blocks, from a few timed steps of each."""
    module, blocks, states, inputs = prepared(name, 64)
    found: list[float] = []
    began = time.perf_counter()

    def on_block(*_: object) -> None:
        found.append(time.perf_counter())

    reconstruct(module, blocks, states, inputs, ReconstructionConfig(iterations=steps, tolerance=0), on_block=on_block)
    learning = found[-1] - began
    epoch = learning / steps * (images / 32)
    return f"{name}, 224 x 224, random weights: {steps} steps of each of {len(blocks)} blocks took {learning:.0f} s, an epoch of {images:,} images {epoch:.0f} s.\n"  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["resnet20", "mobilenet", "resnet18"])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "reconstruct.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "timm"))
    command = f"python benchmarks/reconstruct.py {' '.join(arguments.models)} --iterations {arguments.iterations} --threads {arguments.threads}"
    columns = ["model", "images", "steps", "blocks", "textbook steps/s", "ours steps/s", "ratio", "loss ours / textbook (geometric mean)", "worst block"]
    columns += ["images within 8 GiB", "peak GiB of the process"]
    text = (
        f"# Speed of reconstruction\n\n`{command}`, seed 0, {versions}, {identity()}.\n"
        "W4A4, first and last W8A8, batch 32. Ours includes the errors before and after on all images; a loss ratio below 1 means that ours ends lower.\n\n"
        f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    )
    for name in arguments.models:
        if name == "resnet18":
            text += "\n" + projected(name, 1024, 4)
        else:
            text += compare(name, {"resnet20": 1024, "mobilenet": 128}[name], arguments.iterations)
        arguments.output.write_text(text)
        print(text.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
