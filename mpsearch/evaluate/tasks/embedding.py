"""`embedding`: one vector for each sample, of which directions and the order of similarities count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mpsearch.evaluate.metrics import Metrics
from mpsearch.evaluate.tasks._base import TASKS, Task, random_signs
from mpsearch.quant.devices import wide


@TASKS.register("embedding")
@dataclass(frozen=True)
class Embedding(Task):
    """Outputs are N x D; the damage is 1 - cosine to the float model's vector.

    The scores are `cosine`, the mean and `least_cosine` the least over the samples; `spearman` and `kendall`
    (tau-b), each the mean over the samples of the rank correlation between the float and the quantised
    model's similarities of that sample to all others: whether a retrieval comes out in the same order.
    `agreement` is the share of samples whose most similar other one is the same; labels are not used.

    Args:
        queries: At most so many samples are ranked, the first ones; each against all.
        output: Name of the vectors, of a model that gives several outputs.
    """

    measure: ClassVar[str] = "1 - cosine"
    queries: int = 512
    output: str = ""

    def damage(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """1 - cosine of each sample, N."""
        return 1 - F.cosine_similarity(wide(outputs), wide(reference), dim=1)

    def directions(self, reference: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The curvature of 1 - cosine is (I - u u^T) / |y|^2, u = y / |y|: random signs without their part
        along u, over |y|.
        """
        length = reference.norm(dim=1, keepdim=True).clamp(min=1e-12)
        signs, unit = random_signs(reference, count, generator), reference / length
        directions: Tensor = (signs - unit * (signs * unit).sum(2, keepdim=True)) / length
        return directions

    def compare(self, outputs: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
        """Cosine and agreement of rankings."""
        cosine = 1 - self.damage(outputs, reference)
        ours, theirs = (_similarities(x, self.queries) for x in (outputs, reference))
        scores = {"cosine": float(cosine.mean()), "least_cosine": float(cosine.min())}
        alike = 1.0
        if len(outputs) > 2:  # of fewer there is no order
            from scipy import stats  # takes most of a second, and no other task needs it

            pairs = list(zip(ours, theirs, strict=True))
            scores["spearman"] = float(np.mean([stats.spearmanr(a, b).statistic for a, b in pairs]))
            scores["kendall"] = float(np.mean([stats.kendalltau(a, b).statistic for a, b in pairs]))
            alike = float((ours.argmax(1) == theirs.argmax(1)).mean())
        return Metrics(len(outputs), self.loss(outputs, reference), alike, scores=scores)


def _similarities(vectors: Tensor, queries: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Q x (N - 1): cosine of each of the first Q samples to every other one, its own left out."""
    unit = F.normalize(vectors.double(), dim=1)
    count = min(queries, len(unit))
    found = unit[:count] @ unit.T
    others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)[:count]
    return found[others].reshape(count, len(unit) - 1).numpy()
