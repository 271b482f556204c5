"""Fisher weights: the diagonal by hand on a linear model, mean 1, repeatable."""

from __future__ import annotations

import torch
from torch import nn

from mpsearch.reconstruct.fisher import FLOOR, fisher_weights


def test_on_logits_it_is_the_variance_of_the_labels():
    net = nn.Sequential(
        nn.Identity(), nn.Flatten()
    )  # the block's output is the logits: dlog p / dz = onehot - p
    images = torch.tensor([2.0, 0.0, -1.0]).repeat(20000, 1)
    p = torch.softmax(images[0], 0)
    expected = p * (1 - p)
    found = fisher_weights(net, ["0"], images, seed=0, chunk=5000)["0"]
    expected = (expected / expected.mean() + FLOOR) / (1 + FLOOR)
    torch.testing.assert_close(found[0], expected, rtol=0.08, atol=0)


def test_mean_one_positive_repeatable_and_the_model_left_as_found(tiny, left_as_found):
    net = tiny("vit")
    names = [name for name, _ in net.blocks]
    check = left_as_found(net.module)
    first, again = (
        fisher_weights(net.module, names, net.images.inputs(), seed=3, chunk=10) for _ in range(2)
    )
    check()
    assert all(p.requires_grad for p in net.module.parameters())
    assert set(first) == set(names)
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        assert len(weight) == 1
        torch.testing.assert_close(weight.mean(), torch.tensor(1.0))
        assert (weight > 0).all()
