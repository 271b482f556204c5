"""Two-region and logarithmic quantisers: few levels, nearest level, gradients, and searches that are never
worse than a uniform grid.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mpsearch.errors import DataError, OptionError
from mpsearch.quant import OBSERVERS, AffineParams
from mpsearch.quant.region_search import log_params, opt_m, post_softmax_params, two_region_params
from mpsearch.quant.regions import SPLITS, LogParams, TwoRegionParams


def draw(kind: str, count: int = 4096) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, generator=generator)
    made = {
        "gelu": lambda: F.gelu(noise),
        "heavy": lambda: F.gelu(noise * torch.exp(torch.randn(count, generator=generator))),
        "shifted": lambda: noise - 1.5,
        "softmax": lambda: (noise.view(-1, 64) * 2).softmax(-1).flatten(),
        "negative": lambda: -noise.abs() - 0.1,
        "zero": lambda: torch.zeros(count),
    }
    return made[kind]()


def mse(x: torch.Tensor, params) -> float:
    return float((params.fake_quantize(x) - x).double().square().mean())


GRIDS = [
    TwoRegionParams(torch.tensor(0.05), m, bits, split)
    for m in (0, 3)
    for bits in (2, 4, 8)
    for split in (*SPLITS, "unsigned")
]
LOGS = [LogParams(torch.tensor(0.8), bits, root) for bits in (2, 4, 8) for root in (1, 2)]


@pytest.mark.parametrize("params", [*GRIDS, *LOGS], ids=str)
def test_every_value_lies_on_one_of_at_most_2_to_the_bits_levels(params):
    levels = params.levels()
    x = torch.cat([torch.linspace(-3, 3, 4001), levels])
    given = params.fake_quantize(x)
    assert len(levels) <= 2**params.bits
    assert torch.isin(given, levels).all()
    assert (levels[1:] > levels[:-1]).all()
    assert 0 in levels and (params.fake_quantize(torch.zeros(3)) == 0).all()
    assert torch.equal(params.fake_quantize(levels), levels)  # idempotent


@pytest.mark.parametrize("params", GRIDS, ids=str)
def test_two_regions_take_the_nearest_level(params):
    x = torch.linspace(-3, 3, 4001)
    nearest = (x[:, None] - params.levels()).abs().amin(1)
    assert torch.allclose((params.fake_quantize(x) - x).abs(), nearest, atol=1e-6)


def test_the_splits_by_hand():
    x = torch.tensor([-9.0, -1.1, -0.4, 0.4, 2.4, 5.0, 99.0])
    sign = TwoRegionParams(torch.tensor(1.0), 2, 3, "sign")  # fine -4..-1, coarse 0, 4, 8, 12
    assert sign.fake_quantize(x).tolist() == [-4, -1, 0, 0, 4, 4, 12]
    magnitude = TwoRegionParams(torch.tensor(1.0), 2, 3, "magnitude")  # fine -2..1, coarse 0, 4, 8, 12
    assert magnitude.fake_quantize(x).tolist() == [-2, -1, 0, 0, 1, 4, 12]
    assert TwoRegionParams(torch.tensor(1.0), 2, 3, "signed_magnitude").levels().tolist() == [
        -8,
        -4,
        -2,
        -1,
        0,
        1,
        4,
    ]


def test_the_logarithm_by_hand():
    x = torch.tensor([1.0, 0.6, 0.3, 0.2, 0.13, 0.06, 0.0, -1.0, 5.0])
    assert LogParams(torch.tensor(1.0), 2).levels().tolist() == [0, 0.25, 0.5, 1]
    assert LogParams(torch.tensor(1.0), 2).fake_quantize(x).tolist() == [1, 0.5, 0.25, 0.25, 0.25, 0, 0, 0, 1]
    levels = LogParams(torch.tensor(2.0), 3, 2).levels()
    assert torch.allclose(levels[1:].flip(0), 2 * 2 ** (-torch.arange(7) / 2))


@pytest.mark.parametrize(
    ("params", "low", "high"),
    [
        (TwoRegionParams(torch.tensor(0.1), 2, 4, "sign"), -0.85, 3.0),
        (TwoRegionParams(torch.tensor(0.1), 2, 4, "signed_magnitude"), -1.8, 1.4),
        (LogParams(torch.tensor(1.0), 4), 0.0, 2**0.5),
    ],
    ids=str,
)
def test_gradients_pass_inside_the_range_and_stop_outside(params, low, high):
    x = torch.linspace(-4, 4, 801).add(1e-4).requires_grad_()
    (params.fake_quantize(x) * torch.arange(801)).sum().backward()
    inside = ((x >= low) & (x <= high)).float()
    assert 0 < inside.mean() < 1
    assert torch.equal(x.grad, inside * torch.arange(801))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("split", [*SPLITS, "unsigned"])
def test_the_search_finds_the_least_error_of_all_pairs(split, weighted):
    x = draw("heavy", 300)
    weights = (
        torch.rand(300, generator=torch.Generator().manual_seed(1)).square() if weighted else torch.ones(300)
    )
    found = two_region_params(x, 4, split, weights if weighted else None)

    def error(params) -> float:
        return float(((params.fake_quantize(x) - x).square() * weights).sum())

    top = float(found.step) * 2**found.shift
    spans = [top * 2 ** (j / 12) for j in range(-47, 48)]  # the coarse steps around the one that was found
    lowest, highest = float(x.min()), float(x.max())
    codes = {"sign": (0, 7), "magnitude": (0, 7), "signed_magnitude": (-4, 3), "unsigned": (0, 7)}[split]
    reach = max(highest / codes[1], lowest / codes[0] if codes[0] else 0)
    tried = [s for s in spans if reach * 2 ** (-47.5 / 12) <= s <= reach * 1.001]
    assert len(tried) == 48
    least = min(error(TwoRegionParams(torch.tensor(s / 2**m), m, 4, split)) for s in tried for m in range(16))
    assert error(found) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("kind", ["gelu", "heavy", "shifted", "softmax", "negative", "zero"])
@pytest.mark.parametrize("search", [opt_m, post_softmax_params])
def test_never_worse_than_the_uniform_grid(search, kind, bits):
    x = draw(kind)
    uniform = OBSERVERS.create("mse").observe(x, bits, symmetric=False)
    found = search(x, bits)
    assert found.bits == bits
    assert mse(x, found) <= mse(x, uniform) * (1 + 1e-6)


def test_each_kind_is_chosen_where_it_fits():
    assert isinstance(opt_m(draw("gelu"), 4), AffineParams | TwoRegionParams)
    heavy = opt_m(draw("heavy"), 6)
    assert isinstance(heavy, TwoRegionParams)
    assert mse(draw("heavy"), heavy) < 0.7 * mse(
        draw("heavy"), OBSERVERS.create("mse").observe(draw("heavy"), 6, symmetric=False)
    )
    assert isinstance(opt_m(torch.linspace(-1, 3, 4096), 4), AffineParams)
    assert isinstance(post_softmax_params(2.0 ** -torch.arange(15).repeat(9), 4), LogParams)
    assert opt_m(torch.linspace(-1, 1, 4096), 4, symmetric=True).symmetric


def test_weights_move_the_steps():
    x = torch.cat([torch.linspace(-0.1, 0.1, 1000), torch.full((10,), 50.0)])
    inner = two_region_params(x, 4, "sign", (x.abs() < 1).float())
    assert float((inner.fake_quantize(x) - x)[:1000].square().mean()) < float(
        (two_region_params(x, 4, "sign").fake_quantize(x) - x)[:1000].square().mean()
    )


def test_logarithms_are_searched_for_their_top():
    x = torch.full((100,), 0.7)
    assert mse(x, log_params(x, 4)) < 1e-12
    skewed = torch.cat([torch.full((500,), 0.3), torch.full((1,), 0.31)])
    fixed = LogParams(torch.tensor(0.9), 2)
    assert mse(skewed, log_params(skewed, 2)) < 1e-3 < mse(skewed, fixed)


@pytest.mark.parametrize(
    "bad", [torch.empty(0), torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")])]
)
def test_values_that_cannot_be_searched_are_refused(bad):
    with pytest.raises(DataError, match="Steps cannot be searched"):
        two_region_params(bad, 4, "sign")
    with pytest.raises(DataError, match="weights of the errors"):
        two_region_params(torch.ones(3), 4, "sign", torch.ones(2))


def test_options_out_of_range_are_refused():
    with pytest.raises(OptionError, match="must be 0 to 15"):
        TwoRegionParams(torch.tensor(1.0), 16, 4, "sign")
    with pytest.raises(OptionError, match="not 4 bits split by 'colour'"):
        TwoRegionParams(torch.tensor(1.0), 1, 4, "colour")
    with pytest.raises(OptionError, match="sqrt 2"):
        LogParams(torch.tensor(1.0), 4, 3)
