"""Units as an engine tells them: the shape of a layer, its kernel, and what was fused into it."""

from __future__ import annotations

from collections.abc import Sequence

from mpsearch.hardware.trtexec.engine import EngineLayer
from mpsearch.problem import ConvAttributes, Layer

FLOATS = ("fp16", "bf16")
"""Types of a unit in the float that TensorRT is asked for; fp32 is a kernel of its own."""
LEAVES_FLOAT = ">float"
"""End of the name of a kernel that reads integers and writes float."""
_GEMMS = ("Gemm", "MatMul", "MatrixMultiply", "FullyConnected")


def unit_layer(layer: EngineLayer) -> Layer | None:
    """The unit that a layer computes, at batch 1; None where its shape is not told.

    A fully connected layer is a convolution of 1 x 1 pixels to older versions; the name of its node tells.
    """
    about = layer.about
    prefix = "Conv" if "ConvKernel" in about else ""
    kernel, maps = about.get(f"{prefix}Kernel"), about.get(f"{prefix}OutMaps")
    if (
        not layer.inputs
        or not layer.outputs
        or kernel is None
        or maps is None
        or len(layer.inputs[0].dims) != 4
    ):
        return None
    (_, channels, *image), (_, _, *given) = layer.inputs[0].dims, layer.outputs[0].dims
    bias = bool(about.get("HasBias", about.get("ConvHasBias", (about.get("ConvBias") or {}).get("Count", 0))))
    if image == [1, 1] and any(name in layer.name for name in _GEMMS):
        return Layer(
            layer.name,
            "linear",
            (maps, channels),
            ((1, channels),),
            (1, maps),
            maps * channels,
            "",
            bias=bias,
        )
    groups = int(about.get(f"{prefix}Groups", 1))
    stride, padding, dilation = (
        _pair(about[f"{prefix}{what}"]) for what in ("Stride", "PrePadding", "Dilation")
    )
    conv = ConvAttributes(stride, padding, dilation, groups)
    weight = (int(maps), channels // groups, *map(int, kernel))
    if prefix:  # its output is behind the pool
        given = [
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, p, d, k, t in zip(image, conv.padding, conv.dilation, kernel, conv.stride, strict=True)
        ]
    macs = int(maps) * given[0] * given[1] * weight[1] * weight[2] * weight[3]
    return Layer(
        layer.name,
        "conv2d",
        weight,
        ((1, channels, *image),),
        (1, int(maps), *given),
        macs,
        "",
        bias=bias,
        conv=conv,
    )


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def kernel_of(layer: EngineLayer) -> str:
    """The kernel that ran: `float` (half precision), `fp32`, `W8A8`, or the type's own name."""
    found = layer.input_type
    if found == "int8":
        return "W8A8"
    return "float" if found in FLOATS else found


def row_kernel(layer: EngineLayer) -> str:
    """As `kernel_of`, an integer kernel that writes float told apart: it cannot be fused with an integer
    reader.
    """
    kernel = kernel_of(layer)
    return kernel + LEAVES_FLOAT if kernel == "W8A8" and layer.output_type != "int8" else kernel


def residual_type(layer: EngineLayer) -> str | None:
    """Type of the residual operand that a unit adds; None where it adds none."""
    return layer.inputs[1].dtype if len(layer.inputs) == 2 else None


def absorbed(layer: EngineLayer) -> str:
    """What ran, for people: TensorRT's kind, the nodes it computes, and the types it reads and writes."""
    types = ">".join("+".join(t.dtype for t in side) for side in (layer.inputs, layer.outputs))
    return f"{layer.kind}: {' + '.join(layer.nodes)} ({types})"
