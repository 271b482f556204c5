"""The images of a network and seed, drawn as `mpsearch run` draws them, in one file for all adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.networks import ASSETS, FACTORIES, NETWORKS, float_model, weights_file
from mpsearch.evaluate import predict
from mpsearch.pipeline import RunConfig, Silent
from mpsearch.pipeline.steps.loading import load_subject

PARTS = ("calibration", "search", "evaluation")


def prepare(name: str, seed: int, cache: Path, judged: int | None = None) -> Path:
    """Draw once: `PART_pixels` uint8 and `PART_labels` of the parts calibration, search and judged, the
    normalisation, and the float network's logits of the judged images.

    Args:
        name: Network.
        seed: Of the draw.
        cache: Folder of the file.
        judged: Number of judged images, where fewer than the network's are wanted.
    """
    network = NETWORKS[name]
    number = judged or network.judged
    path = cache / f"images-{name}-seed{seed}-{number}.npz"
    if path.is_file():
        return path
    weights = weights_file(name, cache)
    found = load_subject(config(name, seed, weights), Silent()).splits
    held: dict[str, Any] = {}
    for part in PARTS:
        images: Any = getattr(found, part)
        key = "judged" if part == "evaluation" else part
        count = number if part == "evaluation" else len(images)
        held |= {
            f"{key}_pixels": images.images[:count].numpy(),
            f"{key}_labels": images.labels[:count].numpy(),
        }
        if part == "evaluation":
            some = replace(images, images=images.images[:count], labels=images.labels[:count])
            held["float_logits"] = predict(float_model(name, weights), some).numpy()
            held |= {"mean": np.array(images.mean), "std": np.array(images.std)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **held)
    partial.rename(path)
    return path


def config(name: str, seed: int, weights: Path) -> RunConfig:
    """The settings that decide the draw: those of benchmarks/few_bits.py too."""
    network = NETWORKS[name]
    calibration = None if network.calibration_data is None else str(ASSETS / network.calibration_data)
    return RunConfig(
        budgets=("8bits",),
        model=f"{FACTORIES}:{network.factory}",
        weights=str(weights),
        data=str(ASSETS / network.data),
        calibration_data=calibration,
        calibration_images=network.calibration,
        search_images=network.search,
        evaluation_images=network.judged,
        target="packed",
        seed=seed,
    )


def float_top1(path: Path) -> float:
    """Of the judged images."""
    with np.load(path) as held:
        logits, labels = held["float_logits"], held["judged_labels"]
    return float((torch.from_numpy(logits).argmax(1) == torch.from_numpy(labels)).double().mean())
