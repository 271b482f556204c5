"""NNCF: int8 for weights and inputs (`nncf`), or its weight compression in int4 and int8 (`nncf+weights`)."""

from __future__ import annotations

import nncf
import torch
from torch import Tensor, nn

from benchmarks.peers.counting import Layer, units
from benchmarks.peers.job import CannotError, Made, Task


def quantize(task: Task) -> Made:
    """Of the torch model.

    Raises: CannotError: The library has nothing that meets the budget.
    """
    if task.job.peer.endswith("+weights"):
        return compressed(task)
    if task.job.bits < 8 or task.job.a_bits != 8:
        raise CannotError(
            "nncf.quantize and quantize_with_accuracy_control have 8-bit integers or float for a layer, so no "
            "budget below 8 bits a weight can be met."
        )
    inputs = [x for x, _ in task.calibration.batches(1)]
    kind = nncf.ModelType.TRANSFORMER if task.job.network in ("vit", "resmlp") else None
    made = nncf.quantize(
        task.model,
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=kind,
        subset_size=len(inputs),
    )
    layers = [Layer.of(name, unit.weight, 8, 8) for name, unit in units(task.model).items()]
    return Made(made.eval(), layers, {}, f"nncf.quantize, preset mixed, {len(inputs)} images")


def compressed(task: Task) -> Made:
    """`compress_weights` at the greatest share of int4 layers, inputs float.

    Raises: CannotError: Even that has more bits than the budget; it names how many.
    """
    model = task.model
    plain = {name: unit.weight.detach().clone() for name, unit in units(model).items()}
    made = nncf.compress_weights(
        model, mode=nncf.CompressWeightsMode.INT4_SYM, ratio=1.0, group_size=-1, all_layers=True,
        dataset=nncf.Dataset([x for x, _ in task.calibration.batches(1)]),
    )  # fmt: skip
    layers = [_layer(name, weight, made) for name, weight in plain.items()]
    total = sum(layer.numel for layer in layers)
    bits = sum(layer.numel * layer.w_bits for layer in layers) / total
    if bits > task.job.bits + 0.005:
        floats = sum(layer.w_bits == 32 for layer in layers)
        wide = sum(layer.w_bits == 8 for layer in layers)
        raise CannotError(
            f"compress_weights, INT4_SYM, ratio 1, ends at {bits:.2f} bits a weight: {wide} of {len(layers)} "
            f"layers at 8 bits, {floats} float, and has nothing below 4."
        )
    return Made(made.eval(), layers, {}, "compress_weights, INT4_SYM; inputs stay float")


def _layer(name: str, weight: Tensor, made: nn.Module) -> Layer:
    """Bits by what the library stored for the weight."""
    stored: nn.Parameter | Tensor = made.get_submodule(name).weight
    if stored.dtype.is_floating_point:
        return Layer.of(name, weight, 32, 32)
    bits = 8 if stored.numel() == weight.numel() else 4
    kinds = (torch.int8, torch.uint8)
    if stored.dtype not in kinds:
        raise TypeError(f"{name}: weights of {stored.dtype} are not known here.")
    return Layer.of(name, weight, bits, 32)
