"""Every reconstruction method on real weights and images: model x bits x method, in top-1 and KL to the float
model.

Run: python benchmarks/ptq_table.py [--models resnet20 ...] [--iterations 200] [--threads 2] [--hours 6].
Needs the assets folder (MPSEARCH_ASSETS, else ../shared/assets). Each cell is a line of
benchmarks/results/ptq_table.jsonl, so the script resumes; it takes the cells that say most first (seed 0,
W4A4) and ends after --hours. First and last layer at 8 bits, as in the papers; activations asymmetric per
tensor, weights symmetric per channel, ranges by MSE.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mpsearch.allocator import keep_freed_memory
from mpsearch.data import make_splits
from mpsearch.evaluate import compare, predict
from mpsearch.hardware import identity
from mpsearch.models import analyze, find_foldable, fold_batch_norm, trace_model
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import install
from mpsearch.reconstruct import ReconstructionConfig, calibrate, reconstruct

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
sys.path.insert(0, str(ROOT / "examples"))
CIFAR = {"data": "cifar10_png_subset.npz", "calibration_images": 1024}
JPEG = {
    "data": "cifar10_jpeg_test_5000.zip",
    "calibration": "cifar10_jpeg_train_1000.zip",
    "calibration_images": 992,
    "evaluation_images": 2000,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet20": ("cifar_resnet20", "cifar10_resnet20", CIFAR),
    "vit": ("vit_cifar", "cifar10_vit_d128x6", JPEG),
    "resmlp": ("resmlp_cifar", "cifar10_resmlp_d160x6", JPEG),
    "resnet56": ("cifar_resnet56", "cifar10_resnet56", CIFAR),
    "mobilenet": (
        "mobilenetv1_075",
        "mobilenetv1_075_in1k",
        {
            "data": "imagenet_val_1000.zip",
            "calibration": "imagenet_calib_1000.zip",
            "calibration_images": 992,
        },
    ),
}
SEEDS = {"resnet20": 3, "vit": 3}
BITS = ["W4A4", "W2A2", "W2A4", "W3A3", "W8A8"]
MOBILENET_BITS = ["W4A4", "W6A6", "W8A8"]
METHODS = ["nearest", "qdrop", "brecq", "adaround", "attention_round"]


class Subject:
    """A model with its images, calibrated once for each seed."""

    def __init__(self, name: str, seed: int) -> None:
        import assets

        factory, weights, sources = MODELS[name]
        module = getattr(assets, factory)().eval()
        module.load_state_dict(
            {k: v.float() for k, v in load_file(ASSETS / "weights" / f"{weights}.safetensors").items()}
        )
        options = {k: str(ASSETS / "images" / v) if isinstance(v, str) else v for k, v in sources.items()}
        self.splits = make_splits(
            options.pop("data"), module.pretrained_cfg, search_images=8, seed=seed, **options
        )
        example = self.splits.calibration.inputs([0])
        self.module = fold_batch_norm(module, find_foldable(trace_model(module, example), module))
        graph = analyze(self.module, example)
        self.units = [layer.name for layer in graph.layers if layer.weight_shape]
        self.products = [layer.name for layer in graph.layers if not layer.weight_shape]
        self.blocks = [
            (block.name, list(block.units))
            for block in graph.blocks
            if not set(block.units) <= set(self.products)
        ]
        self.calibration = calibrate(
            self.module,
            [*self.units, *self.products],
            (x for x, _ in self.splits.calibration.batches(64)),
            seed=seed,
        )
        self.float_logits = predict(self.module, self.splits.evaluation)

    def measure(self, bits: str, method: str, iterations: int, seed: int) -> dict[str, Any]:
        """One cell."""
        ends = {self.units[0], self.units[-1]}
        assignment = Assignment(
            tuple(
                (u, Candidate(8, 8) if u in ends else Candidate.parse(bits))
                for u in (*self.units, *self.products)
            )
        )
        start, began = self.calibration.states(assignment), time.monotonic()
        config = ReconstructionConfig(iterations=iterations, method=method, seed=seed)
        states = reconstruct(self.module, self.blocks, start, self.splits.calibration.inputs(), config)
        seconds = time.monotonic() - began
        metrics = compare(
            predict(install(self.module, states), self.splits.evaluation),
            self.float_logits,
            self.splits.evaluation.labels,
        )
        floats = compare(self.float_logits, self.float_logits, self.splits.evaluation.labels)
        return {
            "top1": metrics.top1,
            "kl": metrics.kl,
            "float_top1": floats.top1,
            "images": metrics.images,
            "calibration_images": len(self.splits.calibration),
            "seconds": seconds,
        }


def cells(models: list[str]) -> list[tuple[int, str, str, str]]:
    """(seed, bits, model, method), those that say most first."""
    found = []
    for seed in range(3):
        for rank, bits in enumerate([*BITS, "W6A6"]):
            for model in models:
                allowed = MOBILENET_BITS if model == "mobilenet" else BITS
                if bits in allowed and seed < SEEDS.get(model, 1):
                    found += [(seed, rank, bits, model, method) for method in METHODS]
    found.sort(key=lambda c: (c[0], c[1], models.index(c[3])))
    return [(seed, bits, model, method) for seed, _, bits, model, method in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "ptq_table.md")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    log = arguments.output.with_suffix(".jsonl")
    done = (
        {tuple(row["cell"]): row for row in map(json.loads, log.read_text().splitlines())}
        if log.exists()
        else {}
    )
    subjects: dict[tuple[str, int], Subject] = {}
    end = time.monotonic() + 3600 * arguments.hours
    wanted = cells(arguments.models)
    for seed, bits, model, method in wanted:
        cell = (seed, bits, model, method, arguments.iterations)
        if cell in done or time.monotonic() > end:
            continue
        if (model, seed) not in subjects:
            subjects[model, seed] = Subject(model, seed)
        row = {
            "cell": cell,
            "device": str(identity()),
            **subjects[model, seed].measure(bits, method, arguments.iterations, seed),
        }
        done[cell] = row
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            (
                f"{model} {bits} {method} seed {seed}: top-1 {row['top1']:.2%}, KL {row['kl']:.4f}, "
                f"{row['seconds']:.0f} s"
            ),
            flush=True,
        )
        write(arguments, done, wanted)
    write(arguments, done, wanted)


def write(
    arguments: argparse.Namespace,
    done: dict[tuple[Any, ...], dict[str, Any]],
    wanted: list[tuple[int, str, str, str]],
) -> None:
    """The table of what is there."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "timm"))
    rows = [
        (cell, done[(*cell, arguments.iterations)])
        for cell in wanted
        if (*cell, arguments.iterations) in done
    ]
    lines = [
        "# Reconstruction methods on real weights\n",
        (
            f"`python benchmarks/ptq_table.py --models {' '.join(arguments.models)} --iterations "
            f"{arguments.iterations}`, {versions}."
        ),
        f"Machines: {'; '.join(dict.fromkeys(row['device'] for _, row in rows))}.",
        (
            f"{len(rows)} of {len(wanted)} runs are done. Top-1 (KL to the float model); mean +- standard "
            "deviation (number of seeds)."
        ),
        (
            "First and last layer W8A8; both products of attention at the bits of activations. Seeds decide "
            "calibration images, batches, dropping.\n"
        ),
        "| model | float | images: calibration, evaluation | bits | " + " | ".join(METHODS) + " |",
        "|---" * (4 + len(METHODS)) + "|",
    ]
    for model in arguments.models:
        for bits in ("W8A8", "W6A6", "W4A4", "W3A3", "W2A4", "W2A2"):
            here = {m: [r for (s, b, n, k), r in rows if (b, n, k) == (bits, model, m)] for m in METHODS}
            first = next((r for found in here.values() for r in found), None)
            if first is not None:
                cells_text = " | ".join(_cell(here[m]) for m in METHODS)
                lines.append(
                    f"| {model} | {first['float_top1']:.2%} | {first['calibration_images']}, "
                    f"{first['images']} | {bits} | {cells_text} |"
                )
    seconds = sum(r["seconds"] for _, r in rows)
    lines.append(f"\nReconstruction took {seconds / 3600:.2f} hours in all.")
    arguments.output.write_text("\n".join(lines) + "\n")


def _cell(found: list[dict[str, Any]]) -> str:
    if not found:
        return "-"
    top1, kl = [r["top1"] for r in found], statistics.mean(r["kl"] for r in found)
    spread = f" +- {100 * statistics.stdev(top1):.2f} ({len(top1)})" if len(top1) > 1 else ""
    return f"{100 * statistics.mean(top1):.2f}{spread} ({kl:.3f})"


if __name__ == "__main__":
    main()
