"""What a unit is timed and checked on: random data that every backend draws alike, and the same unit in
float64 arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.hardware.qdq import Array, Grid, QuantizedWeight
from mpsearch.problem import ConvAttributes, Layer

_SEED = 0


@dataclass(frozen=True)
class Draw:
    """A unit on random data.

    Args:
        feeds: `x0`, and `x1` for a product of activations; float32, batch leading.
        weight: Float32; None for a product. The first output channel is at one end of its range throughout,
            so that a product that overflows is seen.
        bias: Float32 [C_out]; None where the unit has none.
    """

    feeds: dict[str, NDArray[np.float32]]
    weight: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None


def draw(layer: Layer, batch: int) -> Draw:
    """The same numbers for the same shapes, whatever the backend."""
    generator = np.random.default_rng(_SEED)
    shapes = [(s[0] * batch, *s[1:]) for s in layer.input_shapes]
    feeds = {f"x{i}": generator.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    if not layer.weight_shape:
        return Draw(feeds, None, None)
    weight = (generator.standard_normal(layer.weight_shape) * 0.05).astype(np.float32)
    weight[0] = np.abs(weight[0]).max()
    return Draw(
        feeds,
        weight,
        generator.standard_normal(layer.weight_shape[0]).astype(np.float32) if layer.bias else None,
    )


def quantized(weight: NDArray[np.float32], bits: int) -> QuantizedWeight:
    """Symmetric codes of `bits`, one scale for each output channel, from the largest value; [C_out, ...]."""
    top = 2 ** (bits - 1) - 1
    scale = (np.abs(weight.reshape(len(weight), -1)).max(1) / top).astype(np.float32)
    return QuantizedWeight(
        np.round(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8), scale
    )


def values_of(weight: QuantizedWeight) -> NDArray[np.float64]:
    """What the codes stand for."""
    return weight.codes.astype(np.float64) * weight.scale.astype(np.float64).reshape(
        -1, *[1] * (weight.codes.ndim - 1)
    )


def grid_of(values: Array) -> Grid:
    """The 8-bit grid from the least to the greatest value, 0 included."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = max((high - low) / 255, 1e-8)
    return Grid(float(np.float32(scale)), int(np.clip(np.round(-low / scale), 0, 255)))


def on_grid(x: NDArray[np.float32], grid: Grid) -> NDArray[np.float64]:
    """`x` rounded to the nearest point of the grid."""
    codes = np.clip(np.round(x / np.float32(grid.scale)) + grid.zero_point, 0, 2**grid.bits - 1)
    return np.asarray((codes - grid.zero_point) * np.float64(grid.scale))


def reference(
    layer: Layer,
    feeds: dict[str, Array],
    weight: NDArray[np.float64] | None,
    bias: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """The unit in float64."""
    x = feeds["x0"].astype(np.float64)
    if weight is None:
        return np.asarray(x @ feeds["x1"].astype(np.float64))
    if layer.op == "linear":
        return np.asarray(x @ weight.T + (0.0 if bias is None else bias))
    return _convolved(layer.conv or ConvAttributes(), x, weight, bias)


def _convolved(
    conv: ConvAttributes,
    x: NDArray[np.float64],
    weight: NDArray[np.float64],
    bias: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    (sy, sx), (py, px), (dy, dx), groups = conv.stride, conv.padding, conv.dilation, conv.groups
    padded = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
    kh, kw = weight.shape[2:]
    height, width = (
        (padded.shape[2] - dy * (kh - 1) - 1) // sy + 1,
        (padded.shape[3] - dx * (kw - 1) - 1) // sx + 1,
    )
    batch, channels = x.shape[:2]
    inputs = padded.reshape(batch, groups, channels // groups, *padded.shape[2:])
    kernels = weight.reshape(groups, -1, *weight.shape[1:])
    total = np.zeros((batch, groups, kernels.shape[1], height, width))
    for i in range(kh):
        for j in range(kw):
            window = inputs[
                ..., i * dy : i * dy + sy * (height - 1) + 1 : sy, j * dx : j * dx + sx * (width - 1) + 1 : sx
            ]
            total += np.einsum("bgchw,goc->bgohw", window, kernels[..., i, j], optimize=True)
    result = total.reshape(batch, -1, height, width)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def relative_error(output: Array, wanted: NDArray[np.float64]) -> float:
    """Max |y - reference| / max |reference|."""
    return float(np.abs(output - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))
