"""`mpsearch.load`: a packed checkpoint as a module, fake-quantised in float32 or on low-bit kernels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import nn

from mpsearch.deploy.packed_reading import load_packed
from mpsearch.errors import MissingExtraError, OptionError, UnknownNameError
from mpsearch.models import ModelSource, build_model, kind_of

KERNELS = ("triton-cuda",)
"""What `kernels` may be."""


def load(
    path: str | Path,
    model: nn.Module | str | None = None,
    *,
    kernels: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> nn.Module:
    """The module of a packed checkpoint, in eval mode.

    Without `kernels` it computes in float32 with dequantised weights and fake-quantised inputs, on any
    device, as `load_packed` says. With `kernels="triton-cuda"` every quantised convolution and linear layer
    runs on its packed weight in Triton kernels, and a unit that has none is an error.

    Args:
        path: Written by mpsearch.
        model: Float model of the same architecture, batch norms not folded, or what `--model` names, such as
            `file.py:function` (which is run); needed unless the checkpoint names a timm model. It is not
            changed.
        kernels: `triton-cuda`, or None.
        device: Where it computes; None for the CPU, and for `cuda` with `kernels`.
        dtype: `fp16` (None) or `bf16`: of tensors between units, and of float layers; only with `kernels`.

    Raises:
        CheckpointError: The file is missing, damaged, or does not fit the model.
        DeviceMismatchError: The device does not run the kernels.
        UserError: A unit has no kernel; names all of them. Or an option cannot be taken.
        MissingExtraError: Triton is not installed.
    """
    if isinstance(model, str):
        model = build_model(ModelSource(kind_of(model), model))
    if kernels is None:
        if dtype is not None:
            raise OptionError(
                "dtype is given without kernels, and says how these run. Add kernels='triton-cuda', or "
                "leave dtype out."
            )
        return _moved(load_packed(path, model), device)
    if kernels not in KERNELS:
        raise UnknownNameError("set of kernels for a packed checkpoint", kernels, KERNELS)
    if importlib.util.find_spec("triton") is None:
        raise MissingExtraError("triton", "cuda", f"kernels={kernels!r}")
    from mpsearch.deploy.kernels import load_kernels

    return load_kernels(path, model, device=device or "cuda", dtype=dtype or "fp16")


def _moved(module: nn.Module, device: str | None) -> nn.Module:
    """On the device. Raises OptionError where it is none, or none that this torch reaches."""
    try:
        return module if device is None else module.to(device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise OptionError(
            f"device is {device!r}, and torch cannot compute there: {str(error).splitlines()[0]} Give "
            "another, or leave device out."
        ) from error
