"""`gemlite`: weight-only products by the package gemlite (its own Triton kernels), an optional extra, for comparison with `triton-cuda`."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import ClassVar, Literal

from mpsearch.errors import TableError
from mpsearch.hardware.backends._base import BACKENDS, Backend, Cell, Support
from mpsearch.hardware.gpu import probe
from mpsearch.problem import FLOAT, Candidate, Layer

BITS = (2, 4, 8)
COLUMNS = 32


@BACKENDS.register("gemlite")
@dataclass(frozen=True)
class Gemlite(Backend):
    """gemlite on CUDA: half-precision inputs, weights of 2, 4 or 8 bits with one scale for each output channel.

    Args:
        threads: 1; a GPU has no pool.
        dtype: Of every tensor between units.
    """

    name: ClassVar[str]
    on_gpu: ClassVar[bool] = True
    threads: int = 1
    dtype: Literal["fp16", "bf16"] = "fp16"

    @property
    def version(self) -> str:
        """Of the package."""
        try:
            return f"{importlib.metadata.version('gemlite')}-{self.dtype}"
        except importlib.metadata.PackageNotFoundError:
            return f"none-{self.dtype}"

    def supports(self, layer: Layer, candidate: Candidate) -> Support:
        """Linear layers at W2A16, W4A16 and W8A16, and float through torch."""
        why = probe.why_not((8, 0), "gemlite", ("gemlite", "triton"))
        if why is not None:
            hint = "; pip install 'mpsearch[gemlite]'" if "not installed" in why else ""
            return Support("no", why + hint, None)
        if candidate.is_float:
            return Support("ok", f"{self.dtype} kernels of cuDNN and cuBLAS", FLOAT)
        if layer.op != "linear":
            return Support("no", "gemlite has linear layers only; triton-cuda has convolutions", None)
        if not candidate.weight_only or candidate.w_bits not in BITS:
            return Support("no", f"gemlite is offered for float inputs and weights of 2, 4 or 8 bits, not {candidate}", None)
        if layer.weight_shape[1] % COLUMNS:
            return Support("no", f"gemlite takes inputs in multiples of {COLUMNS}; this unit has {layer.weight_shape[1]}", None)
        return Support("ok", f"w{candidate.w_bits} x half precision kernel of gemlite", candidate)

    def build(self, layer: Layer, candidate: Candidate, batch: int) -> Cell:
        """The unit on random data, half-precision tensors in and out, checked against float64."""
        probe.needed()
        if self.supports(layer, candidate).kernel != candidate:
            raise TableError(f"{self.name} has no kernel for {layer.name!r} at {candidate}: {self.supports(layer, candidate).reason}.")
        if candidate.is_float:
            from mpsearch.hardware.gpu.torch_cells import torch_cell

            return torch_cell(layer, candidate, batch, dtype=self.dtype)
        return _cell(layer, candidate, batch, self.dtype)

    def packed_bytes(self, layer: Layer, candidate: Candidate) -> int:
        """Densely packed codes, and a half-precision scale and zero point for each channel."""
        if candidate.is_float or not layer.weight_shape or candidate.w_bits is None:
            return 2 * layer.weight_numel
        return layer.weight_numel * candidate.w_bits // 8 + 4 * layer.weight_shape[0]


def _cell(layer: Layer, candidate: Candidate, batch: int, dtype: str) -> Cell:
    import torch
    from gemlite.helper import A16Wn

    from mpsearch.hardware.gpu.cells import TOLERANCE, TYPES, Draw, Run, finished

    draw, bits, kind = Draw.of(layer, batch, TYPES[dtype], "cuda"), candidate.w_bits or 8, TYPES[dtype]
    weight = draw.codes(bits)
    scale = weight.scale.to(kind)
    half = 1 << (bits - 1)
    values = (weight.codes.double() - half) * scale.double().view(-1, 1)

    def make() -> Run:
        zeros = torch.full_like(scale, half).view(-1, 1)
        helper = A16Wn(device="cuda", dtype=kind)
        columns = layer.weight_shape[1]
        unit, x = helper.from_weights(weight.codes.to(torch.uint8), scale.view(-1, 1).clone(), zeros, bits, columns, draw.bias), draw.x[0].clone()
        return lambda: unit(x)

    size = layer.weight_numel * bits // 8 + 4 * layer.weight_shape[0]
    return finished(draw, make, draw.reference(draw.x[0], values), (f"gemlite_w{bits}a16",), True, 4 * TOLERANCE[kind], size)
