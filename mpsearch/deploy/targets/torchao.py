"""`torchao`: a configuration by module names, applied to the float model by torchao's `quantize_`, with the
learned codes put in.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mpsearch.deploy.targets._base import MODEL_FILE, TARGETS, Job, Run, Target
from mpsearch.deploy.targets.states import load_on_grid, refuse_products, save_on_grid
from mpsearch.errors import CheckpointError, MissingExtraError
from mpsearch.quant import UnitState, install

CONFIG, CODES = "torchao.json", "codes.safetensors"


@TARGETS.register("torchao")
@dataclass(frozen=True)
class TorchAo(Target):
    """`torchao.json` (an `FqnToConfig`), the float model with its weights on their grids, and the codes.

    torchao quantises linear layers. Their inputs are quantised to int8 for each token as they come,
    asymmetrically, whatever bits the assignment gives them; convolutions stay float with their weights on the
    grid.
    """

    file: ClassVar[str] = MODEL_FILE
    runs_with: ClassVar[str] = "torchao, CPU"
    needs_model: ClassVar[bool] = True

    def states(self, job: Job) -> dict[str, UnitState]:
        """Linear layers and convolutions with float inputs: an input that is quantised as it comes has no
        fixed grid to compare with.
        """
        return {
            unit: UnitState(state.candidate, state.weight, bias=state.bias)
            for unit, state in job.states.items()
        }

    def reference(self, job: Job) -> nn.Module:
        """Quantised weights, float inputs."""
        return install(job.module, self.states(job))

    def write(self, job: Job, folder: Path) -> list[str]:
        """Three files."""
        refuse_products(job, self.name)
        save_on_grid(job, folder / MODEL_FILE)
        linear = {
            unit: state
            for unit, state in job.quantized.items()
            if isinstance(job.module.get_submodule(unit), nn.Linear)
        }
        (folder / CONFIG).write_text(json.dumps(_config(linear), indent=1) + "\n")
        tensors = {}
        for unit, state in linear.items():
            assert state.weight is not None
            tensors[f"{unit}.codes"] = state.weight.codes.to(torch.int8).contiguous()
            tensors[f"{unit}.scale"] = state.weight.params.scale.expand(len(state.weight.codes)).contiguous()
        save_file(tensors, folder / CODES)
        narrow = sum(state.candidate.a_bits != 8 for state in linear.values())
        return [
            (
                f"{len(linear)} linear layers run quantised; {len(job.quantized) - len(linear)} convolutions "
                "keep float arithmetic, their weights on the grid."
            ),
            *(
                [f"{narrow} inputs of fewer than 8 bits are quantised to int8: torchao has no narrower ones."]
                if narrow
                else []
            ),
        ]

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """The float model after `quantize_`, with the learned codes."""
        torch.set_num_threads(threads)
        module = load_on_grid(folder, model)
        quantize, from_dict = _torchao()
        config = json.loads((folder / CONFIG).read_text())
        if config["_data"]["fqn_to_config"]:
            quantize(module, from_dict(config), filter_fn=None)
        tensors = load_file(folder / CODES)
        for unit in sorted({name.rpartition(".")[0] for name in tensors}):
            _put(module.get_submodule(unit).weight, tensors[f"{unit}.codes"], tensors[f"{unit}.scale"], unit)
        return module


def _config(linear: dict[str, UnitState]) -> dict[str, Any]:
    """The serialised `FqnToConfig`; its text form, so that the package is not needed to write it."""
    by_name = OrderedDict((unit, _weights(state.candidate.w_bits or 8)) for unit, state in linear.items())
    return {
        "_type": "FqnToConfig",
        "_version": 1,
        "_data": {"fqn_to_config": by_name, "module_fqn_to_config": by_name},
    }


def _weights(bits: int) -> dict[str, Any]:
    """int8 inputs for each token, weights of `bits` with one scale for each output channel that clips
    nothing: codes on that grid are found again.
    """
    data = {
        "weight_dtype": {"_type": "torch.dtype", "_data": f"int{bits}"},
        "weight_granularity": {"_type": "PerAxis", "_version": 1, "_data": {"axis": 0}},
        "weight_mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC_NO_CLIPPING_ERR"},
        "act_mapping_type": {"_type": "MappingType", "_data": "ASYMMETRIC"},
    }
    return {"_type": "Int8DynamicActivationIntxWeightConfig", "_version": 2, "_data": data}


def _torchao() -> tuple[Any, Any]:
    try:
        from torchao.core.config import config_from_dict
        from torchao.quantization import quantize_
    except ImportError as error:
        raise MissingExtraError("torchao", "torchao", "Running a torchao artifact", error) from None
    return quantize_, config_from_dict


def _put(weight: Any, codes: torch.Tensor, scale: torch.Tensor, unit: str) -> None:
    if (
        not hasattr(weight, "qdata")
        or weight.qdata.shape != codes.shape
        or weight.scale.numel() != scale.numel()
    ):
        raise CheckpointError(
            f"torchao did not quantise {unit!r} as {CONFIG} says. Export again with the installed "
            "version of torchao."
        )
    with torch.no_grad():
        weight.qdata.copy_(codes)
        weight.scale.copy_(scale.view_as(weight.scale))
        weight.zero_point.zero_()
