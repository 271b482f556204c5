"""`nncf`: the configuration that `nncf.torch.load_from_config` reads, with the state of its quantisers and
the float model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mpsearch.deploy.targets._base import MODEL_FILE, TARGETS, Job, Run, Target
from mpsearch.deploy.targets.states import load_on_grid, refuse_products, save_on_grid
from mpsearch.errors import MissingExtraError, UserError
from mpsearch.quant import AffineParams, UnitState, affine_input

CONFIG, QUANTIZERS = "nncf.json", "quantizers.safetensors"


@TARGETS.register("nncf")
@dataclass(frozen=True)
class Nncf(Target):
    """`nncf.json` (quantisers at named places of the model), their state, and the model with its weights on
    their grids.
    """

    file: ClassVar[str] = MODEL_FILE
    runs_with: ClassVar[str] = "NNCF, fake quantisation in torch"
    needs_model: ClassVar[bool] = True

    def write(self, job: Job, folder: Path) -> list[str]:
        """Three files."""
        refuse_products(job, self.name)
        save_on_grid(job, folder / MODEL_FILE)
        hooks = [
            h
            for unit, state in job.quantized.items()
            for h in _hooks(unit, state, job.module.get_submodule(unit), job.calls.get(unit, 1))
        ]
        (folder / CONFIG).write_text(
            json.dumps({"compression_state": [config for config, _ in hooks]}, indent=1) + "\n"
        )
        save_file(
            {
                f"__nncf_hooks.{name}.{key}": value.clone()
                for config, state in hooks
                for name in config["hook_names_in_model"]
                for key, value in state.items()
            },
            folder / QUANTIZERS,
        )
        return []

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """The float model with NNCF's quantisers hooked in."""
        torch.set_num_threads(threads)
        module = load_on_grid(folder, model)
        try:
            import nncf.torch
        except ImportError as error:
            raise MissingExtraError("nncf", "nncf", "Running an NNCF artifact", error) from None
        module = nncf.torch.load_from_config(module, json.loads((folder / CONFIG).read_text()))
        missing = module.load_state_dict(load_file(folder / QUANTIZERS), strict=False)
        if missing.unexpected_keys:
            raise UserError(
                f"NNCF has no place for {missing.unexpected_keys[0]!r}. Export again with the installed "
                "version of NNCF."
            )
        return module  # type: ignore[no-any-return]


def _hooks(
    unit: str, state: UnitState, layer: nn.Module, calls: int
) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Configuration and state of the quantisers of a unit's input (port 0) and weight (port 1), at each of
    its calls.
    """
    assert state.weight is not None
    op = "conv2d" if isinstance(layer, nn.Conv2d) else "linear"
    found = []
    for port, params in ((0, affine_input(unit, state)), (1, state.weight.params)):
        names = [f"pre_hooks.{unit.replace('.', '/')}/{op}/{call}__{port}.0" for call in range(calls)]
        shape = (len(params.scale), *[1] * (state.weight.codes.ndim - 1)) if params.axis == 0 else (1,)
        found.append((_config(names, params, shape), _state(params, shape)))
    return found


def _config(names: list[str], params: AffineParams, shape: tuple[int, ...]) -> dict[str, Any]:
    settings = {
        "num_bits": params.bits,
        "mode": "symmetric" if params.symmetric else "asymmetric",
        "signedness_to_force": True if params.symmetric else None,
        "narrow_range": False,
        "half_range": False,
        "scale_shape": list(shape),
        "logarithm_scale": False,
        "is_quantized_on_export": False,
    }
    kind = "SymmetricQuantizer" if params.symmetric else "AsymmetricQuantizer"
    return {
        "hook_names_in_model": names,
        "module_path": "nncf.torch.quantization.layers",
        "module_cls_name": kind,
        "module_config": settings,
    }


def _state(params: AffineParams, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """NNCF's range parameters: a symmetric `scale` is that of the greatest code."""
    about = {
        "_num_bits": torch.tensor([params.bits], dtype=torch.int32),
        "enabled": torch.ones(1, dtype=torch.int32),
    }
    if params.symmetric:
        return {
            **about,
            "signed_tensor": torch.ones(1, dtype=torch.int32),
            "scale": (params.scale * params.qmax).reshape(shape),
        }
    low = -params.zero_point * params.scale
    return {
        **about,
        "input_low": low.reshape(shape),
        "input_range": (params.scale * params.qmax).reshape(shape),
    }
