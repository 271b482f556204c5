"""Tasks: hand-worked cases, and what holds for each."""

from __future__ import annotations

import math

import pytest
import torch

from mpsearch.data import ImageSet, TokenSet
from mpsearch.errors import DataError
from mpsearch.evaluate import TASKS, Classification, Embedding, Span, compare, kl_by_image

SHAPES = {"classification": (9, 5), "embedding": (9, 5), "span": (9, 2, 6)}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_no_damage_where_outputs_are_equal_and_nan_where_they_are_not_finite(name):
    task, outputs = TASKS.create(name), torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(0))
    damage = task.damage(outputs, outputs)
    assert damage.shape == (9,) and damage.dtype == torch.float64 and damage.abs().max() < 1e-12
    found = task.compare(outputs, outputs)
    assert found.images == 9 and found.kl == pytest.approx(0, abs=1e-12) and found.agreement == 1
    broken = outputs.clone()
    broken[0] = math.nan
    assert math.isnan(task.loss(broken, outputs))
    assert task.loss(outputs + torch.randn(outputs.shape), outputs) > 0


def test_every_registered_task_is_tried():
    own = [
        name for name in TASKS.names() if TASKS.get(name).__module__.startswith("mpsearch.")
    ]  # examples register some of theirs
    assert own == sorted(SHAPES)


def test_classification_is_what_it_was():
    outputs, reference = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(20) % 4
    assert Classification().compare(outputs, reference, labels) == compare(outputs, reference, labels)
    assert torch.equal(Classification().damage(outputs, reference), kl_by_image(outputs, reference))
    assert "scores" not in compare(outputs, reference, labels).to_json()


def test_embedding_by_hand():
    reference = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1], [-1, 0]])
    turned = torch.tensor(
        [[2.0, 0], [0.6, 0.8], [0, 3], [-1, 0]]
    )  # length does not matter; the second is now nearer to the third
    found = Embedding().compare(turned, reference)
    assert found.scores["cosine"] == pytest.approx((1 + 0.96 + 1 + 1) / 4)
    assert found.scores["least_cosine"] == pytest.approx(0.96)
    assert found.kl == pytest.approx(0.01)
    assert found.agreement == 0.75  # the second's nearest was the first
    # similarities of the second: (.8, .6, -.8) became (.6, .8, -.6); the other three keep their order
    assert found.scores["spearman"] == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert found.scores["kendall"] == pytest.approx((1 + 1 / 3 + 1 + 1) / 4)
    assert set(found.to_json()["scores"]) == {"cosine", "least_cosine", "spearman", "kendall"}


def test_span_by_hand():
    outputs = torch.full((3, 2, 5), -9.0)
    for row, (first, last) in enumerate([(1, 2), (3, 3), (4, 0)]):
        outputs[row, 0, first] = outputs[row, 1, last] = 1.0
    spans = Span().spans(outputs)
    assert spans[:2].tolist() == [[1, 2], [3, 3]]
    assert spans[2, 0] <= spans[2, 1]  # one that ends before it starts is not taken
    labels = torch.tensor([[1, 2], [2, 4], [0, 0]])
    found = Span().compare(outputs[:2], outputs[:2], labels[:2])
    assert found.scores == {"exact": 0.5, "f1": pytest.approx((1 + 2 * 1 / (1 + 3)) / 2)}
    assert found.top1 is None
    assert Span(longest=1).spans(outputs[:1]).tolist() in ([[1, 1]], [[2, 2]])
    both = torch.zeros(1, 2, 4)
    other = both.clone()
    other[0, 1, 0] = math.log(3)  # q of the end: 1/2, 1/6, 1/6, 1/6
    expected = sum(0.25 * math.log(0.25 / q) for q in (0.5, 1 / 6, 1 / 6, 1 / 6))
    assert float(Span().damage(other, both)) == pytest.approx(expected)


def test_labels_that_no_output_can_give_are_refused():
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    for labels in ([0, 1, 2, 10], [0, -1, 1, 2]):
        made = ImageSet(images, torch.tensor(labels), (0.5,), (0.5,), "pictures")
        with pytest.raises(DataError, match=r"pictures has labels .*the model has 10 classes, 0 to 9"):
            Classification().require_labels(made, torch.zeros(1, 10))
        with pytest.raises(DataError, match=r"labels are .*the model has 10 classes"):
            compare(torch.zeros(4, 10), torch.zeros(4, 10), made.labels)
        Embedding().require_labels(made, torch.zeros(1, 10))
    Classification().require_labels(
        ImageSet(images, torch.tensor([0, 1, 2, 9]), (0.5,), (0.5,)), torch.zeros(1, 10)
    )
    for span in ([3, 2], [0, 8], [-1, 0]):
        texts = TokenSet(torch.ones(2, 2, 8, dtype=torch.int32), torch.tensor([[0, 1], span]), "texts")
        with pytest.raises(DataError, match=r"texts has the span .* at 1; the model has 8 tokens"):
            Span().require_labels(texts, torch.zeros(1, 2, 8))
