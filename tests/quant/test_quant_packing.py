"""Packing: every width round-trips exactly and wastes less than a byte a row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch.errors import CheckpointError
from mpsearch.quant import pack, packed_nbytes, unpack

WIDTHS = range(1, 9)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(0, 10**6),
    st.sampled_from([torch.uint8, torch.int16, torch.int64]),
)
def test_round_trip_and_waste(bits, rows, columns, seed, dtype):
    codes = torch.randint(2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(dtype)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_nbytes(1, columns, bits))
    assert packed.nbytes == packed_nbytes(rows, columns, bits)
    assert 0 <= 8 * packed_nbytes(1, columns, bits) - bits * columns < 8
    found = unpack(packed, bits, columns)
    assert found.dtype == torch.uint8
    assert torch.equal(found.to(dtype), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_of_a_width(bits):
    codes = torch.arange(2**bits).reshape(1, -1)
    assert torch.equal(unpack(pack(codes, bits), bits, 2**bits).long(), codes)


def test_the_stream_is_little_endian():
    assert pack(torch.tensor([[1, 2, 3, 4, 5]]), 3).tolist() == [
        [1 | 2 << 3 | (3 & 3) << 6, 3 >> 2 | 4 << 1 | 5 << 4]
    ]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("over", [True, False])
def test_a_code_that_does_not_fit_is_refused(bits, over):
    codes = torch.tensor([[0, 2**bits if over else -1]])
    with pytest.raises(ValueError, match=rf"0 \.\. {2**bits - 1}"):
        pack(codes, bits)


@pytest.mark.parametrize(
    "codes",
    [torch.zeros(3, dtype=torch.uint8), torch.zeros(1, 2, 3, dtype=torch.uint8), torch.tensor([[0.5]])],
)
def test_only_a_matrix_of_integers_is_packed(codes):
    with pytest.raises(ValueError, match="matrix of integers"):
        pack(codes, 4)


@pytest.mark.parametrize("bits", [-1, 0, 9, 16])
def test_a_width_that_does_not_exist_is_refused(bits):
    with pytest.raises(ValueError, match="1 to 8"):
        pack(torch.zeros(1, 8, dtype=torch.int64), bits)
    with pytest.raises(CheckpointError, match="1 to 8"):
        unpack(torch.zeros(1, max(bits, 0), dtype=torch.uint8), bits, 8)


@pytest.mark.parametrize("shape", [(2, 3), (2, 5), (4,), (1, 2, 4)])
def test_rows_of_another_width_are_refused(shape):
    with pytest.raises(CheckpointError, match="4 bytes a row"):
        unpack(torch.zeros(shape, dtype=torch.uint8), 4, 8)
