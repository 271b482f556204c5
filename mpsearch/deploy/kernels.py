"""A packed checkpoint on real low-bit kernels: every quantised convolution and linear layer computes from its
packed weight by `KernelUnit`.

Between units tensors have one half-precision type; layers that are not quantised compute in it. Pictures stay
N x C x H x W to the model, and lie channels last in memory, which is what the kernels read; a forward that
only works on contiguous pictures (`x.view(len(x), -1)`) fails as it does under torch's `channels_last`. A
unit that no kernel computes is an error that names it: nothing is fake-quantised here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear
from torch import Tensor, nn

from mpsearch.deploy.kernel_layer import KernelLayer, kernel_layer
from mpsearch.deploy.packed_reading import open_packed
from mpsearch.errors import DeviceMismatchError, OptionError, UserError
from mpsearch.hardware.backends.triton_cuda import CAPABILITY
from mpsearch.hardware.gpu import probe
from mpsearch.hardware.kernels import device_code
from mpsearch.hardware.kernels.tiles import default_tile
from mpsearch.hardware.kernels.unit import TileChooser
from mpsearch.quant import AffineParams, UnitState

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_LINEAR = (nn.Linear.forward, Linear.forward)
_CONV = (nn.Conv2d.forward, Conv2dSame.forward)
"""Forwards that are the plain product, or the plain convolution behind a pad: what a kernel takes the place
of.
"""


def load_kernels(
    path: str | Path, model: nn.Module | None = None, *, device: str = "cuda", dtype: str = "fp16"
) -> nn.Module:
    """A packed checkpoint as a module in eval mode whose quantised units run on kernels.

    Args:
        path: Written by `save_packed`.
        model: Float model, as in `load_packed`.
        device: A CUDA device; `cpu` where Triton interprets (TRITON_INTERPRET=1), for tests.
        dtype: `fp16` or `bf16`: of tensors between units, and of float layers.

    Raises:
        CheckpointError: As `load_packed`.
        DeviceMismatchError: The device does not run the kernels.
        OptionError: There is no such type.
        UserError: A unit has no kernel; names all of them.
    """
    if dtype not in TYPES:
        raise OptionError(f"dtype is {dtype!r}; the kernels read and write {' or '.join(TYPES)}.")
    require_device(device)
    module, states = open_packed(path, model)
    return kernel_module(module, states, device=device, dtype=dtype, tile=tile_chooser(device), in_place=True)


def require_device(device: str) -> None:
    """Raises DeviceMismatchError where a device does not run the kernels, OptionError where it is none."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise OptionError(
            f"device is {device!r}; the kernels run on a CUDA device, such as cuda or cuda:1."
        ) from None
    compiled = isinstance(device_code.quantize_kernel, triton.JITFunction)
    if kind == "cuda":
        why = probe.why_not(CAPABILITY, "the Triton kernels", ("triton",))
        why = (
            "Triton interprets here (TRITON_INTERPRET is set); unset it to compile for the device"
            if why is None and not compiled
            else why
        )
        if why is not None:
            raise DeviceMismatchError(
                f"kernels='triton-cuda' cannot run on {device!r}: {why.rstrip('.')}. Load without "
                "kernels= to compute in float32 on any device."
            )
    elif kind != "cpu" or compiled:
        raise DeviceMismatchError(
            f"kernels='triton-cuda' runs on CUDA devices, not on {device!r}. Pass device='cuda', or "
            "leave out kernels= to compute in float32. "
            "(Triton's interpreter runs the kernels on a cpu, slowly: set TRITON_INTERPRET=1 before "
            "Python starts.)"
        )


def tile_chooser(device: str) -> TileChooser:
    """What chooses tiles on a device, by its number of processors."""
    return (
        partial(default_tile, processors=probe.needed().processors)
        if torch.device(device).type == "cuda"
        else default_tile
    )


def kernel_module(
    module: nn.Module,
    states: Mapping[str, UnitState],
    *,
    device: str,
    dtype: str = "fp16",
    tile: TileChooser = default_tile,
    in_place: bool = False,
) -> nn.Module:
    """A float module with its quantised units on kernels, everything else in `dtype`, without gradients.

    Args:
        module: Float, batch norms folded.
        states: Codes and quantisers of its units; `open_packed` gives both.
        device: Where it runs.
        dtype: `fp16` or `bf16`.
        tile: Chooses tiles.
        in_place: Take `module` apart instead of leaving it as found.
    Raises: UserError: A unit has no kernel; names all of them.
    """
    quantized = {unit: state for unit, state in states.items() if not state.candidate.is_float}
    _refuse(module, quantized)
    floats = {
        id(module.get_submodule(unit)): nn.Identity() for unit in quantized
    }  # a copy need not hold the weights that are replaced
    target = module if in_place else copy.deepcopy(module, {**floats})
    for unit, state in quantized.items():
        parent, _, child = unit.rpartition(".")
        setattr(
            target.get_submodule(parent),
            child,
            kernel_layer(unit, module.get_submodule(unit), state, torch.device(device), TYPES[dtype], tile),
        )
    target.to(device=device, dtype=TYPES[dtype])
    for layer in target.modules():
        if isinstance(layer, nn.Conv2d):  # those that stay float get pictures that lie channels last
            layer.to(memory_format=torch.channels_last)
    target.register_forward_pre_hook(_Cast(TYPES[dtype]))
    return target.requires_grad_(False).eval()


def kernel_layers(module: nn.Module) -> dict[str, KernelLayer]:
    """The units of a module that run on kernels, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, KernelLayer)}


class _Cast:
    """Takes float inputs of the whole module to its type, so that it can be called as the fake-quantised one
    is.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            x.to(self.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
        )


def _refuse(module: nn.Module, states: Mapping[str, UnitState]) -> None:
    found = {
        unit: why for unit, state in states.items() if (why := _why_not(module, unit, state)) is not None
    }
    if found:
        said = "; ".join(f"{unit!r} {why}" for unit, why in found.items())
        raise UserError(
            f"No kernel of triton-cuda computes {said}. Load without kernels=, which fake-quantises in "
            "float32, or leave these units in float."
        )


def _why_not(module: nn.Module, unit: str, state: UnitState) -> str | None:
    """Why a unit has no kernel; None where it has."""
    if state.weight is None:
        return "(a product of two activations)"
    if state.activation is not None and not (
        isinstance(state.activation, AffineParams) and state.activation.axis is None
    ):
        return (
            f"(its input has a {type(state.activation).__name__}; the kernels have affine grids of one step)"
        )
    layer = module.get_submodule(unit)
    if type(layer).forward not in (*_LINEAR, *_CONV):
        return f"(a {type(layer).__name__} with a forward of its own)"
    return None
