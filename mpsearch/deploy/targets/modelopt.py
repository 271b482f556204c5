"""`modelopt`: NVIDIA ModelOpt's `quant_cfg`, the float model with its weights on their grids, and the ranges
of every quantiser.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mpsearch.deploy.targets._base import MODEL_FILE, TARGETS, Job, Run, Target
from mpsearch.deploy.targets.states import load_on_grid, refuse_products, save_on_grid, signed
from mpsearch.errors import MissingExtraError
from mpsearch.quant import UnitState, affine_input

CONFIG, RANGES = "modelopt.json", "ranges.safetensors"


@TARGETS.register("modelopt")
@dataclass(frozen=True)
class ModelOpt(Target):
    """`modelopt.json` for `mtq.quantize`, the model, and `ranges.safetensors` with the `amax` of every
    quantiser.

    ModelOpt calibrates the ranges itself where only the JSON is taken; with the ranges it computes what
    mpsearch measured.
    """

    file: ClassVar[str] = MODEL_FILE
    runs_with: ClassVar[str] = "NVIDIA ModelOpt, fake quantisation in torch"
    needs_model: ClassVar[bool] = True

    def states(self, job: Job) -> Mapping[str, UnitState]:
        """Inputs without zero points: signed, or unsigned from 0."""
        return signed(job, keep_unsigned=True)

    def write(self, job: Job, folder: Path) -> list[str]:
        """Three files."""
        refuse_products(job, self.name)
        states = {unit: state for unit, state in self.states(job).items() if state.weight is not None}
        save_on_grid(job, folder / MODEL_FILE)
        (folder / CONFIG).write_text(json.dumps(quant_cfg(states), indent=1) + "\n")
        save_file(
            {name: value for unit, state in states.items() for name, value in _ranges(unit, state).items()},
            folder / RANGES,
        )
        moved = sum(state.activation is not job.states[unit].activation for unit, state in states.items())
        return (
            [
                (
                    f"{moved} inputs were calibrated anew, signed around zero: ModelOpt's integers have no "
                    "zero points."
                )
            ]
            if moved
            else []
        )

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """The float model after `mtq.quantize`, with our ranges in the place of a calibration."""
        torch.set_num_threads(threads)
        module = load_on_grid(folder, model)
        try:
            import modelopt.torch.quantization as mtq
        except ImportError as error:
            raise MissingExtraError(
                "nvidia-modelopt", "modelopt", "Running a ModelOpt artifact", error
            ) from None
        module = mtq.quantize(module, {**json.loads((folder / CONFIG).read_text()), "algorithm": None})
        for name, amax in load_file(folder / RANGES).items():
            quantizer: Any = module.get_submodule(name)
            quantizer.amax = amax
        return module  # type: ignore[no-any-return]


def quant_cfg(states: Mapping[str, UnitState]) -> dict[str, Any]:
    """The configuration of units on grids without zero points: everything off, then each quantiser by its
    full name.
    """
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for unit, state in states.items():
        assert state.weight is not None
        read = affine_input(unit, state)
        weights = {"num_bits": state.weight.params.bits, "axis": 0 if state.weight.params.axis == 0 else None}
        inputs = {"num_bits": read.bits, "axis": None} | ({} if read.symmetric else {"unsigned": True})
        entries += [
            {"quantizer_name": f"{unit}.{which}_quantizer", "cfg": cfg, "enable": True}
            for which, cfg in (("weight", weights), ("input", inputs))
        ]
    return {"quant_cfg": entries, "algorithm": "max"}


def _ranges(unit: str, state: UnitState) -> dict[str, Tensor]:
    """Amax = scale * greatest code: ModelOpt's scale is amax over 2^(bits - 1) - 1, or over 2^bits - 1 where
    unsigned.
    """
    assert state.weight is not None
    weight, read = state.weight.params, affine_input(unit, state)
    shape = [-1, *[1] * (state.weight.codes.ndim - 1)] if weight.axis == 0 else []
    return {
        f"{unit}.weight_quantizer": (weight.scale * weight.qmax).reshape(shape).contiguous(),
        f"{unit}.input_quantizer": read.scale * read.qmax,
    }
