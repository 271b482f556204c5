"""Tile sizes of the product kernel: the ones to try on a device, the one to take where nothing was tried, and the cache of what was found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mpsearch import files
from mpsearch.errors import TableError

SCHEMA = 1


@dataclass(frozen=True, order=True)
class Tile:
    """One way to cut a product into programs.

    Args:
        block_m: Rows of A in a program.
        block_n: Rows of W.
        block_k: Columns of both in a step.
        warps: Of a program.
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

    def shared_bytes(self, item: int) -> int:
        """Bytes of shared memory that the stages of both operands take, unpacked, at `item` bytes an element."""
        return self.stages * (self.block_m + self.block_n) * self.block_k * item


@dataclass(frozen=True)
class Shape:
    """What decides the best tile besides the device.

    Args:
        m: Rows of A. n: Rows of W in a group. k: Columns.
        w_bits: Of a weight.
        activation: `int8`, `float16` or `bfloat16`.
        groups: Of a convolution.
        conv: Implicit GEMM, whose A is gathered: kernel, stride and dilation, such as `3x3s1d1`; empty for a plain product.
    """

    m: int
    n: int
    k: int
    w_bits: int
    activation: str
    groups: int = 1
    conv: str = ""

    @property
    def item(self) -> int:
        """Bytes of an element of A."""
        return 1 if self.activation == "int8" else 2

    def __str__(self) -> str:
        """The key in a cache."""
        return f"{self.m}x{self.n}x{self.k} w{self.w_bits} {self.activation} g{self.groups} {self.conv}".rstrip()


def default_tile(shape: Shape, processors: int = 132) -> Tile:
    """A tile that suits the shape where none was measured: as large as keeps every processor busy, K split where even the smallest tiles do not.

    Args:
        shape: Of the product.
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


def tiles_to_try(shape: Shape, shared_bytes: int = 227 * 1024, processors: int = 132) -> list[Tile]:
    """Tiles worth a measurement, the default first.

    Args:
        shape: Of the product.
        shared_bytes: That a program may have.
        processors: Streaming multiprocessors of the device.
    """
    narrow = shape.m <= 32
    wide = ((16, 32), (16, 64), (16, 128), (32, 64)) if narrow else ((64, 64), (64, 128), (128, 64), (128, 128), (64, 256), (128, 256), (256, 128))
    depths = (64, 128, 256) if shape.item == 1 else (32, 64, 128)
    found = [default_tile(shape, processors)]
    for block_m, block_n in wide:
        for block_k in depths:
            programs = shape.groups * math.ceil(shape.m / block_m) * math.ceil(shape.n / block_n)
            splits = [1] if programs >= processors or shape.k < 8 * block_k else [1, 2, 4, 8]
            for split in (s for s in splits if s == 1 or programs * s <= 4 * processors):
                warps = 8 if block_m * block_n >= 128 * 128 else 4
                found += [Tile(block_m, block_n, block_k, warps, stages, split) for stages in ((4, 6) if narrow else (3, 4))]
    fitting = [t for t in dict.fromkeys(found) if t.shared_bytes(shape.item) <= shared_bytes and (t.block_k <= 2 * shape.k or t == found[0])]
    return [t for t in fitting if t == found[0] or ((t.block_m < 2 * shape.m or t.block_m == 16) and (t.block_n < 2 * shape.n or t.block_n == 32))]


@dataclass
class TileCache:
    """Tiles found on one device with one version of Triton.

    Args:
        device: Its name and compute capability.
        version: Of Triton.
        found: By shape: the tile, and the microseconds it took when it was chosen.
    """

    device: str
    version: str
    found: dict[str, tuple[Tile, float]] = field(default_factory=dict)

    def tile(self, shape: Shape, processors: int = 132) -> Tile:
        """What was found, else the default."""
        return self.found[str(shape)][0] if str(shape) in self.found else default_tile(shape, processors)

    def save(self, path: Path) -> None:
        """Write whole or not at all."""
        rows = {key: {**asdict(tile), "microseconds": us} for key, (tile, us) in sorted(self.found.items())}
        files.write_json(path, {"schema": SCHEMA, "device": self.device, "version": self.version, "tiles": rows})

    @classmethod
    def open(cls, path: Path, device: str, version: str) -> TileCache:
        """The cache in a file; an empty one where there is no file, or one of another device or version of Triton: its tiles would be guesses.

        Raises: TableError: The file is not a tile cache.
        """
        if not path.is_file():
            return cls(device, version)
        try:
            data = json.loads(path.read_text())
            if (data["schema"], data["device"], data["version"]) != (SCHEMA, device, version):
                return cls(device, version)
            rows = {key: dict(row) for key, row in data["tiles"].items()}
            return cls(
                device, version, {key: (Tile(**{k: v for k, v in row.items() if k != "microseconds"}), row["microseconds"]) for key, row in rows.items()}
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TableError(f"{path} is not a cache of tiles ({type(error).__name__}: {error}). Remove it; the tiles are then found again.") from None


def tune(shape: Shape, tiles: Iterable[Tile], time_us: Callable[[Tile], float | None], cache: TileCache) -> Tile:
    """The fastest of some tiles, kept in the cache; measured only where the cache has none.

    Args:
        shape: Of the product.
        tiles: To try.
        time_us: Microseconds with a tile; None where the device cannot run it (too little shared memory, too few registers).
        cache: Where it is looked up and kept.
    Raises: TableError: The device can run none of them.
    """
    if str(shape) in cache.found:
        return cache.found[str(shape)][0]
    timed = [(us, tile) for tile in tiles if (us := time_us(tile)) is not None]
    if not timed:
        raise TableError(
            f"The device runs none of the tiles tried for {shape}. Its shared memory is smaller than any of them needs; add smaller ones to tiles_to_try."
        )
    us, best = min(timed)
    cache.found[str(shape)] = (best, us)
    return best
