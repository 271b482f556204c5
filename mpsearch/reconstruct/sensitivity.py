"""Units whose inputs need an asymmetric grid, as Q-MLP chooses them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsearch.problem import Assignment, Candidate
from mpsearch.quant import OBSERVERS, AffineParams, wrap
from mpsearch.quant.devices import wide
from mpsearch.reconstruct.calibrate import Calibration

CHUNK = 64  # images of a forward pass that learns nothing


@torch.no_grad()
def sensitive_units(
    module: nn.Module, calibration: Calibration, assignment: Assignment, inputs: Tensor
) -> dict[str, float]:
    """How much a symmetric grid on each unit's input alone costs: KL(float || that), in nats, most sensitive
    first.

    References: after Zhao, Dong, Keutzer, Q-MLP, arXiv:2209.06383 ("asymmetric quantiser for sensitive
        operations"); the measure is chosen here.

    Args:
        module: Float model in eval mode; left as found.
        calibration: Calibration of its units.
        assignment: Bits of each unit's input; units whose input stays float are left out.
        inputs: N x C x H x W normalised images.
    Returns: Unit -> KL.
    """
    student = copy.deepcopy(module)
    layers = wrap(student, calibration.weights)
    logits = _log_probabilities(student, inputs)
    found: dict[str, float] = {}
    for unit, layer in layers.items():
        if not (assignment[unit].is_float or assignment[unit].weight_only):
            layer.input.params = symmetric_input(calibration, unit, assignment[unit])
            found[unit] = float(
                F.kl_div(_log_probabilities(student, inputs), logits, reduction="batchmean", log_target=True)
            )
            layer.input.params = None
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def mixed_grids(
    calibration: Calibration, assignment: Assignment, sensitivity: Mapping[str, float], threshold: float
) -> Calibration:
    """The calibration with an asymmetric grid on a unit's input where `sensitivity` is above `threshold`, and
    else a symmetric one; units that read one tensor share its grid.

    Args:
        calibration: With asymmetric grids.
        assignment: Bits of each unit's input.
        sensitivity: Of `sensitive_units`; other units stay as they are.
        threshold: In nats.
    """
    worst: dict[str, float] = {}
    for unit, kl in sensitivity.items():
        root = calibration.twins.get(unit, unit)
        worst[root] = max(kl, worst.get(root, 0.0))
    even = [unit for unit in sensitivity if worst[calibration.twins.get(unit, unit)] <= threshold]
    chosen = {
        (calibration.twins.get(unit, unit), assignment[unit].a_bits or 0, 0): (
            "symmetric",
            symmetric_input(calibration, unit, assignment[unit]),
        )
        for unit in even
    }
    return replace(calibration, chosen={**calibration.chosen, **chosen})


def symmetric_input(calibration: Calibration, unit: str, candidate: Candidate) -> AffineParams:
    """The symmetric quantiser of a unit's input, by the calibration's observer."""
    if candidate.a_bits is None:
        raise ValueError("A float candidate has no quantiser.")
    return OBSERVERS.create(calibration.uniform_observer).observe(
        calibration.inputs[unit], candidate.a_bits, symmetric=True
    )


def _log_probabilities(module: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([F.log_softmax(wide(module(part)), 1) for part in torch.split(inputs, CHUNK)])
