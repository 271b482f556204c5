"""A packed checkpoint must give back the model that was written: tried with the float model, before anything
is searched.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from mpsearch.deploy.packed import PackedLayout, save_packed
from mpsearch.deploy.packed_reading import load_packed
from mpsearch.errors import CheckpointError, ModelError
from mpsearch.models import ModelSource, as_float, build_model, rebound
from mpsearch.problem import Candidate
from mpsearch.pytrees import Inputs
from mpsearch.quant import UnitState


def require_read_back(
    layout: PackedLayout, module: nn.Module, source: ModelSource, given: nn.Module | None, example: Inputs
) -> None:
    """Write the float model, read it back as a user will, and compare to the last bit.

    Args:
        layout: Layout of `module`.
        module: Folded float model.
        source: How it is built anew.
        given: The model as the user gave it, where it cannot be built anew.
        example: One sample.

    Raises: ModelError: It cannot be stored, or gives something else; names what is not stored with it, where
        that is known.
    """
    fresh = build_model(source) if given is None else given
    states = {unit: UnitState(Candidate.parse("float")) for unit in layout.units}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "float.safetensors"
        try:
            save_packed(path, layout, module, states)
            back = rebound(load_packed(path, fresh), module)
        except CheckpointError as error:
            raise ModelError(
                "A checkpoint of this model could not be read back: "
                f"{str(error).replace(str(path), 'its file')}"
            ) from None
        if not torch.equal(back(example), module(example)):
            lost = _unstored(module, as_float(fresh))
            what = (
                f"the values of {lost} are no part of its state dict, and differ"
                if lost
                else "something in it is no part of its state dict"
            )
            raise ModelError(
                f"A checkpoint of this model gives back other outputs: {what} each time the model is "
                "built. Register what it needs "
                "as parameters or persistent buffers."
            )


def _unstored(module: nn.Module, fresh: nn.Module) -> str:
    """Buffers outside of the state dict that a newly built model has otherwise."""
    held, other = module.state_dict(), dict(fresh.named_buffers())
    return ", ".join(
        repr(name)
        for name, value in module.named_buffers()
        if name not in held and name in other and not torch.equal(value, other[name])
    )
