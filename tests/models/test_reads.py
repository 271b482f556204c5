"""What units multiply: windows of convolutions of every kind, rows of linear layers, means, and products met
by the weight.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn

from mpsearch.models.reads import Read, Reads

LAYERS = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "strided": nn.Conv2d(4, 6, 3, stride=2),
    "dilated": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, (3, 5), padding=(1, 2), groups=4, stride=(1, 2)),
    "pointwise": nn.Conv2d(4, 6, 1),
    "same": nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2),
    "valid": nn.Conv2d(4, 6, 3, padding="valid"),
    "circular": nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "timm's same": Conv2dSame(4, 6, 3, stride=2),
    "linear": nn.Linear(9, 5),
}


def read_by(layer, x):
    found = []
    with torch.no_grad(), Reads({"unit": layer.weight}, lambda unit, read: found.append((unit, read))):
        out = layer(x)
    ((unit, read),) = found
    assert unit == "unit"
    return read, out


@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_times_the_windows_is_the_output(name):
    layer = LAYERS[name]
    x = (
        torch.randn(3, 7, 9, generator=torch.Generator().manual_seed(0))
        if name == "linear"
        else torch.randn(3, 4, 9, 8)
    )
    read, out = read_by(layer, x)
    windows = read.windows()
    rows = layer.weight.detach().reshape(read.groups, -1, read.columns)
    product = (rows[None] @ windows).flatten(1, 2)
    expected = out.transpose(1, 2) if name == "linear" else out.flatten(2)
    assert read.places == windows.shape[3]
    assert torch.allclose(product + layer.bias.detach()[:, None], expected, atol=1e-5)
    some = torch.tensor([0, 2, read.places - 1])
    assert torch.equal(read.windows(some), windows[..., some])
    assert torch.allclose(read.mean(), windows.mean((0, 3)), atol=1e-6)


def test_a_vector_is_one_place():
    read, _ = read_by(LAYERS["linear"], torch.randn(9))
    assert read.places == 1 and read.windows().shape == (1, 1, 9, 1) and read.mean().shape == (1, 9)


def test_weights_of_others_are_not_met_and_shared_ones_are_met_for_each():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    seen = []
    with Reads({"a": first.weight, "b": first.weight}, lambda unit, read: seen.append(unit)):
        second(first(torch.randn(2, 3)))
        F.linear(torch.randn(2, 3), second.weight)
    assert seen == ["a", "b"]


def test_a_single_image_without_a_batch_has_one():
    read, out = read_by(LAYERS["plain"], torch.randn(4, 5, 5))
    assert isinstance(read, Read) and read.windows().shape == (1, 1, 36, 25) and out.shape == (6, 5, 5)
