"""NVIDIA ModelOpt's `auto_quantize` by gradients, formats W2 to W8 per channel; ranges of weights `max`, the
default, or `mse` (`modelopt+mse`).
"""

from __future__ import annotations

from typing import Any

import modelopt.torch.quantization as mtq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.counting import Layer, units
from benchmarks.peers.job import Made, Task

BATCH = 32
WIDTHS = range(2, 9)


def quantize(task: Task) -> Made:
    """Ranges and scores from calibration images with their labels.

    The tool scores once for all budgets and keeps that in a checkpoint, so a second budget costs it little.
    """
    torch.set_grad_enabled(True)
    algorithm = "mse" if task.job.peer.endswith("+mse") else "max"
    job, batches = task.job, list(task.calibration.batches(BATCH))
    name = f"modelopt-scores-{job.network}-a{job.a_bits}-seed{job.seed}-{algorithm}.pt"
    scores = task.folder.parent / name
    reused = (
        "; scores of an earlier budget of this network, read from its checkpoint" if scores.is_file() else ""
    )
    made, state = mtq.auto_quantize(
        task.model,
        constraints={"effective_bits": float(job.bits)},
        quantization_formats=[_format(b, job.a_bits, algorithm) for b in WIDTHS],
        data_loader=batches,
        forward_step=lambda model, batch: model(batch[0]),
        loss_func=lambda output, batch: F.cross_entropy(output, batch[1]),
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        checkpoint=str(scores),
    )
    made.eval()
    layers, weights = counted_layers(made)
    satisfied = state["best"]["is_satisfied"]
    notes = f"auto_quantize, gradient, {algorithm} ranges, {len(task.calibration)} images with labels{reused}"
    return Made(made, layers, weights, notes if satisfied else f"{notes}; the tool says it missed the budget")


def _format(w_bits: int, a_bits: int, algorithm: str) -> dict[str, Any]:
    quantizers = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": w_bits, "axis": 0}, "enable": True},
        {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": a_bits, "axis": None}, "enable": True},
    ]
    return {"quant_cfg": quantizers, "algorithm": algorithm, "effective_bits": float(w_bits)}


def counted_layers(made: nn.Module) -> tuple[list[Layer], dict[str, Tensor]]:
    """Bits of each layer as its quantisers have them, and its values."""
    layers, weights = [], {}
    for name, module in units(made).items():
        w, a = _bits(module.weight_quantizer), _bits(module.input_quantizer)
        with torch.no_grad():
            weights[name] = module.weight_quantizer(module.weight)
        layers.append(Layer.of(name, module.weight, w, a))
    return layers, weights


def _bits(quantizer: Any) -> int:
    return int(quantizer.num_bits) if quantizer.is_enabled else 32
