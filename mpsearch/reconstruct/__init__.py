"""From an assignment to a quantised model: range calibration, then reconstruction. One loop; methods are
policies given to it.
"""

from mpsearch.reconstruct.calibrate import Calibration, calibrate
from mpsearch.reconstruct.folds import find_folds
from mpsearch.reconstruct.learn import BlockResult, ReconstructionConfig
from mpsearch.reconstruct.loop import footprint, reconstruct
from mpsearch.reconstruct.memory import Footprint
from mpsearch.reconstruct.methods import METHODS, Method, Phase
from mpsearch.reconstruct.smooth import smooth

__all__ = [
    "METHODS",
    "BlockResult",
    "Calibration",
    "Footprint",
    "Method",
    "Phase",
    "ReconstructionConfig",
    "calibrate",
    "find_folds",
    "footprint",
    "reconstruct",
    "smooth",
]
