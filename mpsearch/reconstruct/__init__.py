"""From an assignment to a quantised model: range calibration, then reconstruction. One loop; methods are policies given to it."""

from mpsearch.reconstruct.calibrate import Calibration, calibrate
from mpsearch.reconstruct.learn import BlockResult, ReconstructionConfig
from mpsearch.reconstruct.loop import images_within, reconstruct
from mpsearch.reconstruct.methods import METHODS, Method, Phase
from mpsearch.reconstruct.smooth import find_folds, smooth

__all__ = [
    "METHODS",
    "BlockResult",
    "Calibration",
    "Method",
    "Phase",
    "ReconstructionConfig",
    "calibrate",
    "find_folds",
    "images_within",
    "reconstruct",
    "smooth",
]
