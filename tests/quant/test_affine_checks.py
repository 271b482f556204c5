"""A quantiser that could only give NaN, or no grid, is refused where it is made."""

import pytest
import torch

from mpsearch.errors import UserError
from mpsearch.quant import AffineParams


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_bits_are_2_to_8(bits):
    with pytest.raises(UserError, match=f"has {bits} bits; it must have 2 to 8"):
        AffineParams(torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), bits, True)


@pytest.mark.parametrize("value", [0.0, -0.5, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_scale_is_positive_and_finite(value, shape):
    scale = torch.full(shape, 0.1)
    scale.view(-1)[-1] = value
    with pytest.raises(UserError, match="must be positive and finite"):
        AffineParams(scale, torch.zeros(shape, dtype=torch.int32), 4, True, 0 if shape else None)


def test_every_width_and_the_smallest_scale_are_taken():
    for bits in range(2, 9):
        assert (
            AffineParams(torch.tensor(1e-8), torch.tensor(0, dtype=torch.int32), bits, False).qmax
            == 2**bits - 1
        )
