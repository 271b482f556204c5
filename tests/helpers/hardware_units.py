"""Units of every kind, tiny, for the tests of the backends."""

from mpsearch.problem import Candidate, ConvAttributes, Layer

FLOAT, W8A8, W7A8 = Candidate.parse("float"), Candidate(8, 8), Candidate(7, 8)
W8A16, W4A16 = Candidate(8, 16), Candidate(4, 16)


def conv(groups=1, stride=1, bias=True, kernel=3, padding=1):
    side = (8 + 2 * padding - kernel) // stride + 1
    attributes = ConvAttributes((stride, stride), (padding, padding), (1, 1), groups)
    return Layer(
        "c",
        "conv2d",
        (16, 16 // groups, kernel, kernel),
        ((1, 16, 8, 8),),
        (1, 16, side, side),
        1,
        "b",
        bias=bias,
        conv=attributes,
    )


def linear(*leading, inputs=32, outputs=24, bias=True):
    return Layer(
        "l", "linear", (outputs, inputs), ((*leading, inputs),), (*leading, outputs), 1, "b", bias=bias
    )


MATMUL = Layer("m", "matmul", (), ((1, 2, 5, 8), (1, 2, 8, 5)), (1, 2, 5, 5), 400, "b")
POINTWISE = conv(kernel=1, padding=0, stride=2)
UNITS = {
    "conv": conv(),
    "strided": conv(stride=2, bias=False),
    "strided 1x1": POINTWISE,
    "grouped": conv(groups=4),
    "depthwise": conv(groups=16),
    "linear 2-D": linear(1),
    "linear 3-D": linear(1, 7, bias=False),
    "linear, odd": linear(1, 3, inputs=33, outputs=5),
}
