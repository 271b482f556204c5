"""`triton-cuda`: our own kernels on an NVIDIA GPU. Weights of 2 to 8 bits on int8 or half-precision inputs;
products and convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from mpsearch.errors import TableError
from mpsearch.hardware.backend import BACKENDS, Backend, Cell, Support
from mpsearch.hardware.device import DeviceIdentity
from mpsearch.hardware.gpu import card as cards
from mpsearch.hardware.gpu import probe
from mpsearch.hardware.gpu.bench import CudaBench
from mpsearch.hardware.gpu.card import Shared
from mpsearch.hardware.kernels.tiles import default_tile
from mpsearch.problem import FLOAT, Candidate, Layer

CAPABILITY = (8, 0)
"""Compute capability: Triton multiplies on matrix units from here on."""


@BACKENDS.register("triton-cuda")
@dataclass(frozen=True)
class TritonCuda(Backend):
    """Our Triton kernels.

    Args:
        threads: 1; a GPU has no pool.
        dtype: What `float` stands for, and the type of every tensor between units.
    """

    name: ClassVar[str]
    threads: int = 1
    dtype: Literal["fp16", "bf16"] = "fp16"

    @property
    def version(self) -> str:
        """Version of mpsearch's kernels as Triton compiles them, and what changes them."""
        import importlib.metadata

        try:
            triton = importlib.metadata.version("triton")
        except importlib.metadata.PackageNotFoundError:
            triton = "none"
        return f"{triton}-{self.dtype}"

    def supports(self, layer: Layer, candidate: Candidate) -> Support:
        """Every weight width has its kernel; inputs are int8 or half precision. Fewer input bits run the int8
        kernel.
        """
        why = probe.why_not(CAPABILITY, "the Triton kernels", ("triton",))
        if why is not None:
            return Support("no", why, None)
        if candidate.is_float:
            return Support("ok", f"{self.dtype} kernels of cuDNN and cuBLAS", FLOAT)
        if layer.op == "matmul":
            return Support("no", "activation products run in float on this backend", None)
        if candidate.number_format != "int":
            return Support("no", f"no kernel for {candidate}; the kernels are for integers", None)
        kernel = Candidate(candidate.w_bits, 16 if candidate.weight_only else 8)
        if candidate.a_bits in (8, 16):
            return Support(
                "ok",
                f"w{candidate.w_bits} x {'half precision' if candidate.weight_only else 's8'} kernel",
                kernel,
            )
        return Support(
            "storage-only",
            f"inputs of {candidate.a_bits} bits are held in 8 and run the {kernel} kernel",
            kernel,
        )

    def build(self, layer: Layer, candidate: Candidate, batch: int) -> Cell:
        """The unit on random data, half-precision tensors in and out, checked against float64."""
        device = probe.needed()
        if self.supports(layer, candidate).kernel != candidate:
            raise TableError(
                f"{self.name} has no kernel for {layer.name!r} at {candidate}: "
                f"{self.supports(layer, candidate).reason}."
            )
        from mpsearch.hardware.gpu.cells import float_cell, own_cell

        if candidate.is_float:
            return float_cell(layer, batch, dtype=self.dtype)
        return own_cell(
            layer,
            candidate,
            batch,
            dtype=self.dtype,
            tile=partial(default_tile, processors=device.processors),
        )

    def bench(self, seconds: float = 0.25) -> CudaBench:
        """The GPU's bench, which counts launches and not seconds."""
        return CudaBench()

    def device(self) -> DeviceIdentity:
        """The GPU."""
        return probe.needed().identity

    def require(self) -> None:
        """Raises DeviceMismatchError, MissingExtraError or OptionError, as in `Backend`."""
        probe.require(self.name, self.threads, "the Triton kernels", CAPABILITY, "triton", "cuda")

    def shared(self) -> Shared:
        """Which card, and that this process holds it."""
        return cards.shared()

    def join(self, told: Shared) -> None:
        """Measure on that card, beside that process."""
        cards.join(told)

    def packed_bytes(self, layer: Layer, candidate: Candidate) -> int:
        """Bytes of `kernels.layout`: exactly `w_bits` for each weight, columns padded to 32, and 8 bytes of
        scale and correction for each channel.
        """
        if candidate.is_float or not layer.weight_shape or candidate.w_bits is None:
            return 2 * layer.weight_numel
        rows, columns = layer.weight_shape[0], layer.weight_numel // layer.weight_shape[0]
        if (
            layer.op == "conv2d"
            and layer.conv is not None
            and layer.conv.groups == rows
            and layer.weight_shape[1] == 1
        ):
            rows, columns = columns, rows  # depthwise: a row for each tap
        return rows * (-(-columns // 32) * 32) * candidate.w_bits // 8 + 8 * layer.weight_shape[0]
