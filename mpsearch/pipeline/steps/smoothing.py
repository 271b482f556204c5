"""Outlier channels behind layer norms move into the weights of the float model, before anything is
searched.
"""

from __future__ import annotations

import torch
from torch import nn

from mpsearch.data import SampleSet
from mpsearch.errors import ModelError
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.progress import Progress
from mpsearch.reconstruct.smooth import smooth

IMAGES = 32
"""Calibration images that the ranges of channels are taken of: as many as a time limit leaves at least, so
that the float model is the same whatever it leaves.
"""
_SAME = 1e-3


def smoothed(module: nn.Module, images: SampleSet, config: RunConfig, progress: Progress) -> nn.Module:
    """The float model, smoothed where the settings ask for it: another with the same outputs.

    Args:
        module: Float model, batch norms folded.
        images: Calibration images.
        config: Settings.
        progress: Where is told how far the outputs are apart.
    Raises: ModelError: There is nothing to smooth, or the outputs differ by more than roundings.
    """
    if config.smooth == "none":
        return module
    few = images.inputs(slice(0, min(IMAGES, len(images))))
    try:
        found = smooth(module, [few], bias=config.smooth == "sqb", new_parameters=False)
    except ModelError as error:
        raise ModelError(f"--smooth {config.smooth} cannot be done: {error} (--smooth none.)") from None
    with torch.no_grad():
        before, after = module(few), found(few)
    apart = float((before - after).norm() / before.norm())
    if not apart < _SAME:
        raise ModelError(
            f"--smooth {config.smooth} changes the outputs of the float model by {apart:.1g} of their "
            f"norm, which "
            "is more than roundings. Leave it out."
        )
    progress.say(f"Smoothed by {config.smooth}: the float outputs differ by {apart:.1g} of their norm.")
    return found
