"""From an assignment to a quantised model: range calibration, then reconstruction. One loop; methods are policies given to it."""

from mpsearch.reconstruct.calibrate import Calibration, calibrate
from mpsearch.reconstruct.loop import ReconstructionConfig, reconstruct

__all__ = ["Calibration", "ReconstructionConfig", "calibrate", "reconstruct"]
