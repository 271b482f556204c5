"""Our Triton kernels against float64, on the CPU through Triton's interpreter (on the device where there is
one): every width, ragged shapes, zero points.
"""

import contextlib
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from mpsearch.hardware.kernels import device_code
from mpsearch.hardware.kernels.grids import InputGrid, WeightCodes
from mpsearch.hardware.kernels.layout import pack_planes, padded_columns, plane_nbytes, planes, unpack_planes
from mpsearch.hardware.kernels.tiles import Tile
from mpsearch.hardware.kernels.unit import KernelUnit
from mpsearch.problem import ConvAttributes, Layer
from mpsearch.quant.packing import pack, unpack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Tile(16, 32, 64, 4, 2)
EPSILON = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
GRIDS = {
    "unsigned": InputGrid(0.02, 128),
    "behind a ReLU": InputGrid(0.011, 0),
    "five bits": InputGrid(0.2, 13, 5),
}


def linear(n, k, *leading):
    return Layer("l", "linear", (n, k), ((1, *leading, k),), (1, *leading, n), 1, "b", bias=True)


def conv(out, channels, side, kernel=3, stride=1, padding=1, dilation=1, groups=1):
    height, wide = side
    sizes = [(s + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for s in side]
    attributes = ConvAttributes((stride, stride), (padding, padding), (dilation, dilation), groups)
    return Layer(
        "c",
        "conv2d",
        (out, channels // groups, kernel, kernel),
        ((1, channels, height, wide),),
        (1, out, *sizes),
        1,
        "b",
        bias=True,
        conv=attributes,
    )


def weights(layer, bits, zero_points, seed=0):
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, layer.weight_shape, generator=draw)
    rows = layer.weight_shape[0]
    zero = torch.randint(0, 2**bits, (rows,), generator=draw, dtype=torch.int32) if zero_points else None
    return WeightCodes(codes, torch.rand(rows, generator=draw) * 0.1 + 0.01, zero, bits), torch.randn(
        rows, generator=draw
    )


def moved(weight):
    return dataclasses.replace(
        weight,
        codes=weight.codes.to(DEVICE),
        scale=weight.scale.to(DEVICE),
        zero_point=None if weight.zero_point is None else weight.zero_point.to(DEVICE),
    )


def reference(layer, x, weight, bias, grid):
    """float64 arithmetic on the same quantised values; `x` is NHWC or ... x K."""
    values = x.double()
    if grid is not None:
        codes = torch.clamp(
            torch.round(x.float() / torch.tensor(grid.scale)) + grid.zero_point, 0, 2**grid.bits - 1
        )
        values = (codes.double() - grid.zero_point) * grid.scale
    if layer.op == "linear":
        return F.linear(values, weight.dequantize(), bias.double())
    c = layer.conv
    return F.conv2d(
        values.permute(0, 3, 1, 2),
        weight.dequantize(),
        bias.double(),
        c.stride,
        c.padding,
        c.dilation,
        c.groups,
    ).permute(0, 2, 3, 1)


def check(layer, bits, grid, dtype, *, batch=1, zero_points=False, bias=True, tile=SMALL):
    weight, b = weights(layer, bits, zero_points)
    b = b if bias else torch.zeros_like(b)
    shape = (batch, *layer.input_shapes[0][1:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x = (x.permute(0, 2, 3, 1).contiguous() if layer.op == "conv2d" else x).to(dtype)
    unit = KernelUnit.make(layer, moved(weight), b.to(DEVICE) if bias else None, grid, dtype, lambda _: tile)
    y = unit(x.to(DEVICE)).cpu()
    expected = reference(layer, x, weight, b, grid)
    assert y.shape == expected.shape and y.dtype == dtype
    assert float((y.double() - expected).abs().max() / expected.abs().max()) <= EPSILON[dtype]
    return unit


UNITS = {
    "gemm": linear(37, 75, 19),
    "convolution": conv(20, 9, (6, 5)),
    "depthwise": conv(21, 21, (6, 5), groups=21),
}
"""None of their sizes is a multiple of a tile's, or of the 32 columns that a row is padded to."""


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("layer", UNITS.values(), ids=UNITS)
class TestWidths:
    def test_int8_inputs_and_weights_with_zero_points(self, layer, bits):
        check(layer, bits, GRIDS["unsigned"], torch.float32, zero_points=True)

    def test_fp16_inputs_and_symmetric_weights(self, layer, bits):
        check(layer, bits, None, torch.float16)


@pytest.mark.parametrize("bits", [1, 7, 8])
@pytest.mark.parametrize("layer", UNITS.values(), ids=UNITS)
class TestTheOtherZeroPoints:
    def test_int8_inputs_and_symmetric_weights(self, layer, bits):
        check(layer, bits, GRIDS["unsigned"], torch.float32)

    def test_fp16_inputs_and_weights_with_zero_points(self, layer, bits):
        check(layer, bits, None, torch.float16, zero_points=True)


SHAPES = {
    "one row": (linear(40, 64), 1),
    "whole tiles": (linear(64, 128, 32), 1),
    "one past a tile": (linear(33, 65, 17), 2),
    "fewer than a tile": (linear(3, 5, 2), 1),
    "pointwise": (conv(24, 40, (3, 5), kernel=1, padding=0), 2),
    "pointwise strided": (conv(24, 16, (5, 7), kernel=1, padding=0, stride=2), 2),
    "stem": (conv(16, 3, (11, 9), kernel=7, stride=2, padding=3), 2),
    "dilated": (conv(8, 8, (9, 9), padding=2, dilation=2), 1),
    "no padding": (conv(8, 8, (5, 5), padding=0), 1),
    "grouped": (conv(12, 8, (5, 4), groups=4), 2),
    "grouped strided": (conv(40, 20, (5, 4), groups=2, stride=2), 1),
    "depthwise strided": (conv(40, 40, (7, 6), groups=40, stride=2), 2),
    "depthwise 7 x 7": (conv(8, 8, (8, 8), kernel=7, padding=3, groups=8), 1),
    "channel multiplier": (conv(16, 8, (4, 4), groups=8), 1),
}

FLOAT_SHAPES = ("one row", "stem", "pointwise strided", "dilated", "grouped", "depthwise strided")


@pytest.mark.parametrize(("layer", "batch"), SHAPES.values(), ids=SHAPES)
def test_shapes_on_int8_inputs(layer, batch):
    check(layer, 3, GRIDS["unsigned"], torch.float32, batch=batch, zero_points=True)


@pytest.mark.parametrize(("layer", "batch"), [SHAPES[name] for name in FLOAT_SHAPES], ids=FLOAT_SHAPES)
def test_shapes_on_fp16_inputs(layer, batch):
    check(layer, 4, None, torch.float16, batch=batch)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize(
    "layer",
    [linear(20, 30, 5), conv(6, 5, (5, 4)), conv(6, 6, (5, 4), groups=6)],
    ids=["gemm", "conv", "depthwise"],
)
def test_input_grids_pad_with_the_code_of_zero(layer, grid):
    check(layer, 4, grid, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_integer_units_read_and_write_half_precision(dtype):
    check(conv(6, 5, (5, 4)), 8, GRIDS["unsigned"], dtype, bias=False)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
@pytest.mark.parametrize("bits", range(1, 9))
def test_bf16_gemm_on_the_device(bits):  # the interpreter multiplies bf16 as if it were integers
    check(linear(20, 70, 9), bits, None, torch.bfloat16, zero_points=bits == 8)


@pytest.mark.parametrize(
    ("dtype", "one", "bits"), [(torch.float16, 0x6400, 8), (torch.bfloat16, 0x4300, 7)], ids=["fp16", "bf16"]
)
def test_a_code_in_the_mantissa_is_that_many_above_a_power_of_two(
    dtype, one, bits
):  # what `_as_float` leans on; the interpreter has no bf16 arithmetic
    codes = torch.arange(2**bits, dtype=torch.int16)
    held = (codes | one).view(dtype)
    assert (
        torch.equal((held - held[0]).to(torch.int16), codes)
        and float(held[0]) == {torch.float16: 1024, torch.bfloat16: 128}[dtype]
    )


def test_bf16_depthwise():
    check(conv(6, 6, (5, 4), groups=6), 4, None, torch.bfloat16)


@pytest.mark.parametrize("split", [2, 4])
@pytest.mark.parametrize(
    ("grid", "dtype"), [(GRIDS["unsigned"], torch.float32), (None, torch.float16)], ids=["int8", "fp16"]
)
def test_split_columns_are_added(grid, dtype, split):
    unit = check(
        linear(37, 300, 3), 5, grid, dtype, zero_points=True, tile=dataclasses.replace(SMALL, split_k=split)
    )
    assert [name for name, _ in unit.ran][-1] == "sum"


def test_bands_of_tiles_cover_every_tile():
    check(
        linear(130, 32, 70), 8, GRIDS["unsigned"], torch.float32, tile=dataclasses.replace(SMALL, group_m=3)
    )


def test_rows_behind_the_first_2_gib_are_found():
    """A product of 129 rows of 2^24 columns, of which the first block is computed; memory that is not touched
    is none. The rows lie in the middle, so that an offset that has wrapped round reads zeros.
    """
    columns, rows, block = 2**24, 129, 64
    held = torch.empty(2 * 2**31 + block, dtype=torch.int8, device=DEVICE)
    a, last = held[2**31 :], (rows - 1) * columns
    held[:block], a[:block], a[last : last + block] = 0, 0, 1
    weight = torch.empty(columns, dtype=torch.uint8, device=DEVICE)
    weight[:block] = 128 + 3
    parts = columns // block
    partial = torch.zeros(rows, dtype=torch.int32, device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    device_code.product_kernel[(2, 1, 1)](
        *(a, weight, partial, partial, one, one, partial, partial),
        *(rows, 1, columns, columns // 32, 1, 1, 1, 1, 1, 1),
        BITS=8,
        INTEGER=True,
        ZERO=False,
        BIAS=False,
        CONV=False,
        EVEN=True,
        GROUP_CHANNELS=1,
        **dict.fromkeys(("TAPS_W", "STRIDE_H", "STRIDE_W", "DILATION_H", "DILATION_W"), 1),
        **{"PAD_H": 0, "PAD_W": 0},
        **{"BLOCK_M": 128, "BLOCK_N": 16, "BLOCK_K": block, "SPLIT_K": parts, "GROUP_M": 8},
    )
    assert partial[-1] == 3 * block and partial[0] == 0


def test_int32_sums_do_not_round():
    layer = dataclasses.replace(linear(2, 4096, 1), bias=False)
    weight = WeightCodes(torch.full((2, 4096), 255), torch.ones(2), None, 8)
    unit = KernelUnit.make(layer, moved(weight), None, InputGrid(1.0, 0), torch.float32, lambda _: SMALL)
    assert (
        unit(torch.full((1, 1, 4096), 255.0, device=DEVICE)).flatten().tolist() == [255.0 * 127 * 4096] * 2
    )  # 132,648,960 is beyond float32's integers but a multiple of 16


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_hold_every_bit_once_and_round_trip(bits):
    codes = torch.randint(0, 2**bits, (5, 45), generator=torch.Generator().manual_seed(bits))
    matrix = pack_planes(codes, bits)
    assert sum(width for width, _ in planes(bits)) == bits
    assert (
        matrix.data.numel()
        == plane_nbytes(5, 45, bits)
        == 5 * padded_columns(45) * bits // 8
        == 5 * 64 * bits // 8
    )
    assert torch.equal(unpack_planes(matrix), codes.to(torch.uint8))


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_plane_is_the_packing_of_the_checkpoint(bits):
    codes = torch.randint(0, 2**bits, (3, 64), generator=torch.Generator().manual_seed(bits))
    fields = [pack((codes >> shift) & (2**width - 1), width).flatten() for width, shift in planes(bits)]
    assert torch.equal(pack_planes(codes, bits).data, torch.cat(fields))
    assert torch.equal(unpack(pack(codes, bits), bits, 64), unpack_planes(pack_planes(codes, bits)))


@pytest.mark.parametrize(
    ("codes", "bits"),
    [
        (torch.tensor([[4]]), 2),
        (torch.tensor([[-1]]), 2),
        (torch.tensor([[0.0]]), 2),
        (torch.tensor([0]), 2),
        (torch.tensor([[0]]), 9),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, bits):
    with pytest.raises(ValueError, match="odes"):
        pack_planes(codes, bits)


def test_a_unit_says_what_input_it_takes():
    layer = conv(6, 5, (5, 4))
    weight, bias = weights(layer, 4, False)
    unit = KernelUnit.make(layer, moved(weight), bias.to(DEVICE), None, torch.float16)
    with pytest.raises(ValueError, match="N x H x W x C"):
        unit(torch.zeros(1, 5, 4, 5, dtype=torch.float32, device=DEVICE))
    with pytest.raises(ValueError, match="half"):
        KernelUnit.make(layer, moved(weight), bias.to(DEVICE), None, torch.float32)


def test_kernels_are_launched_on_the_device_of_their_input(monkeypatch):
    """On `cuda:1` the current device is another, and Triton would launch there."""
    layer, inside = linear(6, 8), []

    @contextlib.contextmanager
    def device_of(x):
        inside.append(x)
        yield
        inside.append(None)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(KernelUnit, "product", lambda self, a: inside.append("product") or a)
    x = torch.zeros(1, 8, dtype=torch.float16, device=DEVICE)
    weight, bias = weights(layer, 4, False)
    KernelUnit.make(layer, moved(weight), bias.to(DEVICE), None, torch.float16)(x)
    assert inside[0] is x and inside[1:] == ["product", None]
