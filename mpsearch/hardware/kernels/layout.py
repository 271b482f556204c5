"""How codes of 1 to 8 bits lie in memory for the kernels: bit planes of 8, 4, 2 and 1 bits, exactly `bits`
bits for each weight but for padding.

A plane of w bits holds bits `shift` .. `shift + w - 1` of every code, densely: w divides 8, so no code
straddles a byte and a kernel spreads a byte with shifts alone. Within a plane the bytes of a row are those of
`mpsearch.quant.packing.pack`; a row's columns are padded to a multiple of 32 so that rows start on whole
bytes in every plane. The planes of a matrix lie one behind the other: 3 bits are 2 + 1, 5 are 4 + 1, 6 are 4
+ 2, 7 are 4 + 2 + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COLUMN_UNIT = 32
"""Columns of a row are padded to a multiple of this: the narrowest plane then has rows of 4 bytes."""


def planes(bits: int) -> tuple[tuple[int, int], ...]:
    """(width, shift) of every plane of a code, lowest bits first.

    Raises: ValueError: Not 1 to 8 bits.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"There are no codes of {bits} bits; a code has 1 to 8 bits.")
    found, shift = [], 0
    for width in (8, 4, 2, 1):
        if bits - shift >= width:
            found.append((width, shift))
            shift += width
    return tuple(found)


def padded_columns(columns: int) -> int:
    """Columns as they are stored."""
    return -(-columns // COLUMN_UNIT) * COLUMN_UNIT


def plane_nbytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of `rows` x `columns` codes, padding included."""
    return rows * padded_columns(columns) * bits // 8


@dataclass(frozen=True)
class PlaneMatrix:
    """A packed matrix of codes.

    Args:
        data: uint8 [plane_nbytes]; the planes one behind the other, each row-major.
        rows: R.
        columns: Columns that hold codes; the stored ones are more.
        bits: Bits of a code.
    """

    data: Tensor
    rows: int
    columns: int
    bits: int

    @property
    def column_units(self) -> int:
        """Stored columns over `COLUMN_UNIT`: what the kernels compute every stride from."""
        return padded_columns(self.columns) // COLUMN_UNIT

    def to(self, device: torch.device | str) -> PlaneMatrix:
        """The same matrix on a device."""
        return PlaneMatrix(self.data.to(device), self.rows, self.columns, self.bits)


def pack_planes(codes: Tensor, bits: int) -> PlaneMatrix:
    """Pack unsigned codes.

    Args:
        codes: R x n integers in 0 .. 2^bits - 1.
        bits: 1 to 8.
    Raises: ValueError: A code does not fit, or the width does not exist.
    """
    widths = planes(bits)
    if (
        codes.ndim != 2
        or codes.is_floating_point()
        or (codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits))
    ):
        raise ValueError(
            f"Codes must be a matrix of integers in 0 .. {2**bits - 1}, not {tuple(codes.shape)} of "
            f"{codes.dtype}."
        )
    rows, columns = codes.shape
    padded = torch.zeros((rows, padded_columns(columns)), dtype=torch.uint8, device=codes.device)
    padded[:, :columns] = codes.to(torch.uint8)
    return PlaneMatrix(
        torch.cat([_pack_plane(padded, width, shift) for width, shift in widths]), rows, columns, bits
    )


def unpack_planes(matrix: PlaneMatrix) -> Tensor:
    """Inverse of `pack_planes`: R x n uint8."""
    stored = matrix.column_units * COLUMN_UNIT
    codes = torch.zeros((matrix.rows, stored), dtype=torch.uint8, device=matrix.data.device)
    start = 0
    for width, shift in planes(matrix.bits):
        size = matrix.rows * stored * width // 8
        held = matrix.data[start : start + size].view(matrix.rows, -1, 1)
        places = torch.arange(0, 8, width, dtype=torch.uint8, device=held.device)
        codes |= ((held >> places) & (2**width - 1)).reshape(matrix.rows, stored) << shift
        start += size
    return codes[:, : matrix.columns]


def _pack_plane(codes: Tensor, width: int, shift: int) -> Tensor:
    places = torch.arange(0, 8, width, dtype=torch.uint8, device=codes.device)
    fields = ((codes >> shift) & (2**width - 1)).view(codes.shape[0], -1, 8 // width)
    packed: Tensor = (fields << places).sum(-1, dtype=torch.uint8)
    return packed.flatten()
