"""`torch-cuda`: torch's kernels on an NVIDIA GPU. Half precision everywhere, int8 and fp8 for products whose sides fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mpsearch.errors import TableError
from mpsearch.hardware.backends._base import BACKENDS, Backend, Cell, Support
from mpsearch.hardware.gpu import probe
from mpsearch.problem import FLOAT, Candidate, ConvAttributes, Layer

W8A8, FP8 = Candidate(8, 8), Candidate.parse("fp8")


@BACKENDS.register("torch-cuda")
@dataclass(frozen=True)
class TorchCuda(Backend):
    """torch on CUDA.

    Args:
        threads: 1; a GPU has no pool.
        dtype: What `float` stands for, and the type of every tensor between units.
        compiled: Let torch.compile fuse quantising and scaling into fewer kernels.
    """

    name: ClassVar[str]
    on_gpu: ClassVar[bool] = True
    threads: int = 1
    dtype: Literal["fp16", "bf16"] = "fp16"
    compiled: bool = False

    @property
    def version(self) -> str:
        """Of torch, and what changes kernels."""
        import torch

        return f"{torch.__version__}-{self.dtype}{'-compiled' if self.compiled else ''}"

    def supports(self, layer: Layer, candidate: Candidate) -> Support:
        """Half precision runs everywhere; integers and fp8 where `_int_mm` and `_scaled_mm` take the sides of the product."""
        why = probe.why_not((8, 0), "half precision")
        if why is not None:
            return Support("no", why, None)
        if candidate.is_float:
            return Support("ok", f"{self.dtype} kernels of cuDNN and cuBLAS", FLOAT)
        if candidate.weight_only:
            return Support("no", "torch's weight-only products scale groups of inputs, not output channels; triton-cuda scales channels", None)
        if candidate.number_format == "fp8":
            why = _refusal(layer, 16, "_scaled_mm") or probe.why_not((8, 9), "fp8")
            return Support("no", why, None) if why else Support("ok", "e4m3 product through _scaled_mm", FP8)
        why = _refusal(layer, 8, "_int_mm")
        if why is not None:
            return Support("no", why, None)
        if candidate == W8A8:
            return Support("ok", "s8 x s8 product through _int_mm", W8A8)
        return Support("storage-only", f"{candidate} is stored in 8-bit containers and runs the W8A8 kernel", W8A8)

    def build(self, layer: Layer, candidate: Candidate, batch: int) -> Cell:
        """The unit on random data, half-precision tensors in and out, checked against float64."""
        probe.needed()
        if self.supports(layer, candidate).kernel != candidate:
            raise TableError(f"{self.name} has no kernel for {layer.name!r} at {candidate}: {self.supports(layer, candidate).reason}.")
        from mpsearch.hardware.gpu.torch_cells import torch_cell

        return torch_cell(layer, candidate, batch, dtype=self.dtype, compiled=self.compiled)

    def packed_bytes(self, layer: Layer, candidate: Candidate) -> int:
        """Two bytes for a float weight; one for the others, and a float32 scale for each channel."""
        return 2 * layer.weight_numel if candidate.is_float or not layer.weight_shape else layer.weight_numel + 4 * layer.weight_shape[0]


def _refusal(layer: Layer, multiple: int, kernel: str) -> str | None:
    """Why a unit does not run in a product kernel of torch; None where it does. Nothing is padded, cut or computed on the CPU instead."""
    if layer.op == "matmul":
        return "activation products run in float on this backend"
    if layer.op == "conv2d":
        c = layer.conv or ConvAttributes()
        if layer.weight_shape[2:] != (1, 1) or (c.stride, c.padding, c.groups) != ((1, 1), (0, 0), 1):
            return "torch has no 8-bit convolution for CUDA beyond 1 x 1 ones of stride 1; triton-cuda has"
    n, k = layer.weight_shape[:2]
    bad = [f"{name} = {size}" for name, size in (("inputs", k), ("outputs", n)) if size % multiple]
    return f"{kernel} takes multiples of {multiple}; this unit has {' and '.join(bad)}" if bad else None
