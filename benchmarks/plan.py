"""The plan of a run beside what its steps took, and time limits beside when the runs ended.

Run: python benchmarks/plan.py resnet20 vit resmlp mobilenet resnet18 [--limits 2min,5min] [--target packed]
Needs the assets folder (MPSEARCH_ASSETS, else ../shared/assets) but for resnet18, which has random weights and
reads the ImageNet images of the same folder. Without --limits one run of each network with the usual effort.
Each run has a folder of its own, which is thrown away. Wall time: say what else the machine did. Rows are
added to benchmarks/results/plan.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mpsearch.allocator import keep_freed_memory
from mpsearch.hardware import identity
from mpsearch.pipeline import RunConfig, Silent, run
from mpsearch.pipeline.folder import Study

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
CIFAR = {"data": "images/cifar10_jpeg_test_5000.zip", "evaluation_images": 2000}
MODELS: dict[str, dict[str, Any]] = {
    "resnet20": {"model": "cifar_resnet20", "weights": "cifar10_resnet20", **CIFAR},
    "vit": {"model": "vit_cifar", "weights": "cifar10_vit_d128x6", **CIFAR},
    "resmlp": {"model": "resmlp_cifar", "weights": "cifar10_resmlp_d160x6", **CIFAR},
    "mobilenet": {
        "model": "mobilenetv1_075",
        "weights": "mobilenetv1_075_in1k",
        "data": "images/imagenet_val_1000.zip",
        "calibration_data": "images/imagenet_calib_1000.zip",
        "calibration_images": 256,
        "evaluation_images": 500,
    },
    "resnet18": {"data": "images/imagenet_val_1000.zip", "calibration_images": 256},
    "resnet50": {"data": "images/imagenet_val_1000.zip", "calibration_images": 256},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", choices=list(MODELS))
    parser.add_argument("--limits", default="", help="time limits, such as 2min,5min; none without it")
    parser.add_argument("--target", default="packed")
    arguments = parser.parse_args()
    keep_freed_memory()
    for name in arguments.models:
        for limit in arguments.limits.split(",") if arguments.limits else [None]:
            row = measured(name, limit, arguments.target)
            print(json.dumps(row), flush=True)
            with (ROOT / "benchmarks" / "results" / "plan.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")


def settings(name: str, limit: str | None, target: str) -> RunConfig:
    """4 bits a weight, all else as usual."""
    given = dict(MODELS[name])
    paths = {key: str(ASSETS / given.pop(key)) for key in ("data", "calibration_data") if key in given}
    if "model" in given:
        given["model"] = f"{ROOT / 'examples' / 'assets.py'}:{given['model']}"
        given["weights"] = str(ASSETS / "weights" / f"{given['weights']}.safetensors")
    else:
        given |= {"model": name, "pretrained": False}
    return RunConfig(budgets=("4bits",), target=target, time_limit=limit, **paths, **given)


def measured(name: str, limit: str | None, target: str) -> dict[str, Any]:
    """Seconds planned and taken, whole and step by step."""
    with tempfile.TemporaryDirectory() as folder:
        before, cpu = time.monotonic(), time.process_time()
        result = run(settings(name, limit, target), Study(Path(folder) / "study"), Silent())
        took, cpu = time.monotonic() - before, time.process_time() - cpu
    plan = result["plan"]
    return {
        "model": name,
        "limit": limit,
        "target": target,
        "planned_s": plan["seconds"],
        "took_s": round(took, 1),
        "cpu_s": round(cpu, 1),
        "steps": plan["steps"],
        "took": plan["took"],
        "chosen": result["best"]["label"],
        "images": result["best"]["metrics"]["images"],
        "threads": torch.get_num_threads(),
        "device": str(identity()),
    }


if __name__ == "__main__":
    main()
