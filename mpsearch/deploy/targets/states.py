"""States in a form that a target has: refused where it has none, written as floats on their grids, or with
inputs signed around zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from mpsearch.deploy.packed import save_packed
from mpsearch.deploy.packed_reading import load_packed
from mpsearch.deploy.targets._base import MODEL_FILE, Job
from mpsearch.errors import UserError
from mpsearch.problem import FLOAT, Candidate
from mpsearch.quant import UnitState, affine_input, install
from mpsearch.reconstruct import Calibration


def refuse_products(job: Job, target: str, *, tensors: bool = False) -> None:
    """Raise UserError where a unit without a weight is quantised that the target has no form for.

    Args:
        job: What is to be written.
        target: Its name.
        tensors: Whether it has one for tensors that modules return; none has one for functions.
    """
    for unit, state in job.states.items():
        if state.weight is not None or state.candidate.is_float or state.candidate.weight_only:
            continue
        if not unit.endswith(".output"):
            raise UserError(
                f"The target {target} has no quantised functions of activations, such as {unit!r}. Leave "
                "them float, or export with --target packed."
            )
        if not tensors:
            raise UserError(
                f"The target {target} has no quantised residual operands or pool inputs, such as {unit!r}. "
                "Export with --target tensorrt or packed."
            )


def save_on_grid(job: Job, path: Path) -> None:
    """A checkpoint of float weights that lie on their grids, so that a tool which rounds to nearest on the
    same grid finds the learned codes again.
    """
    weights = {unit: UnitState(FLOAT) for unit in job.layout.units}
    module = bare(job.module, job.states)
    save_packed(path, job.layout, module, weights)


def bare(module: nn.Module, states: Mapping[str, UnitState]) -> nn.Module:
    """A copy of the float module with dequantised weights, the biases beside them, and float inputs, its
    layers not wrapped.
    """
    copied = install(module, {})
    with torch.no_grad():
        for unit, state in states.items():
            if state.weight is not None:
                copied.get_submodule(unit).get_parameter("weight").copy_(state.weight.dequantize())
            if state.bias is not None:
                copied.get_submodule(unit).get_parameter("bias").copy_(state.bias)
    return copied


def load_on_grid(folder: Path, model: nn.Module | None) -> nn.Module:
    """What `save_on_grid` wrote."""
    return load_packed(folder / MODEL_FILE, model)


def signed(job: Job, *, keep_unsigned: bool = False) -> dict[str, UnitState]:
    """The job's states with inputs on grids without a zero point.

    A grid whose zero point is half its codes is signed already; any other is calibrated anew, signed, from
    the same sample. Weights keep their learned codes.

    Args:
        job: Its inputs must be uniform.
        keep_unsigned: Leave grids alone that start at 0, for tools that have unsigned integers.
    """
    calibration = replace(job.calibration, symmetric_inputs=True, chosen={}, _input_params={})
    return {
        unit: _signed_state(unit, state, calibration, keep_unsigned) for unit, state in job.states.items()
    }


def _signed_state(unit: str, state: UnitState, calibration: Calibration, keep_unsigned: bool) -> UnitState:
    if state.activation is None or state.second is not None:
        return state
    params = affine_input(unit, state)
    zero = int(params.zero_point)
    if params.symmetric or (keep_unsigned and zero == 0):
        return state
    if zero == 1 << (params.bits - 1):
        return replace(
            state, activation=replace(params, zero_point=torch.zeros_like(params.zero_point), symmetric=True)
        )
    found = replace(calibration, input_observer=calibration.uniform_observer, _input_params={}).input_params(
        unit, Candidate(8, params.bits)
    )
    return replace(state, activation=found)
