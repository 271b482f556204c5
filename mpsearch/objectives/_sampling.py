"""The images that a measured divergence is estimated on: those that tell most, each with a weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpsearch.data import SampleSet
from mpsearch.evaluate import FastEvaluator
from mpsearch.evaluate.metrics import predict
from mpsearch.objectives._base import ScoringContext
from mpsearch.objectives._local import first_images
from mpsearch.problem import Assignment

_POOL = 4
"""Images that a sample is drawn from, as a multiple of its size: what the float passes over them cost is little beside a table's."""
_EVEN = 0.1
"""Share of the mean size, added to that of every image, so that none has a weight without bound."""


@dataclass(frozen=True)
class SampledEvaluator:
    """Measures assignments on a sample.

    Args:
        evaluator: On the images of the sample.
        weights: [N] float64, such that the mean of weights times damage estimates the mean damage of all images; None where all are alike.
    """

    evaluator: FastEvaluator
    weights: Tensor | None

    def measure(self, assignment: Assignment) -> float:
        """Estimate of the mean damage; NaN where an output is not finite."""
        if self.weights is None:
            return self.evaluator.measure(assignment)
        return max(float((self.weights * self.evaluator.losses(assignment)).mean()), 0.0)


def pool_size(context: ScoringContext, count: int) -> int:
    """Images that a float pass is made over to draw `count` of them; 0 where nothing is drawn, as there are no more or the task has no classes."""
    return min(_POOL * count, len(context.images)) if context.task.classes and count < len(context.images) else 0


def sample(context: ScoringContext, count: int) -> tuple[SampleSet, Tensor | None]:
    """`count` calibration images, and their weights if they are not alike.

    Damage comes from the images that the float model is not sure of: at small damage the KL divergence of an image is half the variance of its logit
    errors under its softmax p, which is small where one class has all of it. So images are drawn with probabilities that grow with
    (1 - sum p^2)^(1/2), without replacement, and weigh the inverse of theirs: the estimate stays unbiased over draws of the pool (after Horvitz and
    Thompson, J. Am. Stat. Assoc. 47, 1952; systematic sampling), and on a ResNet20 sure of nine in ten images has a third to a half of the variance.
    """
    pool = pool_size(context, count)
    if not pool:
        return first_images(context, count), None
    images = first_images(context, pool)
    share = torch.softmax(predict(context.module, images).double(), dim=-1).square().sum(-1).numpy()
    size = np.sqrt(np.clip(1 - share, 0, None))
    probability = _inclusion(size + _EVEN * size.mean() + 1e-12, count)
    ends = np.cumsum(probability)
    start = np.random.default_rng([context.seed, pool]).random()
    chosen = np.minimum(np.searchsorted(ends, start + np.arange(count), side="right"), pool - 1)
    return images.subset(chosen.tolist()), torch.from_numpy(count / (pool * probability[chosen]))


def _inclusion(size: np.ndarray, count: int) -> np.ndarray:
    """[N] probabilities in proportion to size, at most 1, that sum to `count`."""
    probability = np.zeros(len(size))
    certain = np.zeros(len(size), dtype=bool)
    while True:
        probability[certain] = 1.0
        probability[~certain] = (count - certain.sum()) * size[~certain] / size[~certain].sum()
        if not (probability > 1).any():
            return probability
        certain |= probability >= 1
