"""The images that a measured divergence is estimated on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mpsearch.data import ImageSet, SampleSet
from mpsearch.evaluate import TASKS
from mpsearch.objectives import ScoringContext
from mpsearch.objectives._sampling import _inclusion, pool_size, sample


class Certainty(nn.Module):
    """Two classes, whose logits differ by the first pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, N x 2."""
        return torch.stack([x[:, 0, 0, 0], torch.zeros(len(x))], dim=1)


@pytest.fixture
def context() -> ScoringContext:
    """Of 400 images of two pixels, most of which are certain: up to 20 between the logits. The second pixel tells which it is."""
    gaps = np.random.default_rng(0).exponential(60, 400).clip(0, 255).astype(np.uint8)
    pixels = torch.from_numpy(np.stack([gaps, np.arange(400) % 256], axis=1)).to(torch.uint8).reshape(400, 1, 1, 2)
    return ScoringContext(Certainty().eval(), (), (), None, ImageSet(pixels, None, (0.0,), (0.05,)))


def damage(images: SampleSet) -> torch.Tensor:
    """[N] as at small errors: in proportion to p (1 - p), with a factor that nobody knows."""
    x = images.inputs().flatten(1).double()
    p = torch.sigmoid(x[:, 0])
    return p * (1 - p) * (1 + torch.sin(1e4 * x[:, 1]) ** 2)


def test_it_estimates_the_mean_of_the_pool_without_bias_and_with_less_variance(context):
    images = context.images.subset(range(pool_size(context, 50)))  # 200: all differ
    truth, every = float(damage(images).mean()), damage(images).numpy()
    found = []
    for seed in range(300):
        drawn, weights = sample(replace(context, seed=seed), 50)
        assert len(drawn) == 50 and len(np.unique(drawn.inputs().flatten(1), axis=0)) == 50
        found.append(float((weights * damage(drawn)).mean()))
    plain = [float(np.random.default_rng(seed).choice(every, 50, replace=False).mean()) for seed in range(300)]
    assert abs(np.mean(found) - truth) < 4 * np.std(found) / 300**0.5
    assert np.var(found) < 0.4 * np.var(plain)


def test_it_depends_on_the_seed_alone(context):
    one, again, other = (sample(replace(context, seed=seed), 20)[0].inputs() for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_where_there_is_nothing_to_draw_the_first_images_count_alike(context):
    everything, weights = sample(context, 400)
    assert weights is None and len(everything) == 400 and pool_size(context, 400) == 0
    first, weights = sample(replace(context, task=TASKS.create("embedding")), 10)
    assert weights is None and torch.equal(first.inputs(), context.images.inputs(slice(10)))


def test_probabilities_are_in_proportion_up_to_one():
    size = np.array([100.0, 30, 1, 1, 1, 1, 2, 4])
    found = _inclusion(size, 4)
    assert found.sum() == pytest.approx(4) and (found <= 1).all() and found[:2].tolist() == [1, 1]
    assert np.allclose(found[2:] / size[2:], found[2] / size[2])
    assert np.allclose(_inclusion(np.ones(6), 3), 0.5)
