"""Post-training quantisation of a vision transformer and of a ResMLP without reconstruction: which input
quantiser holds at 8, 6 and 4 bits.

Run: python benchmarks/vit_ptq.py [--images 1000] [--calibration-images 256] [--seed 0]. Needs the assets
folder (MPSEARCH_ASSETS, else ../shared/assets). Weights are one scale for each output channel, symmetric, mse
observer, in every row. The transformer is quantised fully: every linear layer and convolution, and both
operands of both products of attention, the probabilities among them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from mpsearch.data import ImageSet, load_images
from mpsearch.evaluate import compare, predict
from mpsearch.hardware import identity
from mpsearch.models import analyze, load_model
from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import install, product_names
from mpsearch.reconstruct import Calibration, calibrate
from mpsearch.reconstruct.smooth import smooth

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MPSEARCH_ASSETS", ROOT.parent / "shared" / "assets"))
MODELS = {"ViT": ("vit_cifar", "cifar10_vit_d128x6"), "ResMLP": ("resmlp_cifar", "cifar10_resmlp_d160x6")}


@dataclass(frozen=True)
class Row:
    """One way to quantise inputs; `smoothing` is the `bias` of `smooth`, None where nothing is smoothed."""

    label: str
    observer: str
    symmetric: bool
    smoothing: bool | None = None


ROWS = (
    Row("min-max, symmetric", "minmax", True),
    Row("SmoothQuant, min-max, symmetric", "minmax", True, False),
    Row("SQ-b, min-max, symmetric", "minmax", True, True),
    Row("mse, symmetric", "mse", True),
    Row("SQ-b, mse, symmetric", "mse", True, True),
    Row("min-max, asymmetric", "minmax", False),
    Row("percentile 99.9, asymmetric", "percentile:percent=99.9", False),
    Row("percentile 99.99, asymmetric", "percentile:percent=99.99", False),
    Row("mse, asymmetric", "mse", False),
    Row("OPT-m", "opt_m", False),
    Row("SQ-b, mse, asymmetric", "mse", False, True),
    Row("SQ-b + OPT-m", "opt_m", False, True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--bits", default="8,6,4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "vit_ptq.md")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bits = [int(b) for b in arguments.bits.split(",")]
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "timm"))
    command = (
        f"python benchmarks/vit_ptq.py --images {arguments.images} --calibration-images "
        f"{arguments.calibration_images} --bits {arguments.bits}"
    )
    command += f" --seed {arguments.seed} --threads {arguments.threads}"
    text = (
        f"# Input quantisers for a transformer and an MLP, without reconstruction\n\n`{command}`, "
        f"{versions}. {identity()}.\n"
    )
    for name in MODELS:
        text += table(name, bits, arguments)
        arguments.output.write_text(text)


def table(name: str, bits: list[int], arguments: argparse.Namespace) -> str:
    """Top-1 and KL to the float model of every row at every width."""
    factory, weights = MODELS[name]
    loaded = load_model(
        f"{ROOT / 'examples' / 'assets.py'}:{factory}", weights=ASSETS / "weights" / f"{weights}.safetensors"
    )
    train, test = (ASSETS / "images" / f"cifar10_jpeg_{part}.zip" for part in ("train_1000", "test_5000"))
    calibration = load_images(
        str(train), loaded.data_config, limit=arguments.calibration_images, seed=arguments.seed
    )
    images = load_images(str(test), loaded.data_config, limit=arguments.images, seed=arguments.seed)
    reference = predict(loaded.module, images)
    floats = compare(reference, reference, images.labels)
    units = [layer.name for layer in analyze(loaded.module, calibration.inputs([0])).layers]
    products = len(product_names(loaded.module, units))
    text = (
        f"\n## {name}: {len(units) - products} layers and {products} products, float top-1 "
        f"{floats.top1:.1%} on {len(images)} images\n\n"
    )
    text += (
        f"| inputs | {' | '.join(f'W{b}A{b} top-1 | KL' for b in bits)} | two-region and log grids "
        f"|\n{'|---' * (2 + 2 * len(bits))}|\n"
    )
    variants = {
        smoothing: calibrated(loaded.module, units, calibration, smoothing)
        for smoothing in (None, False, True)
    }
    for row in ROWS:
        start = time.monotonic()
        module, found = variants[row.smoothing]
        found = replace(found, input_observer=row.observer, symmetric_inputs=row.symmetric, _input_params={})
        cells, chosen = [], []
        for b in bits:
            states = found.states(Assignment(tuple((unit, Candidate(b, b)) for unit in units)))
            metrics = compare(predict(install(module, states), images), reference, images.labels)
            cells += [f"{metrics.top1:.1%}", f"{metrics.kl:.4f}"]
            kinds = [type(q).__name__ for state in states.values() for q in (state.activation, state.second)]
            chosen.append(f"A{b}: {kinds.count('TwoRegionParams')} and {kinds.count('LogParams')}")
        note = "; ".join(chosen) if row.observer == "opt_m" else ""
        text += f"| {row.label} | {' | '.join(cells)} | {note} |\n"
        print(name, row.label, *cells, note, f"{time.monotonic() - start:.0f} s", flush=True)
    return text


def calibrated(
    module: nn.Module, units: list[str], images: ImageSet, smoothing: bool | None
) -> tuple[nn.Module, Calibration]:
    """The float model, smoothed where asked, and the samples of what its units read."""
    batches = [inputs for inputs, _ in images.batches(64)]
    module = module if smoothing is None else smooth(module, batches, bias=smoothing)
    return module, calibrate(module, units, batches)


if __name__ == "__main__":
    main()
