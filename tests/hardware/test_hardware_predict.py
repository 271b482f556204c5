"""Rows are predicted on shapes whose law is known here; the stated spread is honest, and what is measured
next is what is least known.
"""

import math

import numpy as np
import pytest

from mpsearch.errors import TableError
from mpsearch.hardware import Row
from mpsearch.hardware.predict import RowPredictor, layer_of_key
from mpsearch.hardware.rows import row_key
from mpsearch.problem import Candidate, ConvAttributes, Layer

FLOAT, W8A8 = Candidate.parse("float"), Candidate(8, 8)


def linear(m, k, n):
    return Layer("l", "linear", (n, k), ((1, m, k),), (1, m, n), m * k * n, "b", bias=True)


def conv(cin, cout, side, window=3, stride=1, groups=1):
    attributes = ConvAttributes((stride, stride), (window // 2,) * 2, (1, 1), groups)
    out = (side + 2 * (window // 2) - window) // stride + 1
    macs = cout * out * out * cin // groups * window * window
    return Layer(
        "c",
        "conv2d",
        (cout, cin // groups, window, window),
        ((1, cin, side, side),),
        (1, cout, out, out),
        macs,
        "b",
        bias=True,
        conv=attributes,
    )


def law(layer, kernel):
    """What a kernel might take: a start, a rate that gets better with the inner length, and a penalty for
    ragged ends.
    """
    inner = math.prod(layer.weight_shape[1:])
    rate = 4e4 * (1 if kernel == FLOAT else 3) * inner / (inner + 200)
    return (3 + layer.macs / rate + 4e-4 * math.prod(layer.output_shape)) * (1.15 if inner % 16 else 1.0)


def row(layer, kernel, noise=0.0, **changes):
    us = law(layer, kernel) * math.exp(noise)
    return Row(
        **(
            {
                "key": row_key(layer, 1),
                "kernel": str(kernel),
                "status": "ok",
                "median_us": us,
                "iqr_us": 0.1,
                "repeats": 9,
            }
            | changes
        ),
        **REST,
    )


REST = {"weight_bytes": 1, "executed": "Op", "relative_error": 0.0, "date": ""}


def table(rows):
    return {(r.key, r.kernel): r for r in rows}


def shapes(seed, count):
    draw = np.random.default_rng(seed)
    return [
        linear(int(draw.integers(1, 400)), 8 * int(draw.integers(4, 200)), 8 * int(draw.integers(4, 200)))
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "layer",
    [linear(5, 32, 8), conv(16, 32, 14), conv(32, 32, 28, 7, 2, 32)],
    ids=["linear", "conv", "depthwise"],
)
def test_a_key_tells_the_unit(layer):
    back = layer_of_key(row_key(layer, 1))
    assert (back.op, back.weight_shape, back.input_shapes, back.output_shape) == (
        layer.op,
        layer.weight_shape,
        layer.input_shapes,
        layer.output_shape,
    )
    assert (back.macs, back.conv, back.bias) == (layer.macs, layer.conv, layer.bias)


def test_a_product_and_a_batch_are_in_the_key():
    product = Layer("m", "matmul", (), ((1, 2, 5, 8), (1, 2, 8, 7)), (1, 2, 5, 7), 560, "b")
    back = layer_of_key(row_key(product, 3))
    assert (back.output_shape, back.macs) == ((3, 2, 5, 7), 3 * 560)
    with pytest.raises(TableError, match="not the key"):
        layer_of_key("linear or not")


def test_unseen_shapes_are_predicted_within_a_few_percent_and_the_spread_is_honest():
    draw = np.random.default_rng(0)
    predictor = RowPredictor(table([row(s, FLOAT, 0.02 * draw.standard_normal()) for s in shapes(1, 60)]))
    found = [(predictor.predict(s, FLOAT), law(s, FLOAT)) for s in shapes(2, 40)]
    off = np.array([math.log(p.median_us / us) for p, us in found])
    assert np.abs(off).mean() < 0.06
    assert 0.5 < np.sqrt(np.mean((off / [p.spread for p, _ in found]) ** 2)) < 2.0


def test_the_process_is_better_than_macs_alone():
    known, unseen = shapes(1, 40), shapes(2, 40)
    predictor = RowPredictor(table([row(s, FLOAT) for s in known]))
    rate = np.median([law(s, FLOAT) / s.macs for s in known])
    plain = np.mean([abs(s.macs * rate / law(s, FLOAT) - 1) for s in unseen])
    ours = np.mean([abs(predictor.predict(s, FLOAT).median_us / law(s, FLOAT) - 1) for s in unseen])
    assert ours < plain / 3


def test_nothing_is_predicted_across_kernels_or_operators_or_from_rows_that_are_none():
    rows = [row(s, FLOAT) for s in shapes(1, 8)] + [
        row(conv(16, 16, side, groups=16), FLOAT) for side in range(10, 18)
    ]
    rows += [row(s, W8A8, status="fallback") for s in shapes(3, 8)]
    predictor = RowPredictor(table(rows))
    assert predictor.predict(linear(9, 64, 64), FLOAT) is not None
    assert predictor.predict(linear(9, 64, 64), W8A8) is None
    assert (
        predictor.predict(conv(16, 16, 12), FLOAT) is None
        and predictor.predict(conv(16, 16, 20, groups=16), FLOAT) is not None
    )


def test_far_away_the_spread_is_wider():
    predictor = RowPredictor(table([row(s, FLOAT) for s in shapes(1, 30)]))
    near, far = shapes(1, 30)[0], linear(20_000, 16_000, 24)
    assert predictor.predict(far, FLOAT).spread > 2 * predictor.predict(near, FLOAT).spread


def test_what_is_least_known_is_measured_next_and_twins_are_not_both_taken():
    predictor = RowPredictor(table([row(s, FLOAT) for s in shapes(1, 30)]))
    far, twin = linear(3000, 3000, 3000), linear(3001, 3000, 3000)
    odd = linear(4000, 40, 40)
    near = shapes(1, 3)
    picked = predictor.next_to_measure(
        [*((s, FLOAT) for s in near), (far, FLOAT), (twin, FLOAT), (odd, FLOAT), (conv(8, 8, 8), FLOAT)], 3
    )
    assert picked[0][0].op == "conv2d"
    assert {layer for layer, _ in picked[1:]} in ({far, odd}, {twin, odd})
    alone = predictor.doubt((twin, FLOAT), [])
    assert predictor.doubt((twin, FLOAT), [(far, FLOAT)]) < alone / 3


def test_measuring_what_is_chosen_leaves_less_error_than_measuring_at_random():
    """Of a pool of cells some are measured and the others predicted: what is left is the relative error of
    the others.
    """
    known, pool = shapes(2, 8), shapes(102, 40)

    def predictor(extra):
        return RowPredictor(table([row(s, FLOAT) for s in [*known, *extra]]))

    def left(extra):
        fitted = predictor(extra)
        return np.mean(
            [abs(fitted.predict(s, FLOAT).median_us / law(s, FLOAT) - 1) for s in pool if s not in extra]
        )

    chosen = []
    while len(chosen) < 12:
        chosen += [
            layer
            for layer, _ in predictor(chosen).next_to_measure(
                [(s, FLOAT) for s in pool if s not in chosen], 4
            )
        ]
    draw = np.random.default_rng(0)
    assert left(chosen) < 0.6 * np.median(
        [left([pool[i] for i in draw.choice(40, 12, replace=False)]) for _ in range(3)]
    )
