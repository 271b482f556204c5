"""Accuracy against size on real weights and images: the searched assignment beside the uniform one, after reconstruction.

Run: python benchmarks/accuracy_size.py resnet20 resnet56 mobilenet [--bits 8,6,5,4]. Needs the assets folder (MPSEARCH_ASSETS, else ../shared/assets).
Each model has a study below studies/ that its budgets share, so what does not depend on the budget is done once, and the script resumes; the table is
written after every budget.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import time
from pathlib import Path

from mpsearch.hardware import identity
from mpsearch.pipeline import RunConfig, run
from mpsearch.pipeline.folder import Study

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
CIFAR = {"data": "images/cifar10_png_subset.npz", "calibration_images": 1024, "search_images": 512}
MODELS = {
    "resnet20": {"model": "cifar_resnet20", "weights": "cifar10_resnet20", **CIFAR, "iterations": 200},
    "resnet56": {"model": "cifar_resnet56", "weights": "cifar10_resnet56", **CIFAR, "iterations": 100},
    "mobilenet": {
        "model": "mobilenetv1_075",
        "weights": "mobilenetv1_075_in1k",
        "data": "images/imagenet_val_1000.zip",
        "calibration_data": "images/imagenet_calib_1000.zip",
        "calibration_images": 256,
        "search_images": 128,
        "evaluation_images": 500,
        "iterations": 16,
        "search_iterations": 15,
    },
}
HEADER = "| model | budget | uniform that fits | bytes | top-1 | KL | chosen | bytes | top-1 | KL | float top-1 | images | seconds |\n" + "|---" * 13 + "|\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--bits", default="8,6,5,4")
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "accuracy_size.md")
    arguments = parser.parse_args()
    lines = []
    for name in arguments.models:
        for bits in arguments.bits.split(","):
            lines.append(study(name, bits, arguments.trials))
            versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "timm", "onnxruntime", "optuna"))
            about = (
                f"`python benchmarks/accuracy_size.py {' '.join(arguments.models)} --bits {arguments.bits} --trials {arguments.trials}`, seed 0, {versions}."
            )
            steps = ", ".join(f"{m} {MODELS[m]['iterations']}" for m in arguments.models)
            about += f" {identity()}. Reconstruction steps for each block: {steps}. Bits of inputs: 8. Both assignments are reconstructed alike."
            arguments.output.write_text(f"# Accuracy against size\n\n{about}\n\n{HEADER}{''.join(lines)}")
            print(lines[-1], end="", flush=True)


def study(name: str, bits: str, trials: int) -> str:
    """One row: the greatest uniform assignment within the budget beside the chosen one, both after reconstruction."""
    settings = dict(MODELS[name])
    paths = {key: str(ASSETS / settings.pop(key)) for key in ("data", "calibration_data") if key in settings}
    model, weights = f"{ROOT / 'examples' / 'assets.py'}:{settings.pop('model')}", str(ASSETS / "weights" / f"{settings.pop('weights')}.safetensors")
    start = time.monotonic()
    result = run(RunConfig(budgets=(f"{bits}bits",), model=model, weights=weights, trials=trials, **paths, **settings), Study(ROOT / "studies" / name))
    floats, uniform = result["rows"][0], next(row for row in result["rows"] if row["label"].startswith("uniform") and "reconstructed" in row)
    chosen = next(row for row in result["rows"] if row["label"] == result["best"]["label"])
    cells = [name, f"{bits} bits"]
    for row in (uniform, chosen):
        done = row["reconstructed"]
        cells += [row["label"], f"{done['size_bytes']:,}", f"{done['metrics']['top1']:.2%}", f"{done['metrics']['kl']:.5f}"]
    cells += [f"{floats['nearest']['metrics']['top1']:.2%}", str(floats["nearest"]["metrics"]["images"]), f"{time.monotonic() - start:.0f}"]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()
