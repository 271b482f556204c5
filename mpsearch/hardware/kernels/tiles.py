"""Tile sizes of the product kernel, by a fixed rule of the shape and the number of processors."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One way to cut a product into programs.

    Args:
        block_m: Rows of A in a program.
        block_n: Rows of W.
        block_k: Columns of both in a step.
        warps: Warps of a program.
        stages: Steps whose loads are in flight.
        split_k: Programs that share the columns of one tile; their sums are added by a second kernel.
        group_m: Rows of tiles that run next to each other.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    split_k: int = 1
    group_m: int = 8

    def __str__(self) -> str:
        """`64x128x64w4s3k1`."""
        return f"{self.block_m}x{self.block_n}x{self.block_k}w{self.warps}s{self.stages}k{self.split_k}"


@dataclass(frozen=True)
class Shape:
    """What decides the tile besides the device.

    Args:
        m: Rows of A. n: Rows of W in a group. k: Columns.
        item: Bytes of an element of A: 1 for int8, 2 for half precision.
        groups: Groups of a convolution.
    """

    m: int
    n: int
    k: int
    item: int
    groups: int = 1


def default_tile(shape: Shape, processors: int = 132) -> Tile:
    """The tile of a shape: as large as keeps every processor busy, K split where even the smallest tiles do
    not.

    Args:
        shape: Shape of the product.
        processors: Streaming multiprocessors of the device.
    """
    block_k = 64 if shape.item == 1 else 32
    while block_k < 128 // shape.item and block_k < shape.k:
        block_k *= 2
    block_m = 16 if shape.m <= 16 else 32 if shape.m <= 32 else 64
    block_n = 64 if shape.n > 32 else 32
    if shape.groups * math.ceil(shape.m / 128) * math.ceil(shape.n / 128) >= processors:
        block_m = block_n = 128
    programs = shape.groups * math.ceil(shape.m / block_m) * math.ceil(shape.n / block_n)
    split = 1
    while split < 8 and 2 * split * programs <= processors and shape.k >= 2 * split * 4 * block_k:
        split *= 2
    return Tile(block_m, block_n, block_k, 8 if block_m * block_n >= 128 * 128 else 4, 3, split)
