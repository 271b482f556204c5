"""Weights whose products with 8-bit inputs fit into 16 bits, two at a time.

Without VNNI the fast kernels of x86 multiply unsigned inputs by signed weights, add each pair of neighbours
and cut the sum off at 16 bits (pmaddubsw). ONNX Runtime pairs along the input channels at one place of the
kernel, the channels changing fastest; two neighbours of one sign whose codes add up to no more than 32767 /
255 = 128 are exact whatever the inputs. Only rows (output channels) that have a wider pair are put on a
coarser scale, so that a file is right on every processor and most of its eight bits stay. Depthwise
convolutions are added in 32 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpsearch.hardware.qdq import QuantizedWeight

_SUM_LIMIT = 2**15 - 1


def widest_pairs(codes: NDArray[np.int8]) -> NDArray[np.int16]:
    """Greatest sum, without its sign, of two neighbours of one sign in each row, [C_out].

    Neighbours in the file's order count as well as those in the kernels', at odd places as well as at even
    ones.

    Args:
        codes: [C_out, C_in, ...].
    """
    rows = codes.astype(np.int16)
    orders = [rows.reshape(len(rows), -1), np.moveaxis(rows, 1, -1).reshape(len(rows), -1)]
    found: NDArray[np.int16] = np.maximum(*(_widest(order) for order in orders))
    return found


def without_overflow(weight: QuantizedWeight, input_bits: int = 8) -> QuantizedWeight:
    """The weight with no pair that overflows: rows that have one are rounded to coarser scales, all others
    stay.

    Args:
        weight: [C_out, C_in, ...].
        input_bits: Bits of the unsigned codes that it is multiplied by.
    """
    limit = _SUM_LIMIT // (2**input_bits - 1)
    if weight.codes.size and 2 * max(int(weight.codes.max()), -int(weight.codes.min())) <= limit:
        return weight
    widest = widest_pairs(weight.codes)
    # less one, because the roundings of a pair may add one
    share = np.where(widest > limit, (limit - 1) / np.maximum(widest, 1), 1.0)
    codes = np.round(weight.codes * share.reshape(-1, *[1] * (weight.codes.ndim - 1))).astype(np.int8)
    return QuantizedWeight(codes, (weight.scale / share).astype(np.float32))


def is_depthwise(weight_shape: tuple[int, ...], groups: int) -> bool:
    """Whether a convolution has one input and one output channel in each of several groups."""
    return len(weight_shape) > 2 and weight_shape[1] == 1 and 1 < groups == weight_shape[0]


def _widest(rows: NDArray[np.int16]) -> NDArray[np.int16]:
    padded = np.pad(rows, ((0, 0), (0, 1)))
    up, down = np.maximum(padded, 0), np.maximum(-padded, 0)
    found: NDArray[np.int16] = np.maximum(up[:, 1:] + up[:, :-1], down[:, 1:] + down[:, :-1]).max(1)
    return found
