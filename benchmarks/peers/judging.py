"""Our evaluator: what logits say, image by image, and paired differences between two tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsearch.evaluate.metrics import kl_by_image


def judge(logits: Path, images: Path) -> dict[str, Any]:
    """Top-1 and KL to the float network on the judged images, with standard errors."""
    kl, right = by_image(logits, images)
    return {
        "images": len(kl),
        "top1": round(float(right.mean()), 4),
        "top1_error": round(_error(right), 4),
        "kl": round(float(kl.mean()), 5),
        "kl_error": round(_error(kl), 5),
    }


def by_image(logits: Path, images: Path) -> tuple[Tensor, Tensor]:
    """KL and whether the top class is the label, of each judged image.

    Raises: ValueError: The logits are of another number of images, or not finite.
    """
    with np.load(images) as held:
        plain, labels = torch.from_numpy(held["float_logits"]), torch.from_numpy(held["judged_labels"])
    with np.load(logits) as held:
        found = torch.from_numpy(held["logits"])
    if found.shape != plain.shape:
        raise ValueError(f"Logits of shape {tuple(found.shape)}; {tuple(plain.shape)} are right.")
    if not found.isfinite().all():
        raise ValueError("Some logits are not finite.")
    return kl_by_image(found, plain).double(), (found.argmax(1) == labels).double()


def paired(first: Path, second: Path, images: Path) -> dict[str, Any]:
    """The first tool's less the second's: KL and top-1, each with the standard error of the difference."""
    (kl_a, right_a), (kl_b, right_b) = by_image(first, images), by_image(second, images)
    kl, right = kl_a - kl_b, right_a - right_b
    return {
        "kl": [round(float(kl.mean()), 5), round(_error(kl), 5)],
        "top1": [round(float(right.mean()), 4), round(_error(right), 4)],
    }


def _error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)
