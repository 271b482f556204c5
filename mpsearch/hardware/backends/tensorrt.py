"""`tensorrt`: TensorRT engines from Q/DQ ONNX, an optional extra: the maintained path for int8 convolutions
on NVIDIA GPUs.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import ClassVar

from mpsearch.errors import TableError
from mpsearch.hardware.backend import BACKENDS, Backend, Cell, Support
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.hardware.gpu import card as cards
from mpsearch.hardware.gpu import probe
from mpsearch.hardware.gpu.bench import CudaBench
from mpsearch.hardware.gpu.card import Shared
from mpsearch.problem import FLOAT, Candidate, Layer

W8A8 = Candidate(8, 8)
_LEAST = (7, 5)
"""Compute capability: the first with int8 matrix units that TensorRT 10 builds for."""


@BACKENDS.register("tensorrt")
@dataclass(frozen=True)
class TensorRt(Backend):
    """TensorRT, strongly typed: half precision where the graph has no Q/DQ, symmetric int8 where it has.

    A unit alone pays for its own casts and layouts and is not fused with its neighbours; whole models are
    timed by trtexec (`hardware.trtexec`).
    """

    name: ClassVar[str]
    threads: int = 1

    @property
    def version(self) -> str:
        """Version of the package tensorrt; `none` where it is not installed."""
        try:
            return importlib.metadata.version("tensorrt")
        except importlib.metadata.PackageNotFoundError:
            return "none"

    def supports(self, layer: Layer, candidate: Candidate) -> Support:
        """Half precision and symmetric int8; fewer bits are stored in 8."""
        why = probe.why_not(_LEAST, "TensorRT", ("tensorrt",))
        if why is not None:
            hint = (
                (
                    "; pip install 'mpsearch[tensorrt]', or export the model and run the trtexec of an "
                    "installed TensorRT"
                )
                if "not installed" in why
                else ""
            )
            return Support("no", why + hint, None)
        if layer.op == "matmul":
            return Support(
                "no",
                (
                    "activation products are fused into attention by TensorRT and have no time of their own; "
                    "time the whole model"
                ),
                None,
            )
        if candidate.is_float:
            return Support("ok", "half-precision engine", FLOAT)
        if candidate.weight_only or candidate.number_format != "int":
            return Support("no", f"{candidate} is not offered; this backend writes symmetric int8 Q/DQ", None)
        if candidate == W8A8:
            return Support("ok", "symmetric int8 engine", W8A8)
        return Support(
            "storage-only", f"{candidate} is stored in 8-bit containers and runs the W8A8 engine", W8A8
        )

    def build(self, layer: Layer, candidate: Candidate, batch: int) -> Cell:
        """The unit on random data in an engine of its own, checked against float64."""
        probe.needed()
        if self.supports(layer, candidate).kernel != candidate:
            raise TableError(
                f"{self.name} has no kernel for {layer.name!r} at {candidate}: "
                f"{self.supports(layer, candidate).reason}."
            )
        from mpsearch.hardware.gpu.trt import trt_cell

        return trt_cell(layer, candidate, batch)

    def bench(self, seconds: float = 0.25) -> CudaBench:
        """The GPU's bench, which counts launches and not seconds."""
        return CudaBench()

    def device(self) -> DeviceIdentity:
        """The GPU."""
        return probe.needed().identity

    def require(self) -> None:
        """Raises DeviceMismatchError, MissingExtraError or OptionError, as in `Backend`."""
        probe.require(self.name, self.threads, "TensorRT", _LEAST, "tensorrt", "tensorrt")

    def shared(self) -> Shared:
        """Which card, and that this process holds it."""
        return cards.shared()

    def join(self, told: Shared) -> None:
        """Measure on that card, beside that process."""
        cards.join(told)

    def packed_bytes(self, layer: Layer, candidate: Candidate) -> int:
        """Two bytes for a half-precision weight; one for int8, and a half-precision scale for each
        channel.
        """
        return (
            2 * layer.weight_numel
            if candidate.is_float or not layer.weight_shape
            else layer.weight_numel + 2 * layer.weight_shape[0]
        )
