"""Two float32 numbers that say how an input is quantised: its step, and which grid has that step.

| second number | grid |
|---|---|
| 0 .. 2^bits - 1 | unsigned uniform with that zero point |
| 1000 + 100 s + m | two regions, steps 2^m apart; s: 0 sign, 1 magnitude, 2 signed_magnitude, 3 unsigned |
| 2001, 2002 | logarithmic, base 2 or sqrt 2; the step is the largest level |
| 3000 | signed uniform around zero |

Each is a whole number that float32 holds exactly, so that every grid takes the same eight bytes and the size
of a file does not depend on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpsearch.errors import CheckpointError, UserError
from mpsearch.quant import ActivationQuantizer, AffineParams
from mpsearch.quant.regions import MAX_SHIFT, LogParams, Split, TwoRegionParams

_SIGNED, _TWO_REGIONS, _LOG = 3000, 1000, 2000
_SPLITS: tuple[Split, ...] = ("sign", "magnitude", "signed_magnitude", "unsigned")


def encode(quantizer: ActivationQuantizer) -> Tensor:
    """Step and grid, float32 [2]. Raises UserError on a grid that has no number, such as one step for each
    channel.
    """
    if isinstance(quantizer, AffineParams) and quantizer.scale.ndim == 0:
        return _pair(quantizer.scale, _SIGNED if quantizer.symmetric else int(quantizer.zero_point))
    if isinstance(quantizer, TwoRegionParams):
        return _pair(quantizer.step, _TWO_REGIONS + 100 * _SPLITS.index(quantizer.split) + quantizer.shift)
    if isinstance(quantizer, LogParams):
        return _pair(quantizer.scale, _LOG + quantizer.root)
    raise UserError(
        f"A packed checkpoint has no form for the input quantiser {quantizer!r}. It holds uniform grids "
        "of one step, two regions and logarithms."
    )


def decode(given: Tensor, bits: int, unit: str) -> ActivationQuantizer:
    """Inverse of `encode`.

    Args:
        given: float32 [2].
        bits: Bits of the grid.
        unit: For messages.
    Raises: CheckpointError: The step is not positive and finite, or the second number is none of the table's.
    """
    if not (torch.isfinite(given).all() and given[0] > 0):
        raise CheckpointError(f"a scale of unit {unit!r} is not positive and finite.")
    step, number = given[0].clone(), float(given[1])
    grid = int(number)
    if grid == number:
        if grid in range(1 << bits) or grid == _SIGNED:
            zero = torch.tensor(0 if grid == _SIGNED else grid, dtype=torch.int32)
            return AffineParams(step, zero, bits, grid == _SIGNED)
        split, shift = divmod(grid - _TWO_REGIONS, 100)
        if split in range(len(_SPLITS)) and shift <= MAX_SHIFT:
            return TwoRegionParams(step, shift, bits, _SPLITS[split])
        if grid - _LOG in (1, 2):
            return LogParams(step, bits, grid - _LOG)
    raise CheckpointError(
        f"the zero point {number:g} of unit {unit!r} is not one of 0 .. {2**bits - 1}, and no other grid "
        "has that number."
    )


def _pair(step: Tensor, grid: int) -> Tensor:
    return torch.stack([step.detach().cpu().float(), torch.tensor(float(grid))])
