"""A transformer whose every tensor is quantised, by the preset `mptq-vit` and by what it is compared with.

Run: python benchmarks/vit_full.py [--bits 4,5,6] [--seed 0]. Needs the assets folder (MPSEARCH_ASSETS, else
../shared/assets). Every row is a run of `mpsearch run --quantize full` on the ViT for CIFAR-10, with another way
to find the grids of inputs; the codes of weights come from the same closed form. What is judged is the packed
checkpoint, read anew, on images that the run has not seen. RepQ-like is `smooth` with all of a channel's reach
moved into the weights and its middle to zero, as RepQ-ViT's reparameterisation behind a norm (after Li et al.,
ICCV 2023), with percentile ranges and logarithmic probabilities; ours are powers of two, theirs of its square
root. Its channel ranges are of 256 training images. Mixed rows keep the bytes and the bit operations of uniform
W5A5; each that the run finished is judged. Rows are added to benchmarks/results/vit_full.jsonl, and those that
are there are not made again; --table prints them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from few_bits import ASSETS, ROOT, machine, settings, standard_error, top1
from torch import Tensor, nn

import mpsearch
from mpsearch.data import load_images
from mpsearch.evaluate import predict
from mpsearch.evaluate.metrics import kl_by_image
from mpsearch.models import load_model
from mpsearch.pipeline import RunConfig, Silent, run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.presets import preset_of
from mpsearch.problem import Assignment, Problem
from mpsearch.quant import install
from mpsearch.reconstruct.smooth import smooth

RESULTS = ROOT / "benchmarks" / "results" / "vit_full.jsonl"
MODEL = f"{ROOT / 'examples' / 'assets.py'}:vit_cifar"
WEIGHTS = ASSETS / "weights" / "cifar10_vit_d128x6.safetensors"
GRIDS: dict[str, dict[str, Any]] = {
    "min-max": {"input_observer": "minmax"},
    "mse": {},
    "SmoothQuant, min-max": {"smooth": "smoothquant", "input_observer": "minmax"},
    "SmoothQuant, mse": {"smooth": "smoothquant"},
    "RepQ-like": {"input_observer": "percentile:99.99", "softmax": "log2"},
    "OPT-m": {"input_observer": "opt_m", "softmax": "log2"},
    "SQ-b + OPT-m": {"smooth": "sqb", "input_observer": "opt_m", "softmax": "log2"},
    "SQ-b + auto": {"smooth": "sqb", "input_observer": "auto", "softmax": "auto"},
}
REPQ, OURS, MIXED = "RepQ-like", "SQ-b + OPT-m", "mixed 5 bits"


def repq() -> nn.Module:
    """The ViT as RepQ-ViT leaves it before it rounds."""
    loaded = load_model(MODEL, weights=WEIGHTS)
    path = ASSETS / "images" / "cifar10_jpeg_train_1000.zip"
    images = load_images(str(path), loaded.data_config, limit=256, seed=0)
    smoothed = smooth(loaded.module, [inputs for inputs, _ in images.batches(64)], alpha=1.0, bias=True)
    smoothed.pretrained_cfg = loaded.module.pretrained_cfg
    return smoothed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", default="4,5,6")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the table of all rows that there are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    held = Path(tempfile.mkdtemp())
    for bits in [int(b) for b in arguments.bits.split(",")] if not arguments.table else []:
        losses: dict[str, Tensor] = {}
        for name in GRIDS:
            losses[name] = made(bits, name, arguments.seed, held)
        if bits == 5:
            mixed(arguments.seed, held, losses[OURS])
    print(table())


def configured(
    bits: tuple[int, ...], budgets: tuple[str, ...], seed: int, grids: dict[str, Any]
) -> RunConfig:
    """Settings of a row."""
    plain = settings("vit", seed, "4x8")
    sizes = {"calibration_images": 256, "search_images": 256}
    return replace(plain, budgets=budgets, bits=bits, a_bits=bits, quantize="full", **{**sizes, **grids})


def uniform(bits: int, name: str, seed: int) -> RunConfig:
    """Every tensor at `bits`: nothing is searched."""
    config = configured((bits,), (f"{bits}bits",), seed, {"effort": "quick", **GRIDS[name]})
    return config if name != REPQ else replace(config, model=f"{Path(__file__)}:repq", weights=None)


@cache
def judges(seed: int) -> tuple[Any, Tensor]:
    """The judged images, and the float model's outputs."""
    images = load_subject(configured((8,), ("8bits",), seed, {}), Silent()).splits.evaluation
    return images, predict(load_model(MODEL, weights=WEIGHTS).module, images)


def made(bits: int, name: str, seed: int, held: Path) -> Tensor:
    """KL of each judged image of a uniform row, which is appended to the rows."""
    config, study = uniform(bits, name, seed), Study(held / f"{bits}-{len(name)}-{name[0]}")
    kept = ROOT / "studies" / f"vit-full-{bits}-{name.replace(' ', '')}-{seed}.pt"
    if kept.is_file() and any(
        row["label"] == f"W{bits}A{bits}" and row["grids"] == name for row in rows(seed)
    ):
        found: Tensor = torch.load(kept, weights_only=True)
        return found
    start = time.process_time()
    run(config, study, Silent())
    took = time.process_time() - start
    images, floats = judges(seed)
    factory = repq if name == REPQ else load_model(MODEL, weights=None).module
    module = factory() if name == REPQ else factory
    outputs = predict(mpsearch.load(study.path / "artifact" / "model.safetensors", module), images)
    losses = kl_by_image(outputs, floats)
    kept.parent.mkdir(exist_ok=True)
    torch.save(losses, kept)
    add({"seed": seed, "label": f"W{bits}A{bits}", "grids": name}, losses, outputs, seed, took)
    return losses


def mixed(seed: int, held: Path, uniform5: Tensor) -> None:
    """The preset's own run under the bytes and bit operations of W5A5, and all that it finished."""
    if any(row["grids"] == MIXED for row in rows(seed)):
        return
    config = uniform(5, OURS, seed)
    study = Study(held / "prices")
    run(config, study, Silent())
    problem = Problem.from_json(json.loads((study.path / "problem.json").read_text()))
    bops = problem.cost([0] * len(problem.layers)).bops
    options = preset_of("mptq-vit").options
    config = configured(tuple(range(3, 9)), ("5bits", f"{bops / 1e9:.6f}GBOPs"), seed, GRIDS[OURS])
    config = replace(config, sampler=str(options["sampler"]))
    study, start = Study(held / "mixed"), time.process_time()
    result = run(config, study, Silent())
    took = time.process_time() - start
    subject = load_subject(config, Silent())
    workshop = Workshop(subject, calibrate_subject(subject, config, Silent()), config, study, Silent())
    images, _ = judges(seed)
    for row in result["rows"]:
        if "reconstructed" not in row:
            continue
        states = workshop.reconstructed(Assignment.from_json(row["assignment"]), row["label"])
        outputs = predict(install(subject.module, states), images)
        losses = kl_by_image(outputs, judges(seed)[1])
        chosen = row["label"] == result["best"]["label"]
        less = losses - uniform5
        key = {"seed": seed, "label": f"{row['label']}{' (chosen)' if chosen else ''}", "grids": MIXED}
        extra = {
            "bits": round(row["mean_bits"], 3),
            "bops": row["cost"]["bops"] if "cost" in row else None,
            "less_w5a5": [float(less.mean()), standard_error(less)],
        }
        add({**key, **extra}, losses, outputs, seed, took)


def add(key: dict[str, Any], losses: Tensor, outputs: Tensor, seed: int, took: float) -> None:
    """Append a row."""
    images, floats = judges(seed)
    found = {
        "kl": float(losses.mean()),
        "kl_error": standard_error(losses),
        "top1": top1(outputs, images.labels),
        "float_top1": top1(floats, images.labels),
        "images": len(images),
        "cpu_seconds": round(took, 1),
    }
    print(key, found, file=sys.stderr, flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps({**key, **found, **machine()}) + "\n")


def rows(seed: int | None = None) -> list[dict[str, Any]]:
    """What there is."""
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    return [row for line in lines if (row := json.loads(line))["seed"] == seed or seed is None]


def table() -> str:
    """Markdown of all rows."""
    lines = ["| tensors | grids | KL | top-1 | CPU s |", "|---|---|---|---|---|"]
    for row in rows():
        kl = f"{row['kl']:.4f} ± {row['kl_error']:.4f}"
        if "less_w5a5" in row:
            kl += " ({:+.4f} ± {:.4f} to W5A5)".format(*row["less_w5a5"])
        lines.append(
            f"| {row['label']} | {row['grids']} | {kl} | {row['top1']:.1%} | {row['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
