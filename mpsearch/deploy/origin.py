"""The model that files are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import ModelProto
from torch import nn

from mpsearch.deploy.packed import PackedLayout
from mpsearch.reconstruct import Calibration


@dataclass(frozen=True)
class Origin:
    """The model that a file is made of.

    Args:
        module: Float, batch norms folded.
        layout: Of its packed checkpoint.
        calibration: Ranges, where a runtime needs others than the states have.
        graph: Gives the float ONNX graph, exported at the first call.
    """

    module: nn.Module
    layout: PackedLayout
    calibration: Calibration
    graph: Callable[[], ModelProto]
