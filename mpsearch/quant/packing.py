"""Bit packing: codes of 2 to 8 bits in a dense little-endian bit stream, each row starting on a byte.

Rows are output channels, so a row can be read alone; the waste is less than one byte for each row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import CheckpointError


def packed_nbytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of `rows` x `columns` codes of `bits` bits."""
    return rows * (-(-columns * bits // 8))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes.

    Args:
        codes: R x n integers in 0 .. 2^bits - 1.
        bits: 1 to 8.
    Returns: R x ceil(n * bits / 8) uint8.
    Raises: ValueError: A code does not fit, or the width does not exist.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"Codes of {bits} bits cannot be packed; a code has 1 to 8 bits.")
    values = codes.cpu().numpy()
    if (
        values.ndim != 2
        or codes.is_floating_point()
        or (values.size and (values.min() < 0 or values.max() >= 2**bits))
    ):
        raise ValueError(f"Codes must be a matrix of integers in 0 .. {2**bits - 1}.")
    as_bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1, bitorder="little", count=bits)
    return torch.from_numpy(np.packbits(as_bits.reshape(values.shape[0], -1), axis=1, bitorder="little"))


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Inverse of `pack`.

    Args:
        packed: R x ceil(columns * bits / 8) uint8.
        bits: 1 to 8.
        columns: Codes of a row.
    Returns: R x columns uint8.
    Raises: CheckpointError: The width does not exist, or does not fit `columns`.
    """
    if not 1 <= bits <= 8:
        raise CheckpointError(f"Codes of {bits} bits cannot be unpacked; a code has 1 to 8 bits.")
    if packed.ndim != 2 or packed.shape[1] != packed_nbytes(1, columns, bits):
        raise CheckpointError(
            f"Packed rows are {tuple(packed.shape)}; {columns} codes of {bits} bits need "
            f"{packed_nbytes(1, columns, bits)} bytes a row."
        )
    as_bits = np.unpackbits(packed.cpu().numpy(), axis=1, bitorder="little", count=columns * bits)
    spread = as_bits.reshape(packed.shape[0], columns, bits)
    return torch.from_numpy(np.packbits(spread, axis=-1, bitorder="little")[..., 0])
