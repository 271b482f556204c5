"""The float ONNX graph of a model, which files are made of and sizes are known from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mpsearch.deploy.onnx_float import export_float
from mpsearch.hardware.qdq import OPSET
from mpsearch.pipeline.progress import Progress
from mpsearch.pytrees import Inputs


@dataclass(frozen=True)
class FloatGraphs:
    """Float graphs by opset, each exported when it is first asked for.

    Args:
        module: Float, batch norms folded.
        example: One sample.
        progress: Where progress goes.
        held: Those that were exported.
    """

    module: nn.Module
    example: Inputs
    progress: Progress
    held: dict[int, Any] = field(default_factory=dict, repr=False)

    def at(self, opset: int = OPSET) -> Any:
        """The graph at an opset. Raises ModelError where torch cannot export the model."""
        if opset not in self.held:
            with self.progress.task("export to ONNX") as advance:
                self.held[opset] = export_float(self.module, self.example, opset)
                advance(1, 1)
        return self.held[opset]
