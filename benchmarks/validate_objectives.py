"""Every objective against the true loss on real weights and images: `mpsearch score --validate`, one file of
results for each model.

Run: python benchmarks/validate_objectives.py resnet20 mobilenet vit resmlp [--objective NAME ...] [--seed N]
[--budgets 6.62,4.62]. Needs the assets folder (MPSEARCH_ASSETS, else ../shared/assets). Another seed divides
the images otherwise; it has files of its own, and so have budgets that are listed. Each model has a study
below studies/, in which every table and every measured loss is kept, so the script resumes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import time
from pathlib import Path
from typing import Any

from mpsearch.hardware import identity
from mpsearch.objectives import OBJECTIVES
from mpsearch.pipeline import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.validation.scorecard import markdown
from mpsearch.pipeline.validation.validate import Effort, validate_objectives

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
RESULTS = ROOT / "benchmarks" / "results"
CIFAR = {
    "data": "images/cifar10_jpeg_test_5000.zip",
    "calibration_images": 2048,
    "search_images": 1024,
}  # the networks have seen the training images
MODELS = {
    "resnet20": {"model": "cifar_resnet20", "weights": "cifar10_resnet20", **CIFAR},
    "resnet56": {"model": "cifar_resnet56", "weights": "cifar10_resnet56", **CIFAR},
    "mobilenet": {
        "model": "mobilenetv1_075",
        "weights": "mobilenetv1_075_in1k",
        "data": "images/imagenet_val_1000.zip",
        "calibration_data": "images/imagenet_calib_1000.zip",
        "calibration_images": 864,
        "search_images": 128,
    },
    "vit": {"model": "vit_cifar", "weights": "cifar10_vit_d128x6", **CIFAR},
    "resmlp": {"model": "resmlp_cifar", "weights": "cifar10_resmlp_d160x6", **CIFAR},
}
PACKAGES = ("torch", "timm", "scipy", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument(
        "--objective",
        action="append",
        help="NAME[:option=value,...]; every registered additive one without it. May be repeated.",
    )
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--budgets", default="5")
    parser.add_argument("--local-steps", type=int, default=24)
    parser.add_argument("--unseen-images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    objectives = tuple(arguments.objective or OBJECTIVES.names())
    for name in arguments.models:
        start, label = time.monotonic(), f"{name}_seed{arguments.seed}" if arguments.seed else name
        config, study = (
            settings(name, objectives, arguments.seed),
            Study(ROOT / "studies" / f"objectives-{label}"),
        )
        at = f"_at_{arguments.budgets.replace(',', '_')}" if "," in arguments.budgets else ""
        result = validate_objectives(
            config,
            study,
            Effort(arguments.samples, arguments.budgets, arguments.local_steps, arguments.unseen_images),
        )
        print(
            write(RESULTS / f"objectives_{label}{at}.md", name, result, time.monotonic() - start), flush=True
        )


def settings(name: str, objectives: tuple[str, ...], seed: int = 0) -> RunConfig:
    """Of one of the assets, weight bits 2 to 8 and input bits 8."""
    given: dict[str, Any] = dict(MODELS[name])
    paths = {key: str(ASSETS / given.pop(key)) for key in ("data", "calibration_data") if key in given}
    model, weights = (
        f"{ROOT / 'examples' / 'assets.py'}:{given.pop('model')}",
        str(ASSETS / "weights" / f"{given.pop('weights')}.safetensors"),
    )
    return RunConfig(
        budgets=("8bits",),
        model=model,
        weights=weights,
        objectives=objectives,
        target="packed",
        seed=seed,
        **paths,
        **given,
    )


def write(path: Path, name: str, result: dict[str, Any], seconds: float) -> str:
    """The section below the command and the machine that made it."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    command = f"`python benchmarks/validate_objectives.py {' '.join(sys.argv[1:])}`"
    about = (
        f"{command}, seed {result['seed']}, {versions}. {identity()}. {seconds:.0f} s in all in the "
        "last call; what an earlier one had kept was not done again."
    )
    text = f"# Objectives against the true loss: {name}\n\n{about}\n\n{markdown(result)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return text


if __name__ == "__main__":
    main()
