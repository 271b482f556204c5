"""The default run at few bits: searched and uniform assignments with the same finish, beside each other on
images that nobody searched on.

Run: python benchmarks/few_bits.py resnet20 resnet56 vit resmlp mobilenet [--seeds 0,1,2] [--cases
4x8,3x8,2.5x8,4x4,3x4] Needs the assets folder (MPSEARCH_ASSETS, else ../shared/assets). A case is bits of a
weight x bits of an input. Each network and seed has a study below studies/, so the script resumes; rows are
added to benchmarks/results/few_bits.jsonl and printed as a table with --table. Calibration, search and judged
images are disjoint, and none was a training image (CIFAR: parts of the JPEG test set; ImageNet: calibration
on imagenet_calib_1000, search and judgement on imagenet_val_1000).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpsearch.evaluate import predict
from mpsearch.evaluate.metrics import kl_by_image
from mpsearch.hardware import identity
from mpsearch.pipeline import RunConfig, Silent, run
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Assignment
from mpsearch.quant import install

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
RESULTS = ROOT / "benchmarks" / "results" / "few_bits.jsonl"
CIFAR = {
    "data": "images/cifar10_jpeg_test_5000.zip",
    "calibration_images": 512,
    "search_images": 512,
    "evaluation_images": 2000,
}
MODELS: dict[str, dict[str, Any]] = {
    "resnet20": {"model": "cifar_resnet20", "weights": "cifar10_resnet20", **CIFAR},
    "resnet56": {"model": "cifar_resnet56", "weights": "cifar10_resnet56", **CIFAR},
    "vit": {"model": "vit_cifar", "weights": "cifar10_vit_d128x6", **CIFAR},
    "resmlp": {"model": "resmlp_cifar", "weights": "cifar10_resmlp_d160x6", **CIFAR},
    "mobilenet": {
        "model": "mobilenetv1_075",
        "weights": "mobilenetv1_075_in1k",
        "data": "images/imagenet_val_1000.zip",
        "calibration_data": "images/imagenet_calib_1000.zip",
        "calibration_images": 256,
        "search_images": 256,
        "evaluation_images": 500,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", choices=[*MODELS, []])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cases", default="4x8,3x8,2.5x8,4x4,3x4")
    parser.add_argument("--table", action="store_true", help="print the table of all rows that there are")
    arguments = parser.parse_args()
    for name in arguments.models:
        for seed in map(int, arguments.seeds.split(",")):
            for case in arguments.cases.split(","):
                row = measured(name, seed, case)
                print(json.dumps(row), flush=True)
    if arguments.table or not arguments.models:
        print(table())


def settings(name: str, seed: int, case: str) -> RunConfig:
    """Of the default run, but for the target and the images."""
    given = dict(MODELS[name])
    paths = {key: str(ASSETS / given.pop(key)) for key in ("data", "calibration_data") if key in given}
    model = f"{ROOT / 'examples' / 'assets.py'}:{given.pop('model')}"
    weights = str(ASSETS / "weights" / f"{given.pop('weights')}.safetensors")
    bits, _, a_bits = case.partition("x")
    return RunConfig(
        budgets=(f"{bits}bits",),
        model=model,
        weights=weights,
        target="packed",
        a_bits=int(a_bits),
        seed=seed,
        **paths,
        **given,
    )


def measured(name: str, seed: int, case: str) -> dict[str, Any]:
    """A row, or the one that is there already."""
    key = {"model": name, "seed": seed, "case": case}
    for line in RESULTS.read_text().splitlines() if RESULTS.is_file() else []:
        row: dict[str, Any] = json.loads(line)
        if {k: row[k] for k in key} == key:
            return row
    config = settings(name, seed, case)
    study = Study(ROOT / "studies" / f"few-bits-{name}-a{config.a_bits}-seed{seed}")
    start = time.process_time()
    result = run(config, study)
    seconds = time.process_time() - start
    row = {**key, "cpu_seconds": round(seconds, 1), **judged(config, study, result), **machine()}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def judged(config: RunConfig, study: Study, result: dict[str, Any]) -> dict[str, Any]:
    """KL and top-1 on the judged images of the choice and of the uniform assignment that fits, finished
    alike, and their paired difference.
    """
    subject = load_subject(config, Silent())
    workshop = Workshop(subject, calibrate_subject(subject, config, Silent()), config, study, Silent())
    images, floats = subject.splits.evaluation, predict(subject.module, subject.splits.evaluation)
    found: dict[str, Any] = {"images": len(images), "float_top1": top1(floats, images.labels)}
    losses: dict[str, Tensor] = {}
    rows = {row["label"]: row for row in result["rows"] if "reconstructed" in row}
    plain = next((label for label in rows if label.startswith("uniform")), None)
    optimum = next(label for label in rows if label.startswith("exact optimum"))
    for role, label in (("chosen", result["best"]["label"]), ("optimum", optimum), ("uniform", plain)):
        if label is None:
            continue
        states = workshop.reconstructed(
            Assignment.from_json(rows[label]["assignment"]), label
        )  # kept block by block: it is read
        outputs = predict(install(subject.module, states), images)
        losses[role] = kl_by_image(outputs, floats)
        found[role] = {
            "label": label,
            "bits": round(rows[label]["mean_bits"], 3),
            "size_bytes": rows[label]["reconstructed"]["size_bytes"],
            "kl": round(float(losses[role].mean()), 5),
            "kl_error": round(standard_error(losses[role]), 5),
            "top1": top1(outputs, images.labels),
            "search_kl": rows[label]["reconstructed"]["search_kl"],
            "kl_before_finish": rows[label]["searched"]["metrics"]["kl"],
        }
    if "uniform" in losses:
        for role in ("chosen", "optimum"):
            difference = losses[role] - losses["uniform"]
            found[f"{role}_less_uniform"] = [
                round(float(difference.mean()), 5),
                round(standard_error(difference), 5),
            ]
    return found


def standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


def top1(outputs: Tensor, labels: Tensor | None) -> float | None:
    return None if labels is None else round(float((outputs.argmax(1) == labels).double().mean()), 4)


def machine() -> dict[str, Any]:
    versions = {package: importlib.metadata.version(package) for package in ("mpsearch", "torch", "timm")}
    return {"threads": torch.get_num_threads(), "versions": versions, "device": str(identity())}


def table() -> str:
    """Markdown of all rows."""
    lines = [
        (
            "| model | bits x inputs | seed | uniform: KL, top-1 | chosen: KL, top-1 | paired difference | "
            "chosen | CPU s |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in RESULTS.read_text().splitlines():
        row = json.loads(line)
        uniform, chosen = row.get("uniform"), row["chosen"]
        plain = f"{uniform['kl']:.4f}, {uniform['top1']:.1%} ({uniform['bits']:g} bits)" if uniform else ""
        mean, error = row.get("chosen_less_uniform", (0.0, 0.0))
        lines.append(
            f"| {row['model']} ({row['float_top1']:.1%}) | {row['case']} | {row['seed']} | {plain} | "
            f"{chosen['kl']:.4f}, {chosen['top1']:.1%} "
            f"| {mean:+.4f} +- {error:.4f} | {chosen['label']} | {row['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
