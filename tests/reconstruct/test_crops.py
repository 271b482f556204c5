"""Crops: exact where they are offered, and only there; quarters part the output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn

from mpsearch.reconstruct import ReconstructionConfig, reconstruct
from mpsearch.reconstruct.crops import quarters


class Shortcut(nn.Module):
    """Strided residual with a parameter-free shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)) + self.b(F.relu(self.a(x))))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.a(x)
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class OneSize(nn.Module):
    def forward(self, x):
        return x + x.new_zeros(24, 24)


LOCAL = {
    "conv": (nn.Conv2d(4, 4, 3, padding=1), 1),
    "dilated": (nn.Conv2d(4, 4, 3, padding=3, dilation=3), 3),
    "pointwise": (nn.Conv2d(4, 4, 1), 1),
    "same": (Conv2dSame(4, 4, 3, stride=2), 1),
    "shortcut": (Shortcut(), 2),
    "two": (nn.Sequential(nn.Conv2d(4, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)), 3),
}


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("size", [(24, 24), (32, 26)])
def test_quarters_of_convolutions_are_exact_and_part_the_output(name, size):
    block, margin = LOCAL[name]
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = block(x)
        crops = quarters(block, x)
        assert len(crops) == 4
        seen = torch.zeros_like(y)
        for crop in crops:
            torch.testing.assert_close(
                block(x[:, :, *crop.read])[:, :, *crop.own], y[:, :, *crop.whole], rtol=1e-4, atol=1e-5
            )
            seen[:, :, *crop.whole] += 1
            assert block(x[:, :, *crop.read]).shape[2] <= -(-y.shape[2] // 2) + margin
    assert (seen == 1).all()


@pytest.mark.parametrize(
    "block",
    [SqueezeExcite(), OneSize(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Upsample(scale_factor=2)],
    ids=lambda b: type(b).__name__,
)
def test_what_looks_at_the_whole_image_gets_none(block):
    assert quarters(block, torch.randn(2, 4, 24, 24)) == ()


def test_an_image_on_which_the_block_gives_nothing_proves_nothing():
    assert (
        quarters(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU()), torch.zeros(1, 4, 24, 24)
        )
        == ()
    )


def test_small_outputs_are_not_worth_it():
    assert quarters(nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 3, 3)) == ()


def test_a_block_learns_as_well_on_quarters():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    images = F.avg_pool2d(torch.randn(48, 3, 26, 26, generator=generator), 3, 1)
    from mpsearch.problem import Assignment, Candidate
    from mpsearch.reconstruct import calibrate

    states = calibrate(net, ["0", "2"], [images]).states(
        Assignment((("0", Candidate(3, 4)), ("2", Candidate(3, 4))))
    )
    errors = {}
    for crops in (True, False):
        config = replace(ReconstructionConfig(iterations=150, batch_size=16), crops=crops)
        found = []
        reconstruct(
            net,
            [("0", ["0"]), ("2", ["2"])],
            states,
            images,
            config,
            on_block=lambda _n, _s, result, found=found: found.append(result),
        )
        errors[crops] = [r.learned_mse for r in found]
        assert all(r.kept for r in found)
    for a, b in zip(errors[True], errors[False], strict=True):
        assert a <= 1.1 * b
