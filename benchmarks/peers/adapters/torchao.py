"""torchao's integers for weights alone, the plain baseline: uniform bits, linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis

from benchmarks.peers.counting import Layer, units
from benchmarks.peers.job import CannotError, Made, Task


def quantize(task: Task) -> Made:
    """The most whole bits that the budget allows, with convolutions float.

    Raises: CannotError: No bits meet the budget.
    """
    modules = units(task.model)
    total = sum(unit.weight.numel() for unit in modules.values())
    floats = sum(unit.weight.numel() for unit in modules.values() if not isinstance(unit, nn.Linear)) / total
    fitting = [bits for bits in range(2, 9) if bits * (1 - floats) + 32 * floats <= task.job.bits]
    if not fitting:
        raise CannotError(
            f"quantize_ takes linear layers alone: {floats:.0%} of the weights are in convolutions and stay "
            f"float, so the least is {2 * (1 - floats) + 32 * floats:.1f} bits a weight."
        )
    bits = fitting[-1]
    dtype = getattr(torch, f"int{bits}")
    quantize_(task.model, IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerAxis(0)))
    layers, weights = [], {}
    for name, unit in units(task.model).items():
        weights[name] = _plain(unit.weight)
        layers.append(Layer.of(name, weights[name], bits if isinstance(unit, nn.Linear) else 32, 32))
    return Made(
        task.model, layers, weights, f"quantize_, int{bits}, a scale for each channel; inputs stay float"
    )


def _plain(weight: Tensor) -> Tensor:
    return (
        weight.dequantize() if hasattr(weight, "dequantize") and type(weight) is not nn.Parameter else weight
    )
