"""torchao's integers for weights alone, the plain baseline: uniform bits, linear layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis

from benchmarks.peers.counting import Layer, units
from benchmarks.peers.job import CannotError, Made, Task


def quantize(task: Task) -> Made:
    """The whole bits that the budget allows.

    Raises: CannotError: The budget is not met, because convolutions stay float.
    """
    bits = math.floor(task.job.bits)
    quantize_(
        task.model, IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerAxis(0))
    )
    layers, weights = [], {}
    for name, unit in units(task.model).items():
        held = isinstance(unit, nn.Linear)
        weights[name] = _plain(unit.weight)
        layers.append(Layer.of(name, weights[name], bits if held else 32, 32))
    total = sum(layer.numel for layer in layers)
    mean = sum(layer.numel * layer.w_bits for layer in layers) / total
    if mean > task.job.bits:
        floats = sum(layer.numel for layer in layers if layer.w_bits == 32) / total
        raise CannotError(
            f"quantize_ takes linear layers alone: {floats:.0%} of the weights are in convolutions and stay "
            f"float, {mean:.1f} bits a weight."
        )
    return Made(
        task.model, layers, weights, f"quantize_, int{bits}, a scale for each channel; inputs stay float"
    )


def _plain(weight: Tensor) -> Tensor:
    return (
        weight.dequantize() if hasattr(weight, "dequantize") and type(weight) is not nn.Parameter else weight
    )
