"""Tasks: hand-worked cases, and what holds for each."""

from __future__ import annotations

import math

import pytest
import torch

from mpsearch.data import ImageSet, TokenSet
from mpsearch.errors import DataError, OptionError
from mpsearch.evaluate import (
    TASKS,
    Classification,
    Embedding,
    Outputs,
    Span,
    Task,
    compare,
    kl_by_image,
    task_for,
)
from mpsearch.evaluate.tasks import Regression, Segmentation
from mpsearch.models import Form
from mpsearch.models.form import Leaf
from mpsearch.pytrees import LEAF

SHAPES = {
    "classification": (9, 5),
    "embedding": (9, 5),
    "outputs": (9, 3, 4),
    "regression": (9, 2),
    "segmentation": (9, 5, 4, 3),
    "span": (9, 2, 6),
}


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
    assert own == sorted([*SHAPES, "detection"])  # of which tests of its own say more


@pytest.mark.parametrize("name", ["outputs", "regression", "segmentation"])
def test_directions_see_the_damage_to_second_order(name):
    generator = torch.Generator().manual_seed(0)
    task, reference = TASKS.create(name), torch.randn(SHAPES[name], generator=generator).double()
    error = 1e-3 * torch.randn(SHAPES[name], generator=generator).double()
    seen = (task.directions(reference, 4000, generator) * error).flatten(2).sum(2).square().mean(0) / 2
    expected = task.damage(reference + error, reference)
    torch.testing.assert_close(seen, expected, rtol=0.15, atol=0)


def test_outputs_by_hand():
    reference = torch.tensor([[0.0, 2, 1, 1, 1], [2.0, 0, 3, 3, 3]])
    form = Form((), LEAF, (Leaf("a", (2,), "float32"), Leaf("b", (3,), "float32")), LEAF)
    text, task = task_for("auto", reference, form)
    assert text == "outputs" and isinstance(task, Outputs)
    moved = reference + torch.tensor([[0.1, 0, 0, 0, 0], [0, 0, 2.0, 2, 2]])
    # both tensors have the variance 1 over all of their numbers
    assert task.damage(moved, reference).tolist() == pytest.approx([0.01 / 2, 4.0])
    found = task.compare(moved, reference)
    assert found.agreement == 0.5 and found.kl == pytest.approx((0.005 + 4) / 2)
    assert found.scores == {
        "sqnr a": pytest.approx(-10 * math.log10(0.0025)), "sqnr b": pytest.approx(-10 * math.log10(2))
    }  # fmt: skip
    assert task.compare(reference, reference).scores == {"sqnr a": 100.0, "sqnr b": 100.0}


def test_segmentation_by_hand():
    labels = torch.tensor([[[0, 0], [1, 255]]])
    outputs = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [1, 0]]]), 3).movedim(-1, 1).float()
    found = Segmentation().compare(outputs, outputs, labels)
    # class 0: 1 of 2; class 1: 1 of 2; class 2 does not occur
    assert found.scores == {"miou": pytest.approx(0.5), "pixel_accuracy": pytest.approx(2 / 3)}
    flat = outputs.movedim(1, -1).reshape(-1, 3)
    other = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    image = other.reshape(1, 2, 2, 3).movedim(-1, 1)
    assert float(Segmentation().damage(image, outputs)) == pytest.approx(
        float(kl_by_image(other, flat).mean())
    )


def test_regression_by_hand():
    labels = torch.tensor([0.0, 1, 2, 3])
    found = Regression().compare(labels[:, None] + 1, labels[:, None], labels)
    assert found.scores["r2"] == pytest.approx(1 - 4 / 5) and found.kl == pytest.approx(1 / 1.25)


def test_a_task_of_several_outputs_is_about_the_one_that_is_named():
    form = Form((), LEAF, (Leaf("logits", (3,), "float32"), Leaf("boxes", (2, 2), "float32")), LEAF)
    outputs, reference = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    _, task = task_for("classification:output=logits", reference, form)
    assert task.name == "classification" and not task.classes
    assert torch.equal(task.damage(outputs, reference), kl_by_image(outputs[:, :3], reference[:, :3]))
    seen = task.directions(reference, 3, torch.Generator().manual_seed(1))
    assert seen.shape == (3, 5, 7) and seen[..., :3].abs().min() > 0 and seen[..., 3:].abs().max() == 0
    for wrong in ("classification", "classification:output=scores"):
        with pytest.raises(
            OptionError, match=r"logits 3 float32, boxes 2 x 2 float32.*classification:output=logits"
        ):
            task_for(wrong, reference, form)


def test_a_task_goes_by_the_outputs_where_none_is_named():
    def chosen(*shape: int, labels: torch.Tensor | None = None) -> str:
        return task_for("auto", torch.randn(shape), None, labels)[0]

    assert chosen(4, 10) == "classification" and chosen(4, 10, labels=torch.arange(4)) == "classification"
    assert chosen(4, 1) == "outputs" and chosen(4, 3, 8, 8) == "outputs"
    assert chosen(4, 2, labels=torch.rand(4, 2)) == "regression"
    with pytest.raises(OptionError, match=r"outputs N x K, and the model gives N x 3 x 8 x 8.*segmentation"):
        task_for("classification", torch.randn(2, 3, 8, 8), None)


def test_a_task_of_a_file(tmp_path):
    file = tmp_path / "tasks.py"
    file.write_text(
        "from mpsearch.evaluate import Metrics, Task\n"
        "class Both(Task):\n"
        "    measure, several = 'distance', True\n"
        "    def damage(self, outputs, reference):\n"
        "        return (outputs['a'] - reference['a']).double().square().sum(1)\n"
        "    def compare(self, outputs, reference, labels=None):\n"
        "        return Metrics(len(outputs['a']), float(self.damage(outputs, reference).mean()), 1.0)\n"
    )
    form = Form((), LEAF, (Leaf("a", (2,), "float32"), Leaf("b", (1,), "float32")), LEAF)
    _, task = task_for(f"{file}:Both", torch.randn(4, 3), form)
    assert isinstance(task, Task) and task.measure == "distance"
    reference = torch.zeros(2, 3)
    assert task.damage(torch.tensor([[1.0, 2, 9], [0, 0, 9]]), reference).tolist() == [5.0, 0.0]
    assert task.directions(reference, 2, torch.Generator()).shape == (2, 2, 3)
    with pytest.raises(OptionError, match="must be a class below"):
        task_for(_other(tmp_path), reference, form)


def _other(folder) -> str:
    (folder / "odd.py").write_text("class Odd: ...\n")
    return f"{folder / 'odd.py'}:Odd"


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
