"""Bit-packed weights in the Triton kernels: codes from the planes of a `PlaneMatrix`, as the numbers that a
product reads. Only code for the device stands here.

`tl.join` puts the codes of a byte next to each other in one thread, so no data moves between threads.
"""

import triton
import triton.language as tl


@triton.jit
def _spread(held, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """ROWS x COLUMNS * WIDTH / 8 bytes to ROWS x COLUMNS codes: the code of column c lies at bit (c mod 8 /
    WIDTH) * WIDTH of its byte.
    """
    if WIDTH == 8:
        codes = held
    elif WIDTH == 4:
        codes = tl.reshape(tl.join(held & 15, held >> 4), (ROWS, COLUMNS))
    elif WIDTH == 2:
        even, odd = tl.join(held & 3, (held >> 4) & 3), tl.join((held >> 2) & 3, held >> 6)
        codes = tl.reshape(tl.join(even, odd), (ROWS, COLUMNS))
    else:
        even = tl.join(tl.join(held & 1, (held >> 4) & 1), tl.join((held >> 2) & 1, (held >> 6) & 1))
        odd = tl.join(tl.join((held >> 1) & 1, (held >> 5) & 1), tl.join((held >> 3) & 1, held >> 7))
        codes = tl.reshape(tl.join(even, odd), (ROWS, COLUMNS))
    return codes


@triton.jit
def _plane(
    w,
    rows,
    column,
    all_rows,
    units,
    SHIFT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Codes of one plane, ROWS x COLUMNS, from column `column` (a multiple of COLUMNS)."""
    at = column * WIDTH // 8 + tl.arange(0, COLUMNS * WIDTH // 8)
    places = w + all_rows * (units * (4 * SHIFT)) + rows[:, None] * (units * (4 * WIDTH)) + at[None, :]
    held = tl.load(places) if EVEN else tl.load(places, mask=at[None, :] < units * (4 * WIDTH), other=0)
    return _spread(held, WIDTH, ROWS, COLUMNS) << SHIFT


@triton.jit
def load_codes(
    w,
    rows,
    column,
    all_rows,
    units,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Codes of a tile of a `PlaneMatrix` of `all_rows` rows and `units` * 32 columns, uint8 ROWS x
    COLUMNS.
    """
    if BITS == 8:
        codes = _plane(w, rows, column, all_rows, units, 0, 8, ROWS, COLUMNS, EVEN)
    elif BITS >= 4:
        codes = _plane(w, rows, column, all_rows, units, 0, 4, ROWS, COLUMNS, EVEN)
        if BITS & 2:
            codes |= _plane(w, rows, column, all_rows, units, 4, 2, ROWS, COLUMNS, EVEN)
        if BITS & 1:
            codes |= _plane(w, rows, column, all_rows, units, 4 + (BITS & 2), 1, ROWS, COLUMNS, EVEN)
    elif BITS >= 2:
        codes = _plane(w, rows, column, all_rows, units, 0, 2, ROWS, COLUMNS, EVEN)
        if BITS & 1:
            codes |= _plane(w, rows, column, all_rows, units, 2, 1, ROWS, COLUMNS, EVEN)
    else:
        codes = _plane(w, rows, column, all_rows, units, 0, 1, ROWS, COLUMNS, EVEN)
    return codes


@triton.jit
def as_signed(codes, BITS: tl.constexpr):
    """Codes as int8, 2^(bits-1) lower."""
    if BITS == 8:
        values = (codes ^ 128).to(tl.int8, bitcast=True)
    else:
        values = codes.to(tl.int8, bitcast=True) - (1 << (BITS - 1))
    return values


@triton.jit
def as_float(codes, BITS: tl.constexpr, TYPE: tl.constexpr):
    """Codes as fp16 or bf16, exactly. Written into the mantissa of 1024 (of 128 in bf16), because integer
    conversion is slow on the device.
    """
    if TYPE == tl.float16:
        values = (codes.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1024.0
    elif BITS < 8:
        values = (codes.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True) - 128.0
    else:
        values = codes.to(tl.bfloat16)
    return values.to(TYPE)
