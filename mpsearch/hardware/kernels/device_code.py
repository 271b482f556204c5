"""The Triton kernels: a product, the sum of its parts, a depthwise convolution, and codes of an input. Only
code for the device stands here and in `device_weights`; `unit` launches it, `tiles` chooses its tile sizes.

One product kernel serves linear layers and convolutions (implicit GEMM over NHWC: the rows of A are output
pixels, its columns are taps x channels, computed, not stored). A is M x K, W is N x K in bit planes
(`layout`), y = (A W^T) as asked by the epilogue:

    int8 x:  acc = sum_k s u              s = x's code - 2^(a-1), u = w's code - 2^(b-1), both in int8; int32
    sums
             y   = (acc + corr[n] - wz[n] sum_k s) scale[n] + bias[n]
    float x: y   = (sum_k x (code - zero[n])) scale[n] + bias[n], float32 sums

with wz the weight's zero point on u's grid, and corr[n] = K zx wz[n] - zx sum_k u, the part of the zero
points that does not depend on x. Columns past K read s = 0, so whatever the padding of W holds does not
count. The int8 kernel never pads a picture: `quantize_kernel` writes codes into a frame that already holds
the code of zero.
"""

import triton
import triton.language as tl

from mpsearch.hardware.kernels.device_weights import as_float, as_signed, load_codes


@triton.jit
def _finish(acc, columns, scale, bias, corr, N, INTEGER: tl.constexpr, BIAS: tl.constexpr):
    """Sums, rows x columns, to float32 outputs."""
    inside = columns < N
    if INTEGER:
        acc += tl.load(corr + columns, mask=inside, other=0)[None, :]
    y = acc.to(tl.float32) * tl.load(scale + columns, mask=inside, other=0.0)[None, :]
    if BIAS:
        y += tl.load(bias + columns, mask=inside, other=0.0)[None, :]
    return y


@triton.jit
def _tile(pid, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Rows and columns of the tile of a program. Tiles go in bands of GROUP_M rows: what a wave reads of W
    stays in the L2.
    """
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    band = GROUP_M * tiles_n
    first = (pid // band) * GROUP_M
    high = tl.minimum(tiles_m - first, GROUP_M)
    rows = (first + (pid % band) % high) * BLOCK_M + tl.arange(0, BLOCK_M)
    return rows, ((pid % band) // high) * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def _window_of(
    at, OUT_H, OUT_W,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
):  # fmt: skip
    """Picture of an output pixel, and the first line and row of what the pixel reads of it."""
    image, pixel = at // (OUT_H * OUT_W), at % (OUT_H * OUT_W)
    return image, (pixel // OUT_W) * STRIDE_H - PAD_H, (pixel % OUT_W) * STRIDE_W - PAD_W


@triton.jit
def _windows(
    a, corner, top, left, ks, K, H, WIDE, CHANNELS,
    EVEN: tl.constexpr, GROUP_CHANNELS: tl.constexpr, TAPS_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
):  # fmt: skip
    """Columns `ks` of the windows of output pixels, whose first values lie at `corner`, lines `top`, rows
    `left` of a picture; 0 outside of it.
    """
    tap, channel = ks // GROUP_CHANNELS, ks % GROUP_CHANNELS
    down, right = (tap // TAPS_W) * DILATION_H, (tap % TAPS_W) * DILATION_W
    places = corner[:, None] + ((down * WIDE + right) * CHANNELS + channel)[None, :]
    if PAD_H or PAD_W:
        line, row = top[:, None] + down[None, :], left[:, None] + right[None, :]
        held = tl.load(
            a + places,
            mask=(line >= 0) & (line < H) & (row >= 0) & (row < WIDE) & (ks < K)[None, :],
            other=0,
        )
    elif EVEN:
        held = tl.load(a + places)
    else:
        held = tl.load(a + places, mask=(ks < K)[None, :], other=0)
    return held


@triton.jit
def _write(
    acc, y, partial, rows, columns, part, shift, scale, bias, corr, M, N, all_rows,
    INTEGER: tl.constexpr, BIAS: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    """A tile of sums, finished where there is one part alone; `shift` is the first column of its group."""
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    at = rows[:, None].to(tl.int64) * all_rows + (shift + columns)[None, :]
    if SPLIT_K == 1:
        out = _finish(acc, columns, scale + shift, bias + shift, corr + shift, N, INTEGER, BIAS)
        tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)
    else:
        tl.store(partial + part.to(tl.int64) * M * all_rows + at, acc, mask=inside)


@triton.jit
def product_kernel(
    a, w, y, partial, scale, bias, corr, zero,
    M, N, K, units, all_rows,
    H, WIDE, CHANNELS, OUT_H, OUT_W,
    BITS: tl.constexpr, INTEGER: tl.constexpr, ZERO: tl.constexpr, BIAS: tl.constexpr,
    CONV: tl.constexpr, EVEN: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr, TAPS_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """y[M, groups * N] = a W^T for each group of a convolution; program (tile of y, part of K, group).

    Args:
        a: int8, fp16 or bf16; M x K rows one behind the other, or N x H x WIDE x CHANNELS if CONV.
        w: Bytes of a `PlaneMatrix` of `all_rows` = groups * N rows and K columns (taps x channels of a group
            if CONV).
        y: M x all_rows, if SPLIT_K is 1.
        partial: SPLIT_K x M x all_rows sums, int32 or float32, if SPLIT_K is more.
        scale, bias: [all_rows] float32. corr, zero: [all_rows] int32; zero is on the grid of the unsigned
            codes for float a, less 2^(bits-1) for int8 a.
        EVEN: K is a multiple of BLOCK_K, so no load in its direction is masked.
    """
    pid, part, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, columns = _tile(pid, M, N, BLOCK_M, BLOCK_N, GROUP_M)
    # offsets of rows pass 2^31; rows and columns past the end repeat others and are not stored
    row_at = (rows % M).to(tl.int64)
    w_rows = group * N + columns % N
    if CONV:
        image, top, left = _window_of(row_at, OUT_H, OUT_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W)
        corner = ((image * H + top) * WIDE + left) * CHANNELS + group * GROUP_CHANNELS
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if INTEGER else tl.float32)
    sums = tl.zeros((BLOCK_M,), tl.int32)
    if ZERO and not INTEGER:
        zeros = tl.load(zero + w_rows).to(a.dtype.element_ty)
    for step in range(part, tl.cdiv(K, BLOCK_K), SPLIT_K):
        start = step * BLOCK_K
        ks = start + tl.arange(0, BLOCK_K)
        if CONV:
            held = _windows(
                a, corner, top, left, ks, K, H, WIDE, CHANNELS,
                EVEN, GROUP_CHANNELS, TAPS_W, PAD_H, PAD_W, DILATION_H, DILATION_W,
            )  # fmt: skip
        elif EVEN:
            held = tl.load(a + row_at[:, None] * K + ks[None, :])
        else:
            held = tl.load(a + row_at[:, None] * K + ks[None, :], mask=(ks < K)[None, :], other=0)
        codes = load_codes(w, w_rows, start, all_rows, units, BITS, BLOCK_N, BLOCK_K, EVEN)
        if INTEGER:
            acc = tl.dot(held, tl.trans(as_signed(codes, BITS)), acc, out_dtype=tl.int32)
            if ZERO:
                sums += tl.sum(held.to(tl.int32), axis=1)
        else:
            values = as_float(codes, BITS, a.dtype.element_ty)
            values -= zeros[:, None] if ZERO else 1 << (BITS - 1)
            acc = tl.dot(held, tl.trans(values.to(a.dtype.element_ty)), acc)
    if INTEGER and ZERO:
        acc -= sums[:, None] * tl.load(zero + w_rows)[None, :]
    _write(
        acc, y, partial, rows, columns, part, group * N, scale, bias, corr, M, N, all_rows,
        INTEGER, BIAS, SPLIT_K,
    )  # fmt: skip


@triton.jit
def sum_kernel(
    partial, y, scale, bias, corr, M, N,
    INTEGER: tl.constexpr, BIAS: tl.constexpr, SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Adds the parts of a product in a fixed order and finishes it: y[M, N] from partial[SPLIT_K, M, N]."""
    rows, columns = (
        tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M),
        tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N),
    )
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    at = rows[:, None].to(tl.int64) * N + columns[None, :]
    places, part = partial + at, (tl.full((), 0, tl.int64) + M) * N
    acc = tl.load(places, mask=inside, other=0)
    for _ in range(1, SPLIT_K):
        places += part
        acc += tl.load(places, mask=inside, other=0)
    tl.store(
        y + at, _finish(acc, columns, scale, bias, corr, N, INTEGER, BIAS).to(y.dtype.element_ty), mask=inside
    )


@triton.jit
def depthwise_kernel(
    a, w, y, scale, bias, corr, zero,
    PIXELS, CHANNELS, units, H, WIDE, OUT_H, OUT_W,
    BITS: tl.constexpr, INTEGER: tl.constexpr, ZERO: tl.constexpr, BIAS: tl.constexpr,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A convolution whose output channels each read the one input channel of the same number; no matrix
    product, so no matrix unit.

    Args:
        a: NHWC, as in `product_kernel`.
        w: Bytes of a `PlaneMatrix` with a row for each tap and a column for each channel.
        y: PIXELS x CHANNELS; PIXELS counts output pixels of all images.
    """
    pixels = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    first = tl.program_id(1) * BLOCK_C
    channels = first + tl.arange(0, BLOCK_C)
    known = channels < CHANNELS
    at = (pixels % PIXELS).to(tl.int64)
    image, top, left = _window_of(at, OUT_H, OUT_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W)
    if INTEGER:
        acc, sums = tl.zeros((BLOCK_P, BLOCK_C), tl.int32), tl.zeros((BLOCK_P, BLOCK_C), tl.int32)
    else:
        acc, sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32), tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for tap in tl.static_range(TAPS_H * TAPS_W):
        line, row = top + (tap // TAPS_W) * DILATION_H, left + (tap % TAPS_W) * DILATION_W
        inside = known[None, :]
        if PAD_H or PAD_W:
            inside = inside & ((line >= 0) & (line < H) & (row >= 0) & (row < WIDE))[:, None]
        places = ((image * H + line) * WIDE + row)[:, None] * CHANNELS + channels[None, :]
        held = tl.load(a + places, mask=inside, other=0)
        codes = load_codes(w, tap + tl.arange(0, 1), first, TAPS_H * TAPS_W, units, BITS, 1, BLOCK_C, False)
        if INTEGER:
            acc += held.to(tl.int32) * as_signed(codes, BITS).to(tl.int32)
            if ZERO:
                sums += held.to(tl.int32)
        else:
            if ZERO:
                values = (
                    codes.to(tl.float32)
                    - tl.load(zero + channels, mask=known, other=0).to(tl.float32)[None, :]
                )
            else:
                values = codes.to(tl.float32) - (1 << (BITS - 1))
            acc += held.to(tl.float32) * values
    if INTEGER and ZERO:
        acc -= sums * tl.load(zero + channels, mask=known, other=0)[None, :]
    out = _finish(acc, channels, scale, bias, corr, CHANNELS, INTEGER, BIAS)
    at = pixels[:, None].to(tl.int64) * CHANNELS + channels[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=(pixels < PIXELS)[:, None] & known[None, :])


@triton.jit
def quantize_kernel(
    x, codes, scale, zero, top, count, H, WIDE, CHANNELS, HALF,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Codes: clamp(round(x / scale) + zero, 0, top) - HALF as int8, from N x H x WIDE x CHANNELS into the
    middle of a frame PAD_H, PAD_W larger on each side.

    scale, zero, top and HALF are float32: integers that happen to be 1 would be compiled in.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    known = at < count
    scaled = tl.div_rn(tl.load(x + at, mask=known, other=0.0).to(tl.float32), scale)
    scaled = tl.minimum(tl.maximum(scaled, -zero), top - zero)
    rounded = (scaled + 12582912.0) - 12582912.0  # 1.5 * 2^23: to nearest, ties to even, as torch rounds
    values = (rounded + zero - HALF).to(tl.int8)
    place = at
    if PAD_H or PAD_W:
        channel, pixel = at % CHANNELS, at // CHANNELS
        line = pixel // WIDE
        framed = (line + (2 * (line // H) + 1) * PAD_H) * (WIDE + 2 * PAD_W) + pixel % WIDE + PAD_W
        place = framed * CHANNELS + channel
    tl.store(codes + place, values, mask=known)
