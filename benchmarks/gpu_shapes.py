"""Writes benchmarks/gpu_shapes.json: the distinct unit shapes of the models whose GPU tables are shipped; a
GPU machine then needs no model library.

Run: python benchmarks/gpu_shapes.py. Weights do not matter; the random ones of timm's constructors are used.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import timm
import torch

from mpsearch.hardware.rows import row_key
from mpsearch.models import analyze, find_foldable, fold_batch_norm, trace_model
from mpsearch.problem import Layer

MODELS = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "mobilenetv2": "mobilenetv2_100",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "resmlp_24": "resmlp_24_224",
}


def shapes(name: str) -> list[dict[str, object]]:
    """One layer for each distinct shape of a model; `calls` counts all units of the shape."""
    module, image = timm.create_model(name).eval(), torch.zeros(1, 3, 224, 224)
    module = fold_batch_norm(module, find_foldable(trace_model(module, image), module))
    found: dict[str, Layer] = {}
    for layer in analyze(module, image).layers:
        key = row_key(layer, 1)
        found[key] = (
            layer
            if key not in found
            else dataclasses.replace(found[key], calls=found[key].calls + layer.calls)
        )
    return [layer.to_json() for layer in found.values()]


if __name__ == "__main__":
    path = Path(__file__).with_name("gpu_shapes.json")
    path.write_text(
        json.dumps({name: shapes(timm_name) for name, timm_name in MODELS.items()}, indent=None).replace(
            '{"name"', '\n{"name"'
        )
        + "\n"
    )
    print({name: len(rows) for name, rows in json.loads(path.read_text()).items()})
