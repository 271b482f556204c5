"""Grids of inputs by damage: what matters at the output decides, not the error of the tensor."""

import pytest
import torch
from torch import nn

from mpsearch.data import ImageSet
from mpsearch.objectives.input_grids import best_grids, tried_grids
from mpsearch.quant import LogParams
from mpsearch.quant.region_search import least_weighted, two_region_params, two_region_shortlist
from mpsearch.reconstruct import calibrate


class Outliers(nn.Module):
    """Half of what `last` reads is eight times as large; `gain` says how much of that it looks at."""

    def __init__(self, gain):
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.first.weight[:8] *= 8
            self.first.bias.zero_()
            self.last.weight[:, :8] *= gain

    def forward(self, x):
        return self.last(self.first(x.flatten(1)))


def chosen(gain, seed=0):
    torch.manual_seed(0)
    net = Outliers(gain).eval()
    pixels = torch.randint(256, (32, 3, 2, 2), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images = ImageSet(pixels, None, (0.5,) * 3, (0.25,) * 3)
    calibration = calibrate(net, ["last"], [images.inputs()])
    tried = tried_grids(calibration, [4], "auto", "uniform")
    return net, images, tried, best_grids(net, tried, images, seed=seed)["last", 4, 0]


def test_a_layer_that_passes_over_the_outliers_gets_fine_steps():
    *_, (_, fine) = chosen(0.0)
    *_, (_, wide) = chosen(1.0)
    reads = torch.linspace(-1, 1, 101)  # the small half
    assert (fine.fake_quantize(reads) - reads).square().mean() < (
        wide.fake_quantize(reads) - reads
    ).square().mean()


def test_the_choice_is_the_least_damaging_of_all_that_are_tried():
    net, images, tried, (name, best) = chosen(1.0)
    x = net.first(images.inputs().flatten(1)).detach()
    net.requires_grad_(False)
    logits = net.last(x)
    chance = logits.softmax(1)
    seen = {}
    for label, grid in tried["last", 4, 0].shortlist().items():
        moved = net.last(grid.fake_quantize(x)) - logits
        # E (p - e_y)_k^2 over y ~ p is p_k (1 - p_k)
        seen[label] = float((moved.square() * chance * (1 - chance)).sum())
    assert name in seen and seen[name] < 1.2 * min(seen.values())  # two draws of the labels
    assert chosen(1.0)[3][0] == name
    assert best.fake_quantize(x).shape == x.shape


def test_weights_of_errors_decide_between_kinds_of_grids():
    x = torch.cat([torch.linspace(0, 1, 400), torch.linspace(60, 64, 100)])
    near = (x <= 1).float()
    name, grid = least_weighted(x, 4, near, {}, ("magnitude",), (1,))
    assert name.startswith("two steps, magnitude")
    assert ((grid.fake_quantize(x) - x).square() * near).mean() < 1e-2
    name, grid = least_weighted(2.0 ** -torch.arange(12.0), 4, torch.ones(12), {}, (), (1, 2))
    assert name == "log2" and isinstance(grid, LogParams)


@pytest.mark.parametrize("split", ["sign", "magnitude"])
def test_the_shortlist_begins_with_the_best(split):
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)).exp() - 0.3
    first, *others = two_region_shortlist(x, 4, split, 4)
    best = two_region_params(x, 4, split)
    assert (first.step, first.shift) == (best.step, best.shift)
    errors = [float((p.fake_quantize(x) - x).square().sum()) for p in (first, *others)]
    assert errors == sorted(errors) and len({p.shift for p in (first, *others)}) == 4
