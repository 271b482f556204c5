"""`span`: where an answer starts and ends, as in extractive question answering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsearch.data import SampleSet
from mpsearch.errors import DataError
from mpsearch.evaluate.metrics import Metrics
from mpsearch.evaluate.tasks._base import TASKS, Task, softmax_directions
from mpsearch.quant.devices import wide


@TASKS.register("span")
@dataclass(frozen=True)
class Span(Task):
    """Outputs are N x 2 x T: logits of the first and of the last token; the damage is the sum of both
    KL(float || quantised), in nats.

    The span of a sample is the pair of tokens of the greatest sum of logits that is not longer than `longest`
    and does not end before it starts. Labels are N x 2: first and last token. The scores are `exact` (share
    of spans that are right) and `f1` (mean over samples of 2 |overlap| / (|found| + |right|), in tokens).
    `agreement` is the share of spans that are the float model's.

    Args:
        longest: Tokens of a span at most.
        output: Name of the logits, of a model that gives several outputs.

    References: Rajpurkar et al., SQuAD, EMNLP 2016, arXiv:1606.05250, section 6.1. Differs in: tokens, not
        words without articles.
    """

    measure: ClassVar[str] = "KL"
    headlines: ClassVar[tuple[str, ...]] = ("f1",)
    longest: int = 30
    output: str = ""

    def damage(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """KL of the start plus KL of the end, N."""
        p, q = F.log_softmax(wide(reference), 2), F.log_softmax(wide(outputs), 2)
        return (p.exp() * (p - q)).sum((1, 2))

    def directions(self, reference: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """As of `classification`, of the first and of the last token."""
        return softmax_directions(reference, count, generator)

    def compare(self, outputs: Tensor, reference: Tensor, labels: Tensor | None = None) -> Metrics:
        """Exact match, F1 of tokens, and agreement."""
        found = self.spans(outputs)
        alike = float((found == self.spans(reference)).all(1).float().mean())
        scores = {}
        if labels is not None:
            first, last = torch.maximum(found[:, 0], labels[:, 0]), torch.minimum(found[:, 1], labels[:, 1])
            lengths = (found[:, 1] - found[:, 0] + 1) + (labels[:, 1] - labels[:, 0] + 1)
            scores["exact"] = float((found == labels).all(1).float().mean())
            scores["f1"] = float((2 * (last - first + 1).clamp(min=0) / lengths).double().mean())
        return Metrics(len(outputs), self.loss(outputs, reference), alike, scores=scores)

    def require_labels(self, samples: SampleSet, outputs: Tensor) -> None:
        """Each label is a first and a last of T tokens."""
        if samples.labels is None:
            return
        tokens, first, last = outputs.shape[-1], *samples.labels.T
        odd = ((first < 0) | (last < first) | (last >= tokens)).nonzero().flatten().tolist()
        if odd:
            raise DataError(
                f"{samples.name} has the span {samples.labels[odd[0]].tolist()} at {odd[0]}; the model "
                f"has {tokens} tokens, 0 to "
                f"{tokens - 1}, and a span starts before it ends. Give each answer's first and last token."
            )

    def spans(self, outputs: Tensor) -> Tensor:
        """N x 2: first and last token."""
        tokens = outputs.shape[2]
        sums = outputs[:, 0, :, None] + outputs[:, 1, None, :]
        allowed = (
            torch.ones(tokens, tokens, dtype=torch.bool, device=outputs.device).triu().tril(self.longest - 1)
        )
        best = sums.masked_fill(~allowed, -torch.inf).flatten(1).argmax(1)
        return torch.stack([best // tokens, best % tokens], 1)
